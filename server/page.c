/* The web page: see page.h. */
#include "server/page.h"

#include <string.h>

static const struct page_file files[] = {
#include "server/page_files.inc"
};

/* Nothing but what comes from here, no script in the markup, no string that becomes markup: whatever
 * a model or a file's name says, it stays text. */
static const char policy[] =
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'";

const struct page_file *page_find(const char *name)
{
    const char *wanted = *name ? name : "page.html";
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        if (strcmp(files[i].name, wanted) == 0) return &files[i];
    return NULL;
}

const char *page_content_type(const struct page_file *file)
{
    static const struct { const char *end, *type; } types[] = {
        {".html", "text/html; charset=utf-8"},
        {".css", "text/css; charset=utf-8"},
        {".js", "text/javascript; charset=utf-8"},
        {".svg", "image/svg+xml"},
    };
    const char *end = strrchr(file->name, '.');
    for (size_t i = 0; end && i < sizeof types / sizeof *types; i++)
        if (strcmp(end, types[i].end) == 0) return types[i].type;
    return "application/octet-stream";
}

bool page_is_known(const struct page_file *file, const char *if_none_match)
{
    /* A list of quoted tags, weak ones ("W/...") too; a quoted tag is no part of another. */
    return if_none_match
           && (strcmp(if_none_match, "*") == 0 || strstr(if_none_match, file->etag) != NULL);
}

struct MHD_Response *page_response(const struct page_file *file)
{
    /* It only reads what it takes as not const. */
    struct MHD_Response *response = MHD_create_response_from_buffer(
        file->size, (void *)file->data, MHD_RESPMEM_PERSISTENT);
    const char *const headers[][2] = {
        {"Content-Type", page_content_type(file)},
        {"ETag", file->etag},
        {"Cache-Control", "no-cache"}, /* ask each time: the page must be this server's */
        {"Content-Security-Policy", policy},
        {"X-Content-Type-Options", "nosniff"},
        {"Referrer-Policy", "no-referrer"},
    };
    for (size_t i = 0; response && i < sizeof headers / sizeof *headers; i++) {
        if (MHD_add_response_header(response, headers[i][0], headers[i][1]) == MHD_YES) continue;
        MHD_destroy_response(response);
        response = NULL;
    }
    return response;
}

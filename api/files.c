/* File objects: see files.h. */
#include "api/files.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "api/json_out.h"
#include "base/json.h"
#include "base/utf8.h"

enum { FILE_JSON_DEPTH = 4 };

void api_file_render(const struct api_file *f, struct buf *out)
{
    buf_puts(out, "{\"id\":");
    json_out_text(out, f->id);
    buf_printf(out,
               ",\"object\":\"file\",\"bytes\":%" PRId64 ",\"created_at\":%" PRId64
               ",\"filename\":",
               f->bytes, f->created_at);
    json_out_text(out, f->filename);
    buf_puts(out, ",\"purpose\":");
    json_out_text(out, f->purpose);
    buf_puts(out, ",\"status\":\"processed\",\"expires_at\":null,\"status_details\":null}");
}

static bool take_text(const struct cJSON *root, const char *key, char *out, size_t size)
{
    const struct cJSON *item = json_get(root, key);
    if (!cJSON_IsString(item) || strlen(item->valuestring) >= size) return false;
    strcpy(out, item->valuestring);
    return true;
}

bool api_file_parse(const char *json, size_t n, const char *where, struct api_file *out,
                    struct error *err)
{
    struct cJSON *root = json_parse(json, n, FILE_JSON_DEPTH, where, err);
    if (!root) return false;
    struct api_file f = {0};
    bool ok = take_text(root, "id", f.id, sizeof f.id)
              && take_text(root, "purpose", f.purpose, sizeof f.purpose)
              && take_text(root, "filename", f.filename, sizeof f.filename)
              && json_to_i64(json_get(root, "bytes"), &f.bytes)
              && json_to_i64(json_get(root, "created_at"), &f.created_at);
    cJSON_Delete(root);
    if (!ok) return error_set(err, ERR_FORMAT, NULL, "%s: not a file object", where);
    *out = f;
    return true;
}

bool api_file_check_purpose(const char *purpose, struct error *err)
{
    if (strcmp(purpose, "fine-tune") == 0) return true;
    return error_set(err, ERR_INVALID, "purpose",
                     "'purpose' is '%.40s'; gptd knows fine-tune alone", purpose);
}

void api_file_clean_name(const char *name, char *out, size_t size)
{
    const char *slash = strrchr(name, '/');
    if (slash) name = slash + 1;
    size_t n = 0;
    while (*name && n + 4 < size) {
        size_t left = strlen(name);
        uint32_t cp;
        int len = utf8_decode(name, left, &cp);
        if (len > 0 && cp >= ' ' && cp != 0x7F) {
            memcpy(out + n, name, (size_t)len);
            n += (size_t)len;
        }
        name += len > 0 ? len : 1;
    }
    out[n] = 0;
    if (n == 0) snprintf(out, size, "file");
}

void api_render_deleted(struct buf *out, const char *object, const char *id)
{
    buf_printf(out, "{\"id\":");
    json_out_text(out, id);
    buf_printf(out, ",\"object\":\"%s\",\"deleted\":true}", object);
}

/* Multipart bodies: see upload.h. */
#include "server/upload.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { POST_BUFFER = 32 * 1024 };

struct upload {
    struct file_store *store;
    struct MHD_PostProcessor *parts;
    struct file_upload *file; /* NULL: its part has not begun, or is over */
    bool has_file;
    uint64_t file_bytes; /* so far */
    char purpose[64];
    struct error error;
};

static enum MHD_Result fail(struct upload *u, enum error_code code, const char *param,
                            const char *what)
{
    error_set(&u->error, code, param, "%s", what);
    return MHD_NO;
}

static enum MHD_Result take_file(struct upload *u, const char *filename, const char *data,
                                 uint64_t offset, size_t n)
{
    if (offset != u->file_bytes) /* it begins again */
        return fail(u, ERR_INVALID, "file", "'file' is given twice");
    if (!filename)
        return fail(u, ERR_INVALID, "file", "'file' must be a file, with a filename");
    if (!u->has_file && !file_upload_begin(u->store, filename, &u->file, &u->error)) return MHD_NO;
    u->has_file = true;
    u->file_bytes += n;
    return n == 0 || file_upload_append(u->file, data, n, &u->error) ? MHD_YES : MHD_NO;
}

static enum MHD_Result take_part(void *cls, enum MHD_ValueKind kind, const char *key,
                                 const char *filename, const char *content_type,
                                 const char *transfer_encoding, const char *data, uint64_t offset,
                                 size_t n)
{
    struct upload *u = cls;
    if (key && strcmp(key, "file") == 0) return take_file(u, filename, data, offset, n);
    if (key && strcmp(key, "purpose") == 0) {
        if (offset + n >= sizeof u->purpose)
            return fail(u, ERR_INVALID, "purpose", "'purpose' is longer than any that is known");
        if (n) memcpy(u->purpose + offset, data, n);
        u->purpose[offset + n] = 0;
        return MHD_YES;
    }
    error_set(&u->error, ERR_INVALID, key, "unknown parameter '%.64s'; known are file and purpose",
              key ? key : "");
    return MHD_NO;
}

bool upload_begin(struct file_store *s, struct MHD_Connection *connection, struct upload **out,
                  struct error *err)
{
    struct upload *u = calloc(1, sizeof *u);
    if (!u) return error_set(err, ERR_MEMORY, NULL, "no memory for the upload");
    u->store = s;
    errno = 0;
    u->parts = MHD_create_post_processor(connection, POST_BUFFER, take_part, u);
    if (!u->parts) {
        int why = errno;
        free(u);
        if (why == ENOMEM) return error_set(err, ERR_MEMORY, NULL, "no memory for the upload");
        return error_set(err, ERR_UNSUPPORTED, NULL,
                         "the body must be multipart/form-data with a boundary, and have the parts "
                         "file and purpose");
    }
    *out = u;
    return true;
}

bool upload_feed(struct upload *u, const char *data, size_t n)
{
    if (u->error.code != ERR_NONE) return false;
    if (MHD_post_process(u->parts, data, n) == MHD_YES && u->error.code == ERR_NONE) return true;
    if (u->error.code == ERR_NONE)
        error_set(&u->error, ERR_FORMAT, NULL, "the body is not well-formed multipart/form-data");
    file_upload_abandon(u->file);
    u->file = NULL;
    return false;
}

const struct error *upload_error(const struct upload *u) { return &u->error; }

/* Has it all that a file needs? */
static bool is_complete(struct upload *u, struct error *err)
{
    bool whole = MHD_destroy_post_processor(u->parts) == MHD_YES;
    u->parts = NULL;
    if (u->error.code != ERR_NONE) {
        *err = u->error;
        return false;
    }
    if (!whole)
        return error_set(err, ERR_FORMAT, NULL, "the body ends in the middle of a part");
    if (!u->file) return error_set(err, ERR_INVALID, "file", "the parameter 'file' is missing");
    if (!u->purpose[0])
        return error_set(err, ERR_INVALID, "purpose", "the parameter 'purpose' is missing");
    return true;
}

bool upload_finish(struct upload *u, struct api_file *out, struct error *err)
{
    bool ok = is_complete(u, err);
    struct file_upload *file = u->file;
    u->file = NULL;
    if (ok) return file_upload_finish(file, u->purpose, out, err);
    file_upload_abandon(file); /* gone before its client hears of it */
    return false;
}

void upload_free(struct upload *u)
{
    if (!u) return;
    if (u->parts) MHD_destroy_post_processor(u->parts);
    file_upload_abandon(u->file);
    free(u);
}

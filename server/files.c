/* Uploaded files: see files.h. */
#include "server/files.h"

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

#include "base/file.h"
#include "base/log.h"
#include "model/checkpoint_write.h"
#include "model/file_write.h"

enum { FILE_JSON_LIMIT = 4096 };

struct file_store {
    struct data_dir *dir;
    pthread_mutex_t mutex; /* of `dir` while it is taken */
    int64_t max_bytes;
};

struct file_upload {
    struct file_store *store;
    int fd;
    int64_t bytes;
    char id[48], folder[64]; /* file-ID; upload-ID, its folder's name until it is whole */
    char filename[256];
};

/* ---- the store ---- */

static void clear_unfinished(struct file_store *s)
{
    char path[DATA_PATH_MAX];
    struct error err;
    if (!data_dir_path(s->dir, path, "files", NULL, NULL, &err)) return;
    DIR *d = opendir(path);
    if (!d) return;
    for (struct dirent *e; (e = readdir(d));) {
        if (strncmp(e->d_name, "upload-", 7) != 0) continue;
        if (!data_dir_path(s->dir, path, "files", e->d_name, NULL, &err)
            || !data_remove_tree(path, &err))
            log_warn("an unfinished upload stays: %s", err.text);
    }
    closedir(d);
}

bool file_store_open(struct data_dir *dir, int64_t max_bytes, struct file_store **out,
                     struct error *err)
{
    struct file_store *s = calloc(1, sizeof *s);
    if (!s) return error_set(err, ERR_MEMORY, NULL, "no memory to start the server");
    s->dir = dir;
    s->max_bytes = max_bytes;
    pthread_mutex_init(&s->mutex, NULL);
    if (data_dir_is_taken(dir)) clear_unfinished(s);
    *out = s;
    return true;
}

void file_store_close(struct file_store *s)
{
    if (!s) return;
    pthread_mutex_destroy(&s->mutex);
    free(s);
}

bool file_store_take(struct file_store *s, struct error *err)
{
    pthread_mutex_lock(&s->mutex);
    bool ok = data_dir_take(s->dir, err);
    pthread_mutex_unlock(&s->mutex);
    return ok;
}

/* Reads file.json of a folder of files/; ERR_NOT_FOUND where there is none. */
static bool read_file_json(struct file_store *s, const char *id, struct api_file *out,
                           struct error *err)
{
    char path[DATA_PATH_MAX];
    struct buf json;
    if (!data_dir_path(s->dir, path, "files", id, "file.json", err)) return false;
    buf_init(&json, FILE_JSON_LIMIT);
    bool ok = file_read(path, &json, err) && api_file_parse(json.data, json.len, path, out, err);
    buf_free(&json);
    return ok;
}

bool file_store_get(struct file_store *s, const char *id, struct api_file *out, struct error *err)
{
    struct error why = {.code = ERR_NOT_FOUND};
    if (data_is_id("file-", id) && read_file_json(s, id, out, &why)) return true;
    if (why.code == ERR_NOT_FOUND)
        return error_set(err, ERR_NOT_FOUND, "file", "there is no file '%.64s'", id);
    return error_set(err, why.code, NULL, "%s", why.text);
}

/* ---- lists ---- */

static int newest_first(const void *a, const void *b)
{
    const struct api_file *x = a, *y = b;
    if (x->created_at != y->created_at) return x->created_at < y->created_at ? 1 : -1;
    return strcmp(y->id, x->id);
}

/* All files of a purpose, newest first; the caller frees *out. */
static bool collect(struct file_store *s, const char *purpose, struct api_file **out, size_t *n,
                    struct error *err)
{
    char path[DATA_PATH_MAX];
    size_t capacity = 0;
    *out = NULL;
    *n = 0;
    if (!data_dir_path(s->dir, path, "files", NULL, NULL, err)) return false;
    DIR *d = opendir(path);
    if (!d) return errno == ENOENT || errno == ENOTDIR || error_errno(err, "cannot read %s", path);
    for (struct dirent *e; (e = readdir(d));) {
        struct api_file f;
        if (!data_is_id("file-", e->d_name) || !read_file_json(s, e->d_name, &f, NULL)) continue;
        if (purpose && strcmp(purpose, f.purpose) != 0) continue;
        if (*n == capacity) {
            capacity = capacity ? 2 * capacity : 16;
            struct api_file *more = realloc(*out, capacity * sizeof *more);
            if (!more) {
                closedir(d);
                free(*out);
                return error_set(err, ERR_MEMORY, NULL, "no memory to list the files");
            }
            *out = more;
        }
        (*out)[(*n)++] = f;
    }
    closedir(d);
    if (*n) qsort(*out, *n, sizeof **out, newest_first);
    return true;
}

bool file_store_list(struct file_store *s, const struct api_page *page, const char *purpose,
                     struct buf *out, struct error *err)
{
    struct api_file *files;
    size_t n;
    if (!collect(s, purpose, &files, &n, err)) return false;
    bool begun = !page->after, more = false;
    int64_t shown = 0;
    buf_puts(out, "{\"object\":\"list\",\"data\":[");
    for (size_t i = 0; i < n && !more; i++) {
        const struct api_file *f = &files[page->ascending ? n - 1 - i : i];
        if (!begun) {
            begun = strcmp(f->id, page->after) == 0;
            continue;
        }
        if (shown == page->limit) {
            more = true;
            break;
        }
        if (shown++) buf_putc(out, ',');
        api_file_render(f, out);
    }
    buf_printf(out, "],\"has_more\":%s}", more ? "true" : "false");
    free(files);
    if (begun) return true;
    return error_set(err, ERR_INVALID, "after", "'after' is no file of this list");
}

/* The content's name tells the trainer what is in it. */
static const char *content_name(const char *filename)
{
    static const char *const json_lines[] = {".jsonl", ".ndjson", ".json"};
    size_t n = strlen(filename);
    for (size_t i = 0; i < sizeof json_lines / sizeof *json_lines; i++) {
        size_t len = strlen(json_lines[i]);
        if (n > len && strcasecmp(filename + n - len, json_lines[i]) == 0) return "content.jsonl";
    }
    return "content.txt";
}

bool file_store_content(struct file_store *s, const char *id, char path[DATA_PATH_MAX],
                        struct error *err)
{
    struct api_file f;
    return file_store_get(s, id, &f, err)
           && data_dir_path(s->dir, path, "files", id, content_name(f.filename), err);
}

bool file_store_open_content(struct file_store *s, const char *id, int *fd, size_t *size,
                             struct error *err)
{
    char path[DATA_PATH_MAX];
    return file_store_content(s, id, path, err)
           && file_open_beneath(s->dir->path, path + strlen(s->dir->path) + 1, fd, size, err);
}

bool file_store_remove(struct file_store *s, const char *id, struct error *err)
{
    struct api_file f;
    char path[DATA_PATH_MAX], json[DATA_PATH_MAX];
    if (!file_store_take(s, err) || !file_store_get(s, id, &f, err)) return false;
    if (!data_dir_path(s->dir, path, "files", id, NULL, err)
        || !data_dir_path(s->dir, json, "files", id, "file.json", err))
        return false;
    /* Without file.json it is no file any more, whatever becomes of the rest. */
    if (unlink(json) != 0) return error_errno(err, "cannot remove %s", json);
    return data_remove_tree(path, err);
}

/* ---- uploads ---- */

bool file_upload_begin(struct file_store *s, const char *filename, struct file_upload **out,
                       struct error *err)
{
    char path[DATA_PATH_MAX];
    if (!file_store_take(s, err)) return false;
    struct file_upload *u = calloc(1, sizeof *u);
    if (!u) return error_set(err, ERR_MEMORY, NULL, "no memory for the upload");
    u->store = s;
    u->fd = -1;
    api_file_clean_name(filename, u->filename, sizeof u->filename);
    if (!data_new_id("file-", u->id, sizeof u->id, err)) goto fail;
    snprintf(u->folder, sizeof u->folder, "upload-%s", u->id);
    if (!data_dir_path(s->dir, path, "files", u->folder, NULL, err) || !directory_make(path, err)
        || !file_create_beneath(path, content_name(u->filename), &u->fd, err))
        goto fail;
    *out = u;
    return true;
fail:
    file_upload_abandon(u);
    return false;
}

bool file_upload_append(struct file_upload *u, const void *bytes, size_t n, struct error *err)
{
    if ((int64_t)n > u->store->max_bytes - u->bytes)
        return error_set(err, ERR_TOO_LARGE, "file", "the file is over the limit of %lld bytes",
                         (long long)u->store->max_bytes);
    for (const char *p = bytes; n > 0;) {
        ssize_t written = write(u->fd, p, n);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0)
            return error_errno(err, "cannot write an upload after %lld bytes", (long long)u->bytes);
        p += written;
        n -= (size_t)written;
        u->bytes += written;
    }
    return true;
}

/* file.json beside the synced content, then the folder's own name. */
static bool settle(struct file_upload *u, const struct api_file *f, struct error *err)
{
    const struct data_dir *dir = u->store->dir;
    char from[DATA_PATH_MAX], to[DATA_PATH_MAX], json_path[DATA_PATH_MAX];
    struct buf json;
    if (!data_dir_path(dir, from, "files", u->folder, NULL, err)
        || !data_dir_path(dir, to, "files", u->id, NULL, err)
        || !data_dir_path(dir, json_path, "files", u->folder, "file.json", err))
        return false;
    if (fsync(u->fd) != 0) return error_errno(err, "cannot sync an upload");
    buf_init(&json, FILE_JSON_LIMIT);
    api_file_render(f, &json);
    buf_putc(&json, '\n');
    bool ok = buf_check(&json, "file.json", err)
              && file_write_atomic(json_path, json.data, json.len, err);
    buf_free(&json);
    if (!ok) return false;
    return rename(from, to) == 0 || error_errno(err, "cannot rename %s", from);
}

bool file_upload_finish(struct file_upload *u, const char *purpose, struct api_file *out,
                        struct error *err)
{
    struct api_file f = {.bytes = u->bytes, .created_at = time(NULL)};
    snprintf(f.id, sizeof f.id, "%s", u->id);
    snprintf(f.filename, sizeof f.filename, "%s", u->filename);
    snprintf(f.purpose, sizeof f.purpose, "%s", purpose);
    bool ok = u->bytes > 0 || error_set(err, ERR_INVALID, "file", "the file is empty");
    ok = ok && api_file_check_purpose(purpose, err) && settle(u, &f, err);
    if (ok) {
        *out = f;
        close(u->fd);
        free(u);
        return true;
    }
    file_upload_abandon(u);
    return false;
}

void file_upload_abandon(struct file_upload *u)
{
    char path[DATA_PATH_MAX];
    struct error err;
    if (!u) return;
    if (u->fd >= 0) close(u->fd);
    if (u->folder[0] && data_dir_path(u->store->dir, path, "files", u->folder, NULL, &err)
        && !data_remove_tree(path, &err))
        log_warn("an unfinished upload stays: %s", err.text);
    free(u);
}

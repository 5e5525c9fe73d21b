/* The uploaded files: DATA_DIR/files/file-ID/ with file.json and content.txt or content.jsonl. All
 * of the state is on disk; an upload has a folder of its own (upload-...) that is renamed when it
 * is whole. Any thread. */
#pragma once

#include "api/files.h"
#include "server/data_dir.h"

struct file_store;

/* Clears away uploads that a crash cut off, if the folder is taken. `dir` must outlive it. */
bool file_store_open(struct data_dir *dir, int64_t max_bytes, struct file_store **out,
                     struct error *err) MUST_CHECK;
void file_store_close(struct file_store *s); /* NULL-safe */
/* Makes and takes the data folder if need be. ERR_UNAVAILABLE. */
bool file_store_take(struct file_store *s, struct error *err) MUST_CHECK;

/* ERR_NOT_FOUND for ids that are none, too. */
bool file_store_get(struct file_store *s, const char *id, struct api_file *out,
                    struct error *err) MUST_CHECK;
/* {"object":"list","data":[...],"has_more"}. purpose: NULL for all. */
bool file_store_list(struct file_store *s, const struct api_page *page, const char *purpose,
                     struct buf *out, struct error *err) MUST_CHECK;
/* Where the bytes are. */
bool file_store_content(struct file_store *s, const char *id, char path[DATA_PATH_MAX],
                        struct error *err) MUST_CHECK;
/* The content, open for reading; a link that leads out of the server's folder is not followed. The
 * caller closes *fd. */
bool file_store_open_content(struct file_store *s, const char *id, int *fd, size_t *size,
                             struct error *err) MUST_CHECK;
bool file_store_remove(struct file_store *s, const char *id, struct error *err) MUST_CHECK;

/* One upload, in the hands of one request. */
struct file_upload;
bool file_upload_begin(struct file_store *s, const char *filename, struct file_upload **out,
                       struct error *err) MUST_CHECK;
/* ERR_TOO_LARGE over the store's limit. */
bool file_upload_append(struct file_upload *u, const void *bytes, size_t n, struct error *err)
    MUST_CHECK;
/* Syncs, and gives it its name. Frees `u`, whatever happens. */
bool file_upload_finish(struct file_upload *u, const char *purpose, struct api_file *out,
                        struct error *err) MUST_CHECK;
void file_upload_abandon(struct file_upload *u); /* NULL-safe */

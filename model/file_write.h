/* Writing files that are whole or not there: the bytes go to PATH.tmp, which is synced, renamed to
 * PATH, and the folder is synced. A crash at any moment leaves the old file or the new one, and at
 * most a PATH.tmp that the next writer of PATH takes over. Two writers of one path: the second is
 * refused. (file_write_atomic, for a file that is in memory, is in checkpoint_write.h.)
 *
 *     struct file_writer w;
 *     if (!file_writer_open(&w, path, err)) return false;
 *     bool ok = file_writer_append(&w, ...) && ...;
 *     return file_writer_close(&w, ok, err) && ok;
 * */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

enum { FILE_WRITER_PATH_MAX = 4096 };

struct file_writer {
    int fd;
    int64_t bytes; /* so far */
    char path[FILE_WRITER_PATH_MAX];
    char temporary[FILE_WRITER_PATH_MAX];
};

/* ERR_BUSY when another writer is at the same path. */
bool file_writer_open(struct file_writer *w, const char *path, struct error *err) MUST_CHECK;
/* On failure (a full disk) the caller still closes. */
bool file_writer_append(struct file_writer *w, const void *bytes, size_t n, struct error *err)
    MUST_CHECK;
/* Ends it. keep: sync and rename; else, or when that fails, the temporary file is removed and
 * nothing has changed. Without `keep` the result is true and err is left alone. */
bool file_writer_close(struct file_writer *w, bool keep, struct error *err) MUST_CHECK;

/* Makes the directory unless it is there (its parents must be). */
bool directory_make(const char *path, struct error *err) MUST_CHECK;

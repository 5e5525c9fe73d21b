/* Files: read-only maps and bounded reads. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/error.h"

struct file_map {
    const uint8_t *data; /* NULL for an empty file */
    size_t size;
    uint64_t inode;      /* which file it is, and */
    int64_t changed_ns;  /* when it was last written to, at the opening */
};

/* Maps a regular file read-only. Directories, devices and pipes are refused. */
bool file_map_open(const char *path, struct file_map *out, struct error *err) MUST_CHECK;
/* Its pages leave memory, and are read anew when they are touched: for a large file that was read
 * once, whose pages would count as the process's own. */
void file_map_forget(const struct file_map *map);
void file_map_close(struct file_map *map); /* NULL-safe for a zeroed struct */

/* Has the file been written to since? False with the reason in `err` then; `path` is its name. A
 * file that has been replaced (renamed over) has not: the map is of the old one, which is whole. */
bool file_map_unchanged(const struct file_map *map, const char *path, struct error *err) MUST_CHECK;

/* A file that is cut while it is mapped raises SIGBUS where it is read, which ends the process with
 * a line that says so. Between begin and end, by any thread, what was cut off reads as zeros
 * instead, and end returns false: whatever was made of `what` is worthless. */
struct file_guard {
    int64_t n_faults; /* before */
};
void file_guard_begin(struct file_guard *g);
bool file_guard_end(struct file_guard *g, const char *what, struct error *err) MUST_CHECK;

/* Appends the whole file to `out`, whose limit bounds it. */
bool file_read(const char *path, struct buf *out, struct error *err) MUST_CHECK;

/* Opens the regular file `name` in the folder `root` for reading: the kernel follows neither ".."
 * nor a link out of the folder (openat2; before Linux 5.6 links are looked at first). The caller
 * closes *fd. */
bool file_open_beneath(const char *root, const char *name, int *fd, size_t *size,
                       struct error *err) MUST_CHECK;
/* Creates the file `name` there, which must not exist yet, for writing. The caller closes *fd. */
bool file_create_beneath(const char *root, const char *name, int *fd, struct error *err) MUST_CHECK;
/* Where `name`, a file or a folder in `root` by the same rules, lies: an absolute path without
 * links. `root` itself is not in it. */
bool path_find_beneath(const char *root, const char *name, char *out, size_t size,
                       struct error *err) MUST_CHECK;

bool file_exists(const char *path);  /* anything by that name */
bool file_is_dir(const char *path);
/* "dir/name" into out; ERR_TOO_LARGE when it does not fit. */
bool path_join(char *out, size_t size, const char *dir, const char *name, struct error *err)
    MUST_CHECK;

/* The folder that `gptd serve --data-dir` names: files/ and jobs/ lie in it. It is made when
 * something is first kept; reading from one that is not there finds nothing. One server at a time
 * uses a folder. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "base/buf.h"
#include "base/error.h"

enum { DATA_PATH_MAX = 1024 };

struct data_dir {
    char path[DATA_PATH_MAX / 2]; /* absolute */
    int lock_fd;                  /* holds the folder; -1: not yet */
};

/* ERR_TOO_LARGE for a path that leaves no room for what lies in it. Makes nothing. */
bool data_dir_init(struct data_dir *d, const char *path, struct error *err) MUST_CHECK;
/* Makes the folder and its parts unless they are there, and takes it. ERR_UNAVAILABLE with the
 * reason when that cannot be done. Not for several threads at once. */
bool data_dir_take(struct data_dir *d, struct error *err) MUST_CHECK;
bool data_dir_is_taken(const struct data_dir *d);
void data_dir_release(struct data_dir *d);

/* "DIR/PART/NAME/REST"; parts may be NULL from the end. False when it does not fit. */
bool data_dir_path(const struct data_dir *d, char out[DATA_PATH_MAX], const char *part,
                   const char *name, const char *rest, struct error *err) MUST_CHECK;

/* PREFIX and 24 characters of [a-z0-9]: the time in milliseconds, so that ids sort as they were
 * made, then 15 random ones. */
bool data_new_id(const char *prefix, char *out, size_t size, struct error *err) MUST_CHECK;
/* Is this an id as data_new_id makes them? Then it is safe in a path. */
bool data_is_id(const char *prefix, const char *id);
/* Removes the folder and the files and folders in it. */
bool data_remove_tree(const char *path, struct error *err) MUST_CHECK;

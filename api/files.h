/* Uploaded files as OpenAI's API shows them. The same JSON lies beside the file on disk, so that
 * what the API says and what a person reads there is one thing. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/error.h"

struct api_file {
    char id[48];        /* "file-..." */
    char purpose[32];   /* "fine-tune" */
    char filename[256]; /* what the client called it: UTF-8, no slashes, no control characters */
    int64_t bytes;
    int64_t created_at; /* Unix seconds */
};

/* One object: {"id","object":"file","bytes","created_at","filename","purpose","status",...} */
void api_file_render(const struct api_file *f, struct buf *out);
/* Reads it back; `where` begins the error's text. */
bool api_file_parse(const char *json, size_t n, const char *where, struct api_file *out,
                    struct error *err) MUST_CHECK;

/* The purposes that gptd knows. ERR_INVALID names them. */
bool api_file_check_purpose(const char *purpose, struct error *err) MUST_CHECK;
/* What is left of a client's file name when paths and control characters are gone; never empty. */
void api_file_clean_name(const char *name, char *out, size_t size);

/* A page of a list, as `after` and `limit` ask. */
struct api_page {
    const char *after; /* the id that the page follows; NULL: from the beginning */
    int64_t limit;
    bool ascending;    /* oldest first */
};

/* {"object":"file","id","deleted":true} and its kind. */
void api_render_deleted(struct buf *out, const char *object, const char *id);

/* Reading data for training, document by document: what dataset.c (into memory) and token_shards.c
 * (to disk) share. Only model/dataset*.c, model/token_shards.c and their tests include it.
 *
 *     inputs ─ dataset_inputs.c ─▶ files ─ dataset_text.c, _jsonl.c ─▶ documents ─▶ sink
 *
 * Inputs are read twice: documents are counted before the first is encoded, because which of them
 * are held out depends on how many there are. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/file.h"
#include "model/dataset.h"

enum { DATASET_FEW_DOCUMENTS = 20 /* text with fewer is split inside its documents */ };

struct document {
    const int32_t *ids;
    const uint8_t *loss; /* [n] 0: not a target; NULL: all are */
    int64_t n;           /* > 0 */
};

struct dataset_sink {
    bool (*add)(void *ctx, enum dataset_split split, const struct document *d, struct error *err);
    void *ctx;
};

struct dataset_counts {
    int64_t files, documents; /* documents as they are in the files */
    int64_t text_bytes;       /* of what was encoded */
};

/* Reads all inputs (no shards) and hands their documents on in order. */
bool dataset_read(const struct dataset_options *o, const struct dataset_sink *sink,
                  struct dataset_counts *counts, struct error *err) MUST_CHECK;

/* ---- Files (dataset_inputs.c) ---- */

struct dataset_paths { /* malloc'd */
    char **at;
    size_t n;
};
/* The files that paths and globs name, in the order given, each glob's sorted by name. */
bool dataset_paths_find(const char *const *inputs, int32_t n, struct dataset_paths *out,
                        struct error *err) MUST_CHECK;
void dataset_paths_free(struct dataset_paths *p);
bool dataset_is_jsonl(const char *path); /* by its name */

struct dataset_file {
    const char *path;
    struct file_map map;
    const char *text; /* behind a byte order mark */
    size_t n;
    size_t skipped;   /* bytes of the byte order mark */
};
/* Maps a file and checks that it is UTF-8 text: ERR_FORMAT with line and byte for what is not. */
bool dataset_file_open(const char *path, struct dataset_file *out, struct error *err) MUST_CHECK;
void dataset_file_close(struct dataset_file *f);

/* ---- Documents of a file: how many, and one by one ---- */

struct dataset_splitter;
struct dataset_reader {
    const struct dataset_options *o;
    const char *separator; /* the end of text, spelled out; NULL: a text file is one document */
    size_t n_separator;
    struct token_ids ids;  /* of the document at hand */
    struct buf loss;       /* its mask, where it has one */
    bool has_loss;
    int64_t text_bytes;
    struct dataset_splitter *splitter; /* where documents go */
    dataset_text_fn visit; /* or, where this is set, their texts: nothing is encoded, o is NULL */
    void *visit_ctx;
};

enum { DATASET_MAX_IDS = INT32_MAX /* of a document */ };

/* Where to cut a text of more than `limit` bytes: among the last near_end (< limit) bytes before
 * that, at a line's end between two lines that are not blank, where the usual pre-tokenizers cut
 * anyway, so that the ids are those of the whole; else at a line's end; else at `limit`, or at the
 * end of a character before it. */
size_t dataset_text_cut(const char *text, size_t limit, size_t near_end);
int64_t dataset_text_count(const struct dataset_reader *r, const struct dataset_file *f);
bool dataset_text_read(struct dataset_reader *r, const struct dataset_file *f, struct error *err)
    MUST_CHECK;
int64_t dataset_jsonl_count(const struct dataset_file *f);
bool dataset_jsonl_read(struct dataset_reader *r, const struct dataset_file *f, struct error *err)
    MUST_CHECK;

/* What both do for each document: begin (with BOS where the tokenizer adds one), text (any number),
 * end (EOS), finish. `where` is for messages. */
bool dataset_document_begin(struct dataset_reader *r, bool bos, struct error *err) MUST_CHECK;
bool dataset_document_text(struct dataset_reader *r, const char *where, const char *text, size_t n,
                           bool learn, struct error *err) MUST_CHECK;
bool dataset_document_end(struct dataset_reader *r, struct error *err) MUST_CHECK;
bool dataset_document_finish(struct dataset_reader *r, const char *where, struct error *err)
    MUST_CHECK;

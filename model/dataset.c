/* Data sets: see dataset.h. Two token streams, and how each is cut into sequences. */
#include "model/dataset.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "model/dataset_internal.h"
#include "model/dataset_order.h"
#include "model/sha256.h"
#include "model/token_shards.h"

enum { N_SPLITS = N_DATASET_SPLITS };

struct split {
    struct token_stream stream;
    int64_t n_sequences;
    int64_t *starts; /* [n_sequences + 1] where each begins, with documents apart; else NULL */
};

struct dataset {
    struct split splits[N_SPLITS];
    int64_t block_size, vocab_size, max_spans;
    bool apart, only_validation;
    uint64_t seed;
    char fingerprint[65];
};

/* ---- documents kept apart ---- */

/* One span: rows [at, at + rows) and their targets, which lie one behind. A document of n tokens
 * has n - 1 rows: behind its last token is nothing to learn. */
struct piece { int64_t rows, next; };

static struct piece piece_at(const struct token_stream *s, int64_t block_size, int64_t at)
{
    int64_t end = token_stream_document_end(s, at);
    struct piece p = {.rows = min_i64(block_size, end - 1 - at)};
    p.next = at + p.rows == end - 1 ? end : at + p.rows;
    return p;
}

/* Walks the sequence that begins at *at and moves *at to where the next begins: documents and
 * pieces are taken in order while they fit. Returns its spans. */
static int64_t next_sequence(const struct token_stream *s, int64_t block_size, int64_t *at)
{
    int64_t rows = 0, spans = 0;
    while (*at < s->n_tokens) {
        struct piece p = piece_at(s, block_size, *at);
        if (rows + p.rows > block_size) break;
        rows += p.rows;
        spans += p.rows > 0;
        *at = p.next;
    }
    return spans;
}

/* Packs the stream: the table of where sequences begin. */
static bool pack(struct dataset *ds, struct split *split, struct error *err)
{
    const struct token_stream *s = &split->stream;
    int64_t at = 0, n = 0, capacity = 0;
    while (at < s->n_tokens) {
        int64_t begin = at, spans = next_sequence(s, ds->block_size, &at);
        if (n + 1 >= capacity) {
            capacity = max_i64(1024, 2 * capacity);
            int64_t *grown = realloc(split->starts, (size_t)capacity * sizeof *grown);
            if (!grown) return error_set(err, ERR_MEMORY, NULL, "no memory to pack documents");
            split->starts = grown;
        }
        if (spans == 0) continue; /* documents of one token */
        ds->max_spans = max_i64(ds->max_spans, spans);
        split->starts[n++] = begin;
        split->starts[n] = at;
    }
    split->n_sequences = n;
    return true;
}

/* ---- opening ---- */

static bool too_short(const struct dataset *ds, struct error *err)
{
    long long n = (long long)ds->splits[SPLIT_TRAIN].stream.n_tokens, T = (long long)ds->block_size;
    if (ds->only_validation)
        return error_set(err, ERR_INVALID, NULL, "the data have no two tokens in a row, so there "
                         "is nothing to predict");
    if (ds->apart)
        return error_set(err, ERR_INVALID, NULL, "the training data have no document of two tokens "
                         "or more");
    return error_set(err, ERR_INVALID, "block_size", "the training data have %lld tokens; a "
                     "sequence of block_size %lld needs %lld: give more text, or a smaller "
                     "block_size", n, T, T + 1);
}

/* Cuts both streams into sequences. */
static bool cut(struct dataset *ds, struct error *err)
{
    struct split *train = &ds->splits[SPLIT_TRAIN], *val = &ds->splits[SPLIT_VALIDATION];
    int64_t T = ds->block_size;
    ds->max_spans = 1;
    if (ds->apart) {
        if (!pack(ds, train, err) || !pack(ds, val, err)) return false;
    } else {
        if (train->stream.n_tokens > 1) train->n_sequences = (train->stream.n_tokens - 1) / T;
        if (val->stream.n_tokens > 1) val->n_sequences = ceil_div(val->stream.n_tokens - 1, T);
    }
    const struct split *needed = ds->only_validation ? val : train;
    return needed->n_sequences > 0 || too_short(ds, err);
}

static void digest_part(struct sha256 *digest, const struct token_part *p)
{
    int64_t sizes[4] = {p->n_tokens, p->n_documents, p->id_bytes, p->loss != NULL};
    sha256_update(digest, sizes, sizeof sizes);
    sha256_update(digest, p->ids, (size_t)(p->n_tokens * p->id_bytes));
    sha256_update(digest, p->starts, (size_t)p->n_documents * sizeof *p->starts);
    if (p->loss) sha256_update(digest, p->loss, (size_t)ceil_div(p->n_tokens, 8));
}

static bool fingerprint(struct dataset *ds, struct error *err)
{
    struct sha256 digest;
    sha256_begin(&digest);
    for (int split = 0; split < N_SPLITS; split++) {
        const struct token_stream *s = &ds->splits[split].stream;
        sha256_update(&digest, &s->n_parts, sizeof s->n_parts);
        for (int64_t i = 0; i < s->n_parts; i++) digest_part(&digest, &s->parts[i]);
    }
    return sha256_end(&digest, ds->fingerprint, err);
}

static bool add_document(void *ctx, enum dataset_split split, const struct document *d,
                         struct error *err)
{
    struct token_builder *builders = ctx;
    return token_builder_add(&builders[split], d->ids, d->loss, d->n, err);
}

/* Files, read into memory. */
static bool open_files(const struct dataset_options *o, struct dataset *ds, struct error *err)
{
    struct token_builder builders[N_SPLITS];
    struct dataset_sink sink = {.add = add_document, .ctx = builders};
    struct dataset_counts counts;
    for (int i = 0; i < N_SPLITS; i++) token_builder_init(&builders[i], o->vocab_size);
    bool ok = dataset_read(o, &sink, &counts, err);
    for (int i = 0; i < N_SPLITS; i++) {
        struct token_part part = token_builder_take(&builders[i]);
        ok = ok && (part.n_tokens == 0 || token_stream_append(&ds->splits[i].stream, &part, err));
        if (!ok || part.n_tokens == 0) token_part_free(&part);
    }
    return ok && fingerprint(ds, err);
}

/* Does what lies in the directory go with the model and the tokenizer? */
static bool shards_fit(const struct dataset_options *o, const char *dir,
                       const struct token_shards *shards, struct error *err)
{
    char fingerprint[65];
    if (shards->vocab_size > o->vocab_size)
        return error_set(err, ERR_INVALID, "vocab_size", "%s: its tokenizer has %lld tokens, the "
                         "model's vocab_size is %lld", dir, (long long)shards->vocab_size,
                         (long long)o->vocab_size);
    if (!o->tokenizer) return true;
    if (!tokenizer_fingerprint(o->tokenizer, fingerprint, err)) return false;
    return strcmp(fingerprint, shards->tokenizer) == 0 ||
           error_set(err, ERR_INVALID, NULL, "%s was encoded with another tokenizer than the "
                     "model's: write it anew with gptd data --tokenizer", dir);
}

/* Moves a directory's parts behind those that ds has. */
static bool take_shards(struct dataset *ds, struct token_shards *shards, struct error *err)
{
    for (int i = 0; i < N_SPLITS; i++) {
        struct token_stream *from = &shards->splits[i];
        for (int64_t k = 0; k < from->n_parts; k++) {
            if (!token_stream_append(&ds->splits[i].stream, &from->parts[k], err)) return false;
            from->parts[k] = (struct token_part){0};
        }
    }
    return true;
}

static bool open_shards(const struct dataset_options *o, struct dataset *ds, struct error *err)
{
    struct sha256 digest;
    sha256_begin(&digest);
    bool ok = true;
    for (int32_t i = 0; ok && i < o->n_inputs; i++) {
        struct token_shards shards = {0};
        ok = token_shards_is_dir(o->inputs[i]) ||
             error_set(err, ERR_INVALID, NULL, "%s is no directory of token shards: these and "
                       "files cannot be mixed", o->inputs[i]);
        ok = ok && token_shards_open(o->inputs[i], false, &shards, err) &&
             shards_fit(o, o->inputs[i], &shards, err) && take_shards(ds, &shards, err);
        if (ok) sha256_update(&digest, shards.digest, 64);
        token_shards_close(&shards);
    }
    return sha256_end(&digest, ds->fingerprint, ok ? err : NULL) && ok;
}

static bool check_options(const struct dataset_options *o, struct error *err)
{
    if (o->block_size < 1 || o->block_size > INT32_MAX)
        return error_set(err, ERR_INVALID, "block_size", "block_size is %lld; it must be 1 to %d",
                         (long long)o->block_size, INT32_MAX);
    if (o->vocab_size < 1 || o->vocab_size > INT32_MAX)
        return error_set(err, ERR_INVALID, "vocab_size", "vocab_size is %lld; it must be 1 to %d",
                         (long long)o->vocab_size, INT32_MAX);
    return true;
}

bool dataset_open(const struct dataset_options *o, struct dataset **out, struct error *err)
{
    if (!check_options(o, err)) return false;
    struct dataset *ds = calloc(1, sizeof *ds);
    if (!ds) return error_set(err, ERR_MEMORY, NULL, "no memory for a data set");
    ds->block_size = o->block_size;
    ds->vocab_size = o->vocab_size;
    ds->apart = o->keep_documents_apart;
    ds->only_validation = o->val_fraction == 1;
    ds->seed = o->seed;
    bool shards = o->n_inputs > 0 && token_shards_is_dir(o->inputs[0]);
    if (!(shards ? open_shards(o, ds, err) : open_files(o, ds, err)) || !cut(ds, err)) {
        dataset_close(ds);
        return false;
    }
    *out = ds;
    return true;
}

void dataset_close(struct dataset *ds)
{
    if (!ds) return;
    for (int i = 0; i < N_SPLITS; i++) {
        token_stream_free(&ds->splits[i].stream);
        free(ds->splits[i].starts);
    }
    free(ds);
}

/* ---- what it is ---- */

int64_t dataset_tokens(const struct dataset *ds, enum dataset_split split)
{
    return ds->splits[split].stream.n_tokens;
}

int64_t dataset_documents(const struct dataset *ds, enum dataset_split split)
{
    return ds->splits[split].stream.n_documents;
}

int64_t dataset_sequences(const struct dataset *ds, enum dataset_split split)
{
    return ds->splits[split].n_sequences;
}

int64_t dataset_max_spans(const struct dataset *ds) { return ds->max_spans; }

bool dataset_has_mask(const struct dataset *ds)
{
    return ds->splits[SPLIT_TRAIN].stream.has_mask || ds->splits[SPLIT_VALIDATION].stream.has_mask;
}

int64_t dataset_memory(const struct dataset *ds)
{
    int64_t bytes = 0;
    for (int i = 0; i < N_SPLITS; i++) {
        const struct split *s = &ds->splits[i];
        bytes += token_stream_memory(&s->stream);
        if (s->starts) bytes += (s->n_sequences + 1) * (int64_t)sizeof *s->starts;
    }
    return bytes;
}

const char *dataset_fingerprint(const struct dataset *ds) { return ds->fingerprint; }

/* ---- sequences ---- */

/* Adds the span of rows [at, at + n): tokens and targets are written where gpt_rows_add will put
 * them, so no scratch is needed. Returns the targets, or why not. */
static int64_t add_span(const struct dataset *ds, const struct token_stream *s, int64_t at,
                        int64_t n, struct gpt_rows *rows, const struct gpt_train_options *o)
{
    if (n > o->max_rows - rows->n_rows) return DATASET_NO_ROOM;
    int32_t *tokens = rows->tokens + rows->n_rows, *targets = rows->targets + rows->n_rows;
    token_stream_read(s, at, n, tokens);
    token_stream_read(s, at + 1, n, targets);
    for (int64_t i = 0; i < n; i++)
        if ((uint32_t)tokens[i] >= ds->vocab_size || (uint32_t)targets[i] >= ds->vocab_size)
            return DATASET_BAD_TOKEN;
    int64_t learned = token_stream_mask(s, at + 1, n, targets);
    return gpt_rows_add(rows, o, tokens, targets, (int32_t)n) ? learned : DATASET_NO_ROOM;
}

/* All documents of sequence i, a span each. */
static int64_t add_apart(const struct dataset *ds, const struct split *split, int64_t i,
                         struct gpt_rows *rows, const struct gpt_train_options *o)
{
    struct gpt_rows before = *rows;
    int64_t learned = 0;
    for (int64_t at = split->starts[i]; at < split->starts[i + 1];) {
        struct piece p = piece_at(&split->stream, ds->block_size, at);
        int64_t n = p.rows > 0 ? add_span(ds, &split->stream, at, p.rows, rows, o) : 0;
        if (n < 0) {
            *rows = before; /* its counts: the rest points to the same arrays */
            return n;
        }
        learned += n;
        at = p.next;
    }
    return learned;
}

/* Where sequence i of an epoch of SPLIT_TRAIN begins, documents flowing. The epoch's first sequence
 * begins at its phase; the last would then reach past the end by up to a block, and is taken from
 * the beginning of the text instead, which the phase has skipped. */
static int64_t start_in_epoch(const struct dataset *ds, int64_t epoch, int64_t i)
{
    int64_t T = ds->block_size, n = ds->splits[SPLIT_TRAIN].stream.n_tokens;
    int64_t at = dataset_phase(ds->seed, epoch, T) + i * T;
    return at + T + 1 <= n ? at : 0;
}

int64_t dataset_add(const struct dataset *ds, enum dataset_split split, int64_t index,
                    struct gpt_rows *rows, const struct gpt_train_options *o)
{
    const struct split *s = &ds->splits[split];
    ASSERT(index >= 0 && s->n_sequences > 0);
    int64_t epoch = index / s->n_sequences, i = index % s->n_sequences;
    if (split == SPLIT_TRAIN) i = dataset_order(ds->seed, epoch, s->n_sequences, i);
    if (ds->apart) return add_apart(ds, s, i, rows, o);
    int64_t at = split == SPLIT_TRAIN ? start_in_epoch(ds, epoch, i) : i * ds->block_size;
    int64_t n = min_i64(ds->block_size, s->stream.n_tokens - 1 - at);
    return add_span(ds, &s->stream, at, n, rows, o);
}

/* Inputs to documents, and which of them are held out: see dataset_internal.h. */
#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "model/dataset_internal.h"
#include "model/dataset_order.h"

/* The choice of documents is the same for every run, whatever its seed. */
enum { SPLIT_SEED = 1 };

struct dataset_splitter {
    const struct dataset_sink *sink;
    double val_fraction;
    int64_t n_documents, n_held_out, next; /* documents: all, held out, seen */
    bool inside; /* hold out the end of each document instead of whole ones */
    int32_t eos;
};

static void splitter_init(struct dataset_splitter *s, int64_t n_documents, bool any_jsonl)
{
    double f = s->val_fraction;
    s->n_documents = n_documents;
    if (f == 1) {
        s->n_held_out = n_documents;
        return;
    }
    s->inside = f > 0 && n_documents < DATASET_FEW_DOCUMENTS && !any_jsonl;
    if (s->inside || f <= 0 || n_documents < 2) return;
    s->n_held_out = (int64_t)llround(f * (double)n_documents);
    s->n_held_out = min_i64(max_i64(s->n_held_out, 1), n_documents - 1);
}

static bool hand_on(struct dataset_splitter *s, enum dataset_split split, const int32_t *ids,
                    const uint8_t *loss, int64_t n, struct error *err)
{
    const struct document d = {.ids = ids, .loss = loss, .n = n};
    return n == 0 || s->sink->add(s->sink->ctx, split, &d, err);
}

/* The end of the document at hand goes to validation; what is before it ends with EOS, too, so
 * that the next document does not seem to follow from it. */
static bool split_inside(struct dataset_splitter *s, struct dataset_reader *r, struct error *err)
{
    int64_t n = (int64_t)r->ids.n, held_out = (int64_t)llround(s->val_fraction * (double)n);
    int64_t kept = n - min_i64(held_out, n);
    if (held_out == 0) return hand_on(s, SPLIT_TRAIN, r->ids.ids, NULL, n, err);
    if (!hand_on(s, SPLIT_VALIDATION, r->ids.ids + kept, NULL, n - kept, err)) return false;
    if (kept > 0 && s->eos >= 0) r->ids.ids[kept++] = s->eos;
    return hand_on(s, SPLIT_TRAIN, r->ids.ids, NULL, kept, err);
}

static bool take_document(struct dataset_splitter *s, struct dataset_reader *r, struct error *err)
{
    int64_t i = s->next++;
    if (i >= s->n_documents)
        return error_set(err, ERR_IO, NULL, "the input files changed while they were read");
    if (s->inside) return split_inside(s, r, err);
    bool held_out = s->n_held_out > 0 &&
                    dataset_order(SPLIT_SEED, 0, s->n_documents, i) < s->n_held_out;
    return hand_on(s, held_out ? SPLIT_VALIDATION : SPLIT_TRAIN, r->ids.ids,
                   r->has_loss ? (const uint8_t *)r->loss.data : NULL, (int64_t)r->ids.n, err);
}

/* ---- one document ---- */

static bool push(struct dataset_reader *r, int32_t id, struct error *err)
{
    return token_ids_push(&r->ids, id) ||
           error_set(err, ERR_MEMORY, NULL, "no memory for a document's tokens");
}

bool dataset_document_begin(struct dataset_reader *r, bool bos, struct error *err)
{
    r->ids.n = 0;
    r->has_loss = false;
    buf_clear(&r->loss);
    if (r->visit || !bos || !tokenizer_adds_bos(r->o->tokenizer)) return true;
    return push(r, tokenizer_bos(r->o->tokenizer), err);
}

bool dataset_document_text(struct dataset_reader *r, const char *where, const char *text, size_t n,
                           bool learn, struct error *err)
{
    struct error why;
    if (r->visit) return r->visit(r->visit_ctx, text, n, err);
    size_t before = r->ids.n;
    if (!tokenizer_encode(r->o->tokenizer, text, n, 0, DATASET_MAX_IDS, &r->ids, &why))
        return error_set(err, why.code, NULL, "%s: %s", where, why.text);
    for (size_t i = before; r->has_loss && i < r->ids.n; i++) buf_putc(&r->loss, learn);
    r->text_bytes += (int64_t)n;
    return true;
}

bool dataset_document_end(struct dataset_reader *r, struct error *err)
{
    if (r->visit || tokenizer_eos(r->o->tokenizer) < 0) return true;
    if (r->has_loss) buf_putc(&r->loss, 1);
    return push(r, tokenizer_eos(r->o->tokenizer), err);
}

bool dataset_document_finish(struct dataset_reader *r, const char *where, struct error *err)
{
    if (r->visit) return true;
    if (!buf_check(&r->loss, "a document's mask", err)) return false;
    if (r->ids.n == 0) return error_set(err, ERR_FORMAT, NULL, "%s has no text", where);
    ASSERT(!r->has_loss || r->loss.len == r->ids.n);
    return take_document(r->splitter, r, err);
}

/* ---- files ---- */

static bool count_file(const struct dataset_reader *r, const char *path, int64_t *n,
                       struct error *err)
{
    struct dataset_file f;
    if (!dataset_file_open(path, &f, err)) return false;
    int64_t here = dataset_is_jsonl(path) ? dataset_jsonl_count(&f) : dataset_text_count(r, &f);
    dataset_file_close(&f);
    if (here == 0) return error_set(err, ERR_FORMAT, NULL, "%s has no documents", path);
    *n += here;
    return true;
}

static bool read_file(struct dataset_reader *r, const char *path, struct error *err)
{
    struct dataset_file f;
    if (!dataset_file_open(path, &f, err)) return false;
    bool ok = dataset_is_jsonl(path) ? dataset_jsonl_read(r, &f, err)
                                     : dataset_text_read(r, &f, err);
    dataset_file_close(&f);
    return ok;
}

static bool check_options(const struct dataset_options *o, struct error *err)
{
    if (!o->tokenizer)
        return error_set(err, ERR_INVALID, NULL, "text needs a tokenizer, and the model has "
                         "none: only token shards do without");
    if (!(o->val_fraction >= 0 && o->val_fraction <= 1))
        return error_set(err, ERR_INVALID, "val_fraction", "val_fraction is %g; it must be from 0 "
                         "to 1", o->val_fraction);
    if (tokenizer_vocab_size(o->tokenizer) > o->vocab_size)
        return error_set(err, ERR_INVALID, "vocab_size", "the tokenizer has %d tokens, the model's "
                         "vocab_size is %lld", tokenizer_vocab_size(o->tokenizer),
                         (long long)o->vocab_size);
    return true;
}

bool dataset_read(const struct dataset_options *o, const struct dataset_sink *sink,
                  struct dataset_counts *counts, struct error *err)
{
    struct dataset_paths paths = {0};
    bool any_jsonl = false;
    int64_t n_documents = 0;
    if (!check_options(o, err) || !dataset_paths_find(o->inputs, o->n_inputs, &paths, err))
        return false;
    int32_t eos = tokenizer_eos(o->tokenizer);
    struct dataset_splitter s = {.sink = sink, .val_fraction = o->val_fraction, .eos = eos};
    struct dataset_reader r = {.o = o, .splitter = &s};
    buf_init(&r.loss, SIZE_MAX);
    if (eos >= 0 && tokenizer_is_special(o->tokenizer, eos))
        r.separator = tokenizer_token_bytes(o->tokenizer, eos, &r.n_separator);
    if (r.n_separator == 0) r.separator = NULL;
    bool ok = true;
    for (size_t i = 0; ok && i < paths.n; i++) {
        any_jsonl |= dataset_is_jsonl(paths.at[i]);
        ok = count_file(&r, paths.at[i], &n_documents, err);
    }
    splitter_init(&s, n_documents, any_jsonl);
    for (size_t i = 0; ok && i < paths.n; i++) ok = read_file(&r, paths.at[i], err);
    *counts = (struct dataset_counts){.files = (int64_t)paths.n, .documents = n_documents,
                                      .text_bytes = r.text_bytes};
    token_ids_free(&r.ids);
    buf_free(&r.loss);
    dataset_paths_free(&paths);
    return ok;
}

bool dataset_visit_texts(const char *const *inputs, int32_t n_inputs, dataset_text_fn visit,
                         void *ctx, struct error *err)
{
    struct dataset_paths paths = {0};
    struct dataset_reader r = {.visit = visit, .visit_ctx = ctx};
    if (!dataset_paths_find(inputs, n_inputs, &paths, err)) return false;
    bool ok = true;
    for (size_t i = 0; ok && i < paths.n; i++) ok = read_file(&r, paths.at[i], err);
    dataset_paths_free(&paths);
    return ok;
}

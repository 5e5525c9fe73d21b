/* Writing token shards: see token_shards.h. Documents gather in memory, one shard of each split;
 * a full one is written, whole, before the next begins. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "model/checkpoint_write.h"
#include "model/dataset_internal.h"
#include "model/file_write.h"
#include "model/token_shards.h"
#include "model/sha256.h"
#include "model/token_shards_internal.h"

struct split_writer {
    struct token_builder builder;
    struct cJSON *shards; /* the manifest's array; owned by the manifest */
};

struct shard_writer {
    const char *dir;
    int64_t shard_bytes;
    struct split_writer splits[N_DATASET_SPLITS];
    struct token_shards_report *report;
};

/* Appends to the file and to its digest. */
static bool append(struct file_writer *w, struct sha256 *digest, const void *bytes, int64_t n,
                   struct error *err)
{
    if (n == 0) return true;
    sha256_update(digest, bytes, (size_t)n);
    return file_writer_append(w, bytes, (size_t)n, err);
}

static bool write_part(const char *path, const struct token_part *p, char digest[65],
                       struct error *err)
{
    static const uint8_t zeros[8] = {0};
    struct shard_layout l;
    struct file_writer w;
    ASSERT(shard_layout(&l, p->n_tokens, p->n_documents, p->id_bytes, p->loss != NULL));
    if (!file_writer_open(&w, path, err)) return false;
    struct sha256 sum;
    sha256_begin(&sum);
    bool ok = append(&w, &sum, p->ids, l.id_bytes, err) &&
              append(&w, &sum, zeros, l.padding, err) &&
              append(&w, &sum, p->starts, l.start_bytes, err) &&
              append(&w, &sum, p->loss, l.mask_bytes, err);
    ok = sha256_end(&sum, digest, ok ? err : NULL) && ok;
    return file_writer_close(&w, ok, err) && ok;
}

/* The shard's line in the manifest. */
static bool list_shard(struct cJSON *list, const char *name, const struct token_part *p,
                       const char *digest)
{
    struct cJSON *item = cJSON_CreateObject();
    return item && cJSON_AddItemToArray(list, item) &&
           cJSON_AddStringToObject(item, "file", name) &&
           cJSON_AddNumberToObject(item, "tokens", (double)p->n_tokens) &&
           cJSON_AddNumberToObject(item, "documents", (double)p->n_documents) &&
           cJSON_AddBoolToObject(item, "mask", p->loss != NULL) &&
           cJSON_AddStringToObject(item, "sha256", digest);
}

/* Writes what has gathered, if anything. */
static bool flush(struct shard_writer *w, enum dataset_split split, struct error *err)
{
    struct split_writer *s = &w->splits[split];
    struct token_shards_report *r = w->report;
    struct token_part part = token_builder_take(&s->builder);
    char name[64], path[4096], digest[65];
    if (part.n_tokens == 0) {
        token_part_free(&part);
        return true;
    }
    snprintf(name, sizeof name, "%s-%05" PRId64 ".tokens", dataset_split_name(split),
             r->shards[split]);
    bool ok = path_join(path, sizeof path, w->dir, name, err) &&
              write_part(path, &part, digest, err);
    if (ok && !list_shard(s->shards, name, &part, digest))
        ok = error_set(err, ERR_MEMORY, NULL, "no memory for a manifest");
    r->shards[split]++;
    r->tokens[split] += part.n_tokens;
    r->documents[split] += part.n_documents;
    r->has_mask |= part.loss != NULL;
    token_part_free(&part);
    return ok;
}

static bool add_document(void *ctx, enum dataset_split split, const struct document *d,
                         struct error *err)
{
    struct shard_writer *w = ctx;
    struct token_part *p = &w->splits[split].builder.part;
    int64_t bytes = (p->n_tokens + d->n) * p->id_bytes + (p->n_documents + 1) * 8;
    if (p->n_tokens > 0 && bytes > w->shard_bytes && !flush(w, split, err)) return false;
    return token_builder_add(&w->splits[split].builder, d->ids, d->loss, d->n, err);
}

/* ---- the manifest ---- */

static bool manifest_begin(struct shard_writer *w, const struct tokenizer *t, struct cJSON *root)
{
    char fingerprint[65];
    return root && tokenizer_fingerprint(t, fingerprint, NULL) &&
           cJSON_AddStringToObject(root, "format", TOKEN_SHARDS_FORMAT) &&
           cJSON_AddStringToObject(root, "tokenizer", fingerprint) &&
           cJSON_AddStringToObject(root, "tokenizer_description", tokenizer_description(t)) &&
           cJSON_AddNumberToObject(root, "vocab_size", tokenizer_vocab_size(t)) &&
           cJSON_AddNumberToObject(root, "id_bytes", w->report->id_bytes);
}

static bool manifest_write(const struct shard_writer *w, struct cJSON *root, const char *path,
                           struct error *err)
{
    const struct token_shards_report *r = w->report;
    char *text = NULL;
    if (cJSON_AddNumberToObject(root, "files", (double)r->files) &&
        cJSON_AddNumberToObject(root, "text_bytes", (double)r->text_bytes))
        text = cJSON_Print(root);
    if (!text) return error_set(err, ERR_MEMORY, NULL, "no memory for a manifest");
    bool ok = file_write_atomic(path, text, strlen(text), err);
    cJSON_free(text);
    return ok;
}

/* ---- the whole ---- */

static bool write_all(struct shard_writer *w, const struct dataset_options *o, struct cJSON *root,
                      struct error *err)
{
    struct dataset_counts counts;
    struct dataset_sink sink = {.add = add_document, .ctx = w};
    struct cJSON *splits = NULL;
    bool ok = manifest_begin(w, o->tokenizer, root) &&
              (splits = cJSON_AddObjectToObject(root, "splits"));
    for (int i = 0; ok && i < N_DATASET_SPLITS; i++) {
        w->splits[i].shards = cJSON_AddArrayToObject(splits, dataset_split_name(i));
        ok = w->splits[i].shards != NULL;
    }
    if (!ok) return error_set(err, ERR_MEMORY, NULL, "no memory for a manifest");
    if (!dataset_read(o, &sink, &counts, err)) return false;
    w->report->files = counts.files;
    w->report->text_bytes = counts.text_bytes;
    return flush(w, SPLIT_TRAIN, err) && flush(w, SPLIT_VALIDATION, err);
}

bool token_shards_write(const struct dataset_options *o, const char *dir, int64_t shard_bytes,
                        struct token_shards_report *report, struct error *err)
{
    char path[4096];
    struct dataset_options options = *o;
    ASSERT(shard_bytes > 0);
    if (!o->tokenizer) return error_set(err, ERR_INVALID, NULL, "shards need a tokenizer");
    if (!path_join(path, sizeof path, dir, "manifest.json", err)) return false;
    if (file_exists(path))
        return error_set(err, ERR_INVALID, NULL, "%s is there already; remove the directory or "
                         "choose another", path);
    if (!directory_make(dir, err)) return false;
    options.vocab_size = tokenizer_vocab_size(o->tokenizer);
    *report = (struct token_shards_report){.id_bytes = options.vocab_size <= 1 << 16 ? 2 : 4};
    struct shard_writer w = {.dir = dir, .shard_bytes = shard_bytes, .report = report};
    for (int i = 0; i < N_DATASET_SPLITS; i++)
        token_builder_init(&w.splits[i].builder, options.vocab_size);
    struct cJSON *root = cJSON_CreateObject();
    bool ok = write_all(&w, &options, root, err) && manifest_write(&w, root, path, err);
    for (int i = 0; i < N_DATASET_SPLITS; i++) token_builder_free(&w.splits[i].builder);
    cJSON_Delete(root);
    return ok;
}

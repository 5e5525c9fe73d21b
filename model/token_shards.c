/* Reading token shards: see token_shards.h. */
#include "model/token_shards.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "base/json.h"
#include "model/sha256.h"
#include "model/token_shards_internal.h"

enum { MAX_MANIFEST = 64 << 20, MAX_DEPTH = 8 };

const char *dataset_split_name(enum dataset_split split)
{
    return split == SPLIT_TRAIN ? "train" : "validation";
}

bool tokenizer_fingerprint(const struct tokenizer *t, char out[65], struct error *err)
{
    struct sha256 digest;
    sha256_begin(&digest);
    for (int32_t id = 0; id < tokenizer_vocab_size(t); id++) {
        size_t n;
        const char *text = tokenizer_token_bytes(t, id, &n);
        uint64_t length = text ? n : UINT64_MAX;
        sha256_update(&digest, &length, sizeof length);
        if (text) sha256_update(&digest, text, n);
    }
    return sha256_end(&digest, out, err);
}

bool token_shards_is_dir(const char *path)
{
    char manifest[4096];
    return file_is_dir(path) && path_join(manifest, sizeof manifest, path, "manifest.json", NULL) &&
           file_exists(manifest);
}

bool shard_layout(struct shard_layout *l, int64_t n_tokens, int64_t n_documents, int32_t id_bytes,
                  bool has_mask)
{
    int64_t bytes;
    if (n_documents < 1 || n_tokens < n_documents) return false;
    if (!checked_mul(n_tokens, id_bytes, &l->id_bytes)) return false;
    l->padding = -l->id_bytes & 7;
    if (!checked_mul(n_documents, 8, &l->start_bytes)) return false;
    l->mask_bytes = has_mask ? n_tokens / 8 + (n_tokens % 8 > 0) : 0;
    if (!checked_add(l->id_bytes, l->padding, &bytes)) return false;
    l->starts = bytes;
    if (!checked_add(bytes, l->start_bytes, &bytes)) return false;
    l->mask = bytes;
    return checked_add(bytes, l->mask_bytes, &l->total);
}

/* ---- the manifest ---- */

struct reader {
    const char *dir, *path; /* path: of the manifest */
    bool verify;
    int32_t id_bytes;
    struct token_shards *out;
    struct sha256 digest;
    struct error *err;
};

static bool wrong(struct reader *r, const char *key, const struct cJSON *item, const char *right)
{
    return error_set(r->err, ERR_FORMAT, NULL, "%s: \"%s\" is %s; it must be %s", r->path, key,
                     item ? json_type_name(item) : "missing", right);
}

static bool get_int(struct reader *r, const struct cJSON *object, const char *key, int64_t min,
                    int64_t max, int64_t *out)
{
    const struct cJSON *item = json_get(object, key);
    if (!json_to_i64(item, out)) return wrong(r, key, item, "a whole number");
    if (*out >= min && *out <= max) return true;
    return error_set(r->err, ERR_FORMAT, NULL, "%s: \"%s\" is %" PRId64 "; it must be %" PRId64
                     " to %" PRId64, r->path, key, *out, min, max);
}

/* A SHA-256 as 64 hexadecimal digits. */
static bool get_digest(struct reader *r, const struct cJSON *object, const char *key, char out[65])
{
    const struct cJSON *item = json_get(object, key);
    if (!cJSON_IsString(item) || strlen(item->valuestring) != 64 ||
        strspn(item->valuestring, "0123456789abcdef") != 64)
        return wrong(r, key, item, "64 hexadecimal digits");
    memcpy(out, item->valuestring, 65);
    return true;
}

/* A shard's file lies in the directory itself. */
static bool get_file(struct reader *r, const struct cJSON *shard, char *path, size_t size)
{
    const struct cJSON *item = json_get(shard, "file");
    if (!cJSON_IsString(item) || !item->valuestring[0] || strchr(item->valuestring, '/'))
        return wrong(r, "file", item, "a file's name, without a folder");
    return path_join(path, size, r->dir, item->valuestring, r->err);
}

static bool check_digest(struct reader *r, const char *path, const struct file_map *map,
                         const char *expected)
{
    char found[65];
    struct sha256 digest;
    sha256_begin(&digest);
    sha256_update(&digest, map->data, map->size);
    if (!sha256_end(&digest, found, r->err)) return false;
    return strcmp(found, expected) == 0 ||
           error_set(r->err, ERR_FORMAT, NULL, "%s is damaged: its SHA-256 is %s, not %s", path,
                     found, expected);
}

static bool map_shard(struct reader *r, const char *path, const struct shard_layout *l,
                      const char *digest, struct token_part *part)
{
    struct file_map map;
    if (!file_map_open(path, &map, r->err)) return false;
    bool ok = (int64_t)map.size == l->total ||
              error_set(r->err, ERR_FORMAT, NULL, "%s has %zu bytes, not the %" PRId64 " that its "
                        "manifest says: it is damaged or not from there", path, map.size, l->total);
    ok = ok && (!r->verify || check_digest(r, path, &map, digest));
    if (!ok) {
        file_map_close(&map);
        return false;
    }
    part->map = map;
    part->ids = map.data;
    part->starts = (const uint64_t *)(map.data + l->starts);
    part->loss = l->mask_bytes > 0 ? map.data + l->mask : NULL;
    return true;
}

static bool read_shard(struct reader *r, const struct cJSON *shard, enum dataset_split split)
{
    char path[4096], digest[65];
    struct token_part part = {.id_bytes = r->id_bytes};
    struct shard_layout l;
    const struct cJSON *mask = json_get(shard, "mask");
    const int64_t most = INT64_C(1) << 53;
    if (!get_file(r, shard, path, sizeof path) || !get_digest(r, shard, "sha256", digest) ||
        !get_int(r, shard, "tokens", 1, most, &part.n_tokens) ||
        !get_int(r, shard, "documents", 1, part.n_tokens, &part.n_documents))
        return false;
    if (!cJSON_IsBool(mask)) return wrong(r, "mask", mask, "true or false");
    bool has_mask = cJSON_IsTrue(mask);
    if (!shard_layout(&l, part.n_tokens, part.n_documents, r->id_bytes, has_mask))
        return error_set(r->err, ERR_FORMAT, NULL, "%s: %s is too large", r->path, path);
    if (!map_shard(r, path, &l, digest, &part)) return false;
    sha256_update(&r->digest, digest, 64);
    if (token_stream_append(&r->out->splits[split], &part, r->err)) return true;
    token_part_free(&part);
    return false;
}

static bool read_split(struct reader *r, const struct cJSON *splits, enum dataset_split split)
{
    const char *name = dataset_split_name(split);
    const struct cJSON *list = json_get(splits, name), *each;
    if (!cJSON_IsArray(list)) return wrong(r, name, list, "an array of shards");
    sha256_update(&r->digest, name, strlen(name));
    cJSON_ArrayForEach(each, list) {
        if (!read_shard(r, each, split)) return false;
    }
    struct token_shards_report *report = &r->out->report;
    const struct token_stream *s = &r->out->splits[split];
    report->documents[split] = s->n_documents;
    report->tokens[split] = s->n_tokens;
    report->shards[split] = s->n_parts;
    report->has_mask |= s->has_mask;
    return true;
}

static bool read_manifest(struct reader *r, const struct cJSON *root)
{
    const struct cJSON *format = json_get(root, "format");
    struct token_shards *out = r->out;
    int64_t id_bytes;
    if (!cJSON_IsString(format) || strcmp(format->valuestring, TOKEN_SHARDS_FORMAT) != 0)
        return error_set(r->err, ERR_FORMAT, NULL, "%s is not that of token shards: its \"format\" "
                         "is not \"%s\"", r->path, TOKEN_SHARDS_FORMAT);
    if (!get_int(r, root, "vocab_size", 1, INT32_MAX, &out->vocab_size) ||
        !get_int(r, root, "id_bytes", 2, 4, &id_bytes) ||
        !get_int(r, root, "files", 0, INT64_MAX, &out->report.files) ||
        !get_int(r, root, "text_bytes", 0, INT64_MAX, &out->report.text_bytes) ||
        !get_digest(r, root, "tokenizer", out->tokenizer))
        return false;
    if (id_bytes == 3) return wrong(r, "id_bytes", json_get(root, "id_bytes"), "2 or 4");
    r->id_bytes = out->report.id_bytes = (int32_t)id_bytes;
    const struct cJSON *splits = json_get(root, "splits");
    return read_split(r, splits, SPLIT_TRAIN) && read_split(r, splits, SPLIT_VALIDATION);
}

static struct cJSON *parse_manifest(const char *path, struct error *err)
{
    struct cJSON *root = NULL;
    struct buf text;
    buf_init(&text, MAX_MANIFEST);
    if (file_read(path, &text, err)) root = json_parse(text.data, text.len, MAX_DEPTH, path, err);
    buf_free(&text);
    return root;
}

bool token_shards_open(const char *dir, bool verify, struct token_shards *out, struct error *err)
{
    char path[4096];
    *out = (struct token_shards){0};
    if (!path_join(path, sizeof path, dir, "manifest.json", err)) return false;
    struct cJSON *root = parse_manifest(path, err);
    if (!root) return false;
    struct reader r = {.dir = dir, .path = path, .verify = verify, .out = out, .err = err};
    sha256_begin(&r.digest);
    bool ok = read_manifest(&r, root);
    ok = sha256_end(&r.digest, out->digest, ok ? err : NULL) && ok;
    cJSON_Delete(root);
    if (!ok) token_shards_close(out);
    return ok;
}

void token_shards_close(struct token_shards *s)
{
    for (int i = 0; i < N_DATASET_SPLITS; i++) token_stream_free(&s->splits[i]);
    *s = (struct token_shards){0};
}

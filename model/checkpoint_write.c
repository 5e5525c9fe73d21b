/* What makes a directory complete beside its weights: the tokenizer's files, and the manifest with
 * a digest of every file. See checkpoint_write.h. */
#include "model/checkpoint_write.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/json.h"
#include "base/utf8.h"
#include "model/checkpoint_internal.h"
#include "model/checkpoint_write_internal.h"
#include "model/sha256.h"
#include "model/tokenizer_export.h"

enum {
    MANIFEST_MAX_BYTES = 16 << 20,
    MANIFEST_DEPTH = 4,
    TOKENIZER_FILE_MAX = 1 << 30,
    CONFIG_MAX_BYTES = 16 << 20,
    MAX_STOPS = 16,
};

static const char manifest_name[] = "manifest.json";

/* ---- The tokenizer ---- */

/* A missing source is no error: a tokenizer has some of these files. */
static bool copy_file(const char *from_dir, const char *dir, const char *name, struct error *err)
{
    char from[CHECKPOINT_PATH_MAX], to[CHECKPOINT_PATH_MAX];
    struct buf bytes;
    if (!path_join(from, sizeof from, from_dir, name, err) ||
        !path_join(to, sizeof to, dir, name, err))
        return false;
    if (!file_exists(from)) return true;
    buf_init(&bytes, TOKENIZER_FILE_MAX);
    bool ok = file_read(from, &bytes, err) && file_write_atomic(to, bytes.data, bytes.len, err);
    buf_free(&bytes);
    return ok;
}

/* generation_config.json with the tokenizer's markers. */
static bool write_generation(const char *dir, const struct tokenizer *t, struct error *err)
{
    char path[CHECKPOINT_PATH_MAX];
    int32_t stops[MAX_STOPS];
    struct buf text;
    if (!path_join(path, sizeof path, dir, "generation_config.json", err)) return false;
    int n = tokenizer_stop_ids(t, stops, MAX_STOPS);
    buf_init(&text, CONFIG_MAX_BYTES);
    buf_puts(&text, "{\n");
    if (tokenizer_bos(t) >= 0) buf_printf(&text, "  \"bos_token_id\": %d,\n", tokenizer_bos(t));
    if (n == 1) buf_printf(&text, "  \"eos_token_id\": %d,\n", stops[0]);
    for (int i = 0; n > 1 && i < n; i++)
        buf_printf(&text, "%s%d%s", i ? ", " : "  \"eos_token_id\": [", stops[i],
                   i == n - 1 ? "],\n" : "");
    buf_puts(&text, "  \"do_sample\": true\n}\n");
    bool ok = buf_check(&text, path, err) && file_write_atomic(path, text.data, text.len, err);
    buf_free(&text);
    return ok;
}

static bool write_export(const struct tokenizer *t, const char *dir, const char *name,
                         bool (*export)(const struct tokenizer *, struct buf *, struct error *),
                         struct error *err)
{
    char path[CHECKPOINT_PATH_MAX];
    struct buf text;
    if (!path_join(path, sizeof path, dir, name, err)) return false;
    buf_init(&text, TOKENIZER_FILE_MAX);
    bool ok = export(t, &text, err) && file_write_atomic(path, text.data, text.len, err);
    buf_free(&text);
    return ok;
}

/* The tokenizer of a GGUF file, in Hugging Face's words. *t is NULL when the file has none. */
static bool export_gguf(const char *path, const char *dir, struct tokenizer **t, struct error *err)
{
    if (!tokenizer_open_path(path, t, err)) return false;
    if (!*t) return true;
    return write_export(*t, dir, "tokenizer.json", tokenizer_export_json, err) &&
           write_export(*t, dir, "tokenizer_config.json", tokenizer_export_config, err) &&
           write_generation(dir, *t, err);
}

static bool copy_directory(const char *from, const char *dir, struct tokenizer **t,
                           struct error *err)
{
    static const char *const files[] = {
        "tokenizer.json",        "vocab.json",        "merges.txt",
        "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json",
        "chat_template.jinja",   "tokenizer.model",   "generation_config.json",
    };
    char generation[CHECKPOINT_PATH_MAX];
    if (!path_join(generation, sizeof generation, from, "generation_config.json", err) ||
        !tokenizer_open_dir(from, t, err))
        return false;
    bool ok = true, apart = strcmp(from, dir) != 0;
    for (size_t i = 0; i < sizeof files / sizeof *files && ok && apart; i++)
        ok = copy_file(from, dir, files[i], err);
    if (ok && *t && !file_exists(generation)) ok = write_generation(dir, *t, err);
    return ok;
}

bool checkpoint_write_tokenizer(const char *from, const char *dir, struct error *err)
{
    struct tokenizer *t = NULL;
    bool ok = file_is_dir(from) ? copy_directory(from, dir, &t, err)
                                : export_gguf(from, dir, &t, err);
    if (ok && t) ok = checkpoint_write_markers(dir, tokenizer_bos(t), tokenizer_eos(t), err);
    tokenizer_free(t);
    return ok;
}

/* ---- Digests ---- */

/* SHA-256 and size of what the descriptor reads. */
static bool digest_fd(int fd, const char *path, char hex[SHA256_HEX], int64_t *bytes,
                      struct error *err)
{
    enum { CHUNK = 1 << 20 };
    uint8_t *chunk = malloc(CHUNK);
    ssize_t n = -1;
    struct sha256 digest;
    sha256_begin(&digest);
    *bytes = 0;
    bool ok = chunk || error_set(err, ERR_MEMORY, NULL, "%s: no memory for its digest", path);
    while (ok && (n = read(fd, chunk, CHUNK)) != 0) {
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) ok = error_errno(err, "cannot read %s", path);
        else sha256_update(&digest, chunk, (size_t)n), *bytes += n;
    }
    free(chunk);
    return sha256_end(&digest, hex, ok ? err : NULL) && ok;
}

/* The digest of a file, which is put on disk first: a manifest must not outlive what it lists. */
static bool digest_file(const char *path, bool sync, char hex[SHA256_HEX], int64_t *bytes,
                        struct error *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return error_errno(err, "cannot open %s", path);
    bool ok = (!sync || fsync(fd) == 0 || error_errno(err, "cannot sync %s", path)) &&
              digest_fd(fd, path, hex, bytes, err);
    close(fd);
    return ok;
}

/* ---- Sealing ---- */

static bool is_temporary(const char *name)
{
    size_t n = strlen(name);
    return n > 4 && strcmp(name + n - 4, ".tmp") == 0;
}

/* Adds the file to the manifest's object, unless it is none. */
static bool seal_file(const char *dir, const char *name, struct cJSON *files, struct error *err)
{
    char path[CHECKPOINT_PATH_MAX], hex[SHA256_HEX], size[32];
    struct stat st;
    int64_t bytes;
    if (!path_join(path, sizeof path, dir, name, err)) return false;
    if (stat(path, &st) != 0) return error_errno(err, "cannot stat %s", path);
    if (!S_ISREG(st.st_mode) || strcmp(name, manifest_name) == 0 || is_temporary(name)) return true;
    if (!utf8_valid(name, strlen(name), NULL))
        return error_set(err, ERR_INVALID, NULL,
                         "%s holds a file whose name is not UTF-8, which %s cannot list", dir,
                         manifest_name);
    if (!digest_file(path, true, hex, &bytes, err)) return false;
    snprintf(size, sizeof size, "%" PRId64, bytes);
    struct cJSON *entry = cJSON_AddObjectToObject(files, name);
    if (entry && cJSON_AddRawToObject(entry, "bytes", size) &&
        cJSON_AddStringToObject(entry, "sha256", hex))
        return true;
    return error_set(err, ERR_MEMORY, NULL, "%s: no memory for its %s", dir, manifest_name);
}

static bool seal_files(const char *dir, struct cJSON *files, struct error *err)
{
    struct dirent **entries;
    int n = scandir(dir, &entries, NULL, alphasort);
    if (n < 0) return error_errno(err, "cannot list %s", dir);
    bool ok = true;
    for (int i = 0; i < n; i++) {
        ok = ok && seal_file(dir, entries[i]->d_name, files, err);
        free(entries[i]);
    }
    free(entries);
    return ok;
}

bool checkpoint_seal(const char *dir, struct error *err)
{
    char path[CHECKPOINT_PATH_MAX];
    if (!path_join(path, sizeof path, dir, manifest_name, err)) return false;
    struct cJSON *root = cJSON_CreateObject();
    struct cJSON *files = cJSON_AddObjectToObject(root, "files");
    char *text = NULL;
    bool ok = files ? seal_files(dir, files, err)
                    : error_set(err, ERR_MEMORY, NULL, "%s: no memory", path);
    if (ok && !(text = cJSON_Print(root)))
        ok = error_set(err, ERR_MEMORY, NULL, "%s: no memory", path);
    if (ok) ok = file_write_atomic(path, text, strlen(text), err);
    free(text);
    cJSON_Delete(root);
    return ok;
}

/* ---- Verifying ---- */

static bool verify_file(const char *dir, const struct cJSON *entry, struct error *err)
{
    char path[CHECKPOINT_PATH_MAX], hex[SHA256_HEX];
    const char *name = entry->string;
    const struct cJSON *digest = json_get(entry, "sha256");
    int64_t expected, bytes;
    if (!json_to_i64(json_get(entry, "bytes"), &expected) || !cJSON_IsString(digest) || !*name ||
        strchr(name, '/'))
        return error_set(err, ERR_FORMAT, NULL,
                         "%s/%s: the entry \"%.80s\" is not a file's name with bytes and sha256",
                         dir, manifest_name, name);
    if (!path_join(path, sizeof path, dir, name, err)) return false;
    struct stat st;
    if (stat(path, &st) != 0 && errno == ENOENT)
        return error_set(err, ERR_FORMAT, NULL, "%s is missing: %s lists it", path, manifest_name);
    if (!digest_file(path, false, hex, &bytes, err)) return false;
    if (bytes != expected)
        return error_set(err, ERR_FORMAT, NULL, "%s has %" PRId64 " bytes, but %s says %" PRId64
                         ": it is truncated or was replaced", path, bytes, manifest_name, expected);
    if (strcmp(hex, digest->valuestring) != 0)
        return error_set(err, ERR_FORMAT, NULL,
                         "%s is not the file that %s lists: its SHA-256 differs", path,
                         manifest_name);
    return true;
}

bool checkpoint_verify(const char *dir, struct error *err)
{
    char path[CHECKPOINT_PATH_MAX];
    struct buf text;
    if (!path_join(path, sizeof path, dir, manifest_name, err)) return false;
    if (!file_exists(path))
        return error_set(err, ERR_NOT_FOUND, NULL,
                         "%s is incomplete: it has no %s, which is written last", dir,
                         manifest_name);
    buf_init(&text, MANIFEST_MAX_BYTES);
    struct cJSON *root = NULL;
    if (file_read(path, &text, err))
        root = json_parse(text.data, text.len, MANIFEST_DEPTH, path, err);
    buf_free(&text);
    if (!root) return false;
    const struct cJSON *files = json_get(root, "files"), *entry;
    bool ok = cJSON_IsObject(files) ||
              error_set(err, ERR_FORMAT, "files", "%s has no object \"files\"", path);
    if (ok) cJSON_ArrayForEach(entry, files) ok = ok && verify_file(dir, entry, err);
    cJSON_Delete(root);
    return ok;
}

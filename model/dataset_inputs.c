/* Finds and opens the files of a data set: see dataset_internal.h. */
#include <glob.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "model/dataset_internal.h"

/* ---- paths ---- */

static bool push(struct dataset_paths *p, const char *path)
{
    char **at = realloc(p->at, (p->n + 1) * sizeof *at);
    if (at) p->at = at;
    char *copy = at ? strdup(path) : NULL;
    if (!copy) return false;
    p->at[p->n++] = copy;
    return true;
}

static bool find_glob(const char *pattern, struct dataset_paths *out, struct error *err)
{
    glob_t found;
    int rc = glob(pattern, 0, NULL, &found);
    bool ok = rc == 0;
    if (rc == GLOB_NOMATCH)
        return error_set(err, ERR_NOT_FOUND, NULL, "there is no file %s", pattern);
    if (rc != 0)
        return error_set(err, rc == GLOB_NOSPACE ? ERR_MEMORY : ERR_IO, NULL,
                         "cannot look for files %s", pattern);
    for (size_t i = 0; ok && i < found.gl_pathc; i++)
        ok = push(out, found.gl_pathv[i]) ||
             error_set(err, ERR_MEMORY, NULL, "no memory for the paths of %s", pattern);
    globfree(&found);
    return ok;
}

bool dataset_paths_find(const char *const *inputs, int32_t n, struct dataset_paths *out,
                        struct error *err)
{
    bool ok = true;
    *out = (struct dataset_paths){0};
    if (n <= 0) return error_set(err, ERR_INVALID, NULL, "no input files were given");
    for (int32_t i = 0; ok && i < n; i++) {
        if (file_is_dir(inputs[i]))
            ok = error_set(err, ERR_INVALID, NULL, "%s is a directory without manifest.json, so "
                           "not one of token shards; name files, for example '%s/*.txt'",
                           inputs[i], inputs[i]);
        else if (!file_exists(inputs[i]))
            ok = find_glob(inputs[i], out, err);
        else
            ok = push(out, inputs[i]) || error_set(err, ERR_MEMORY, NULL, "no memory for paths");
    }
    if (!ok) dataset_paths_free(out);
    return ok;
}

void dataset_paths_free(struct dataset_paths *p)
{
    for (size_t i = 0; i < p->n; i++) free(p->at[i]);
    free(p->at);
    *p = (struct dataset_paths){0};
}

bool dataset_is_jsonl(const char *path)
{
    static const char *const endings[] = {".jsonl", ".ndjson", ".json"};
    size_t n = strlen(path);
    for (int i = 0; i < 3; i++) {
        size_t m = strlen(endings[i]);
        if (n >= m && strcmp(path + n - m, endings[i]) == 0) return true;
    }
    return false;
}

/* ---- text ---- */

static size_t line_of(const char *text, size_t at)
{
    size_t line = 1;
    for (const char *p = text; (p = memchr(p, '\n', at - (size_t)(p - text))); p++) line++;
    return line;
}

/* UTF-16 without a byte order mark: among the first bytes, every other one is mostly zero. */
static bool looks_like_utf16(const char *s, size_t n)
{
    size_t zeros[2] = {0, 0};
    if (n > 4096) n = 4096;
    for (size_t i = 0; i < n; i++) zeros[i % 2] += s[i] == 0;
    return n >= 4 && (zeros[0] > n / 4) != (zeros[1] > n / 4);
}

static bool not_utf16(const struct dataset_file *f, struct error *err)
{
    bool marked = f->n >= 2 && (memcmp(f->text, "\xFF\xFE", 2) == 0 ||
                                memcmp(f->text, "\xFE\xFF", 2) == 0);
    return !(marked || looks_like_utf16(f->text, f->n)) ||
           error_set(err, ERR_FORMAT, NULL, "%s is UTF-16, not UTF-8; convert it first: iconv -f "
                     "UTF-16 -t UTF-8", f->path);
}

static bool check_text(const struct dataset_file *f, struct error *err)
{
    size_t bad;
    if (f->n == 0) return error_set(err, ERR_FORMAT, NULL, "%s is empty", f->path);
    if (!not_utf16(f, err)) return false;
    if (!utf8_valid(f->text, f->n, &bad))
        return error_set(err, ERR_FORMAT, NULL, "%s: line %zu, byte %zu of the file (0x%02X) is "
                         "not UTF-8; if the file is Latin-1, convert it: iconv -f ISO-8859-1 -t "
                         "UTF-8", f->path, line_of(f->text, bad), bad + f->skipped,
                         (unsigned)(uint8_t)f->text[bad]);
    const char *zero = memchr(f->text, 0, f->n);
    if (!zero) return true;
    bad = (size_t)(zero - f->text);
    return error_set(err, ERR_FORMAT, NULL, "%s: line %zu, byte %zu of the file is NUL: this is no "
                     "text file", f->path, line_of(f->text, bad), bad + f->skipped);
}

bool dataset_file_open(const char *path, struct dataset_file *out, struct error *err)
{
    struct dataset_file f = {.path = path};
    if (!file_map_open(path, &f.map, err)) return false;
    f.text = (const char *)f.map.data;
    f.n = f.map.size;
    if (f.n >= 3 && memcmp(f.text, "\xEF\xBB\xBF", 3) == 0) {
        f.skipped = 3;
        f.text += 3;
        f.n -= 3;
    }
    if (!check_text(&f, err)) {
        dataset_file_close(&f);
        return false;
    }
    *out = f;
    return true;
}

void dataset_file_close(struct dataset_file *f)
{
    file_map_close(&f->map);
    *f = (struct dataset_file){0};
}

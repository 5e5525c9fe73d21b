/* Strict JSON: see json.h. First a scan that accepts exactly RFC 8259 within our limits, then
 * cJSON, then the duplicate keys (on the tree, where escapes are already resolved). */
#include "base/json.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"

enum { NUMBER_MAX = 63 }; /* cJSON copies a number into 64 bytes and would cut a longer one */

struct scan {
    const char *begin, *at, *end;
    const char *where;
    int max_depth;
    struct error *err;
};

static bool fail(struct scan *s, const char *why)
{
    return error_set(s->err, ERR_FORMAT, NULL, "%s: invalid JSON at byte %zu: %s", s->where,
                     (size_t)(s->at - s->begin), why);
}

static void skip_space(struct scan *s)
{
    while (s->at < s->end &&
           (*s->at == ' ' || *s->at == '\t' || *s->at == '\n' || *s->at == '\r'))
        s->at++;
}

static bool take(struct scan *s, char c)
{
    if (s->at >= s->end || *s->at != c) return false;
    s->at++;
    return true;
}

static bool scan_word(struct scan *s, const char *word)
{
    size_t n = strlen(word);
    if ((size_t)(s->end - s->at) < n || memcmp(s->at, word, n) != 0)
        return fail(s, "expected a value");
    s->at += n;
    return true;
}

static int take_digits(struct scan *s)
{
    int n = 0;
    while (s->at < s->end && *s->at >= '0' && *s->at <= '9') {
        s->at++;
        if (n <= NUMBER_MAX) n++;
    }
    return n;
}

static bool scan_number(struct scan *s)
{
    const char *begin = s->at;
    take(s, '-');
    if (!take(s, '0') && !take_digits(s)) return fail(s, "expected a value");
    if (take(s, '.') && !take_digits(s)) return fail(s, "a number's point needs a digit after it");
    if (take(s, 'e') || take(s, 'E')) {
        if (!take(s, '+')) take(s, '-');
        if (!take_digits(s)) return fail(s, "a number's exponent needs digits");
    }
    size_t n = (size_t)(s->at - begin);
    const char *end = s->at;
    s->at = begin; /* the faults below are those of the whole number */
    if (n > NUMBER_MAX) return fail(s, "a number is longer than 63 characters");
    char copy[NUMBER_MAX + 1];
    memcpy(copy, begin, n);
    copy[n] = 0;
    if (!isfinite(strtod(copy, NULL))) return fail(s, "a number is too large");
    s->at = end;
    return true;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

/* The four digits after "\u", or -1. */
static int scan_hex4(struct scan *s)
{
    if (s->end - s->at < 4) return -1;
    int value = 0;
    for (int i = 0; i < 4; i++) {
        int digit = hex_digit(s->at[i]);
        if (digit < 0) return -1;
        value = value << 4 | digit;
    }
    s->at += 4;
    return value;
}

/* What follows "\u". */
static bool scan_unicode(struct scan *s)
{
    int unit = scan_hex4(s);
    if (unit < 0) return fail(s, "\\u needs four hexadecimal digits");
    if (unit == 0) return fail(s, "\\u0000 is not supported");
    if (unit >= 0xDC00 && unit <= 0xDFFF) return fail(s, "a lone low surrogate");
    if (unit < 0xD800 || unit > 0xDBFF) return true;
    int low = take(s, '\\') && take(s, 'u') ? scan_hex4(s) : -1;
    if (low < 0xDC00 || low > 0xDFFF) return fail(s, "a high surrogate without its low one");
    return true;
}

static bool scan_string(struct scan *s)
{
    s->at++; /* the quote */
    while (s->at < s->end) {
        unsigned char c = (unsigned char)*s->at;
        if (c < 0x20) return fail(s, "a control character in a string must be escaped");
        s->at++;
        if (c == '"') return true;
        if (c != '\\') continue;
        if (s->at == s->end) break;
        char escape = *s->at;
        if (!escape || !strchr("\"\\/bfnrtu", escape)) return fail(s, "unknown escape");
        s->at++;
        if (escape == 'u' && !scan_unicode(s)) return false;
    }
    return fail(s, "a string is not closed");
}

static bool scan_value(struct scan *s, int depth);

/* Members or items up to the closing bracket; `depth` counts this container. */
static bool scan_container(struct scan *s, int depth)
{
    if (depth > s->max_depth) {
        return error_set(s->err, ERR_FORMAT, NULL,
                         "%s: JSON nested deeper than %d levels at byte %zu", s->where,
                         s->max_depth, (size_t)(s->at - s->begin));
    }
    bool object = *s->at++ == '{';
    char close = object ? '}' : ']';
    skip_space(s);
    if (take(s, close)) return true;
    for (;;) {
        if (object) {
            if (s->at >= s->end || *s->at != '"') return fail(s, "expected a key in quotes");
            if (!scan_string(s)) return false;
            skip_space(s);
            if (!take(s, ':')) return fail(s, "expected ':'");
            skip_space(s);
        }
        if (!scan_value(s, depth)) return false;
        skip_space(s);
        if (take(s, close)) return true;
        if (!take(s, ',')) return fail(s, object ? "expected ',' or '}'" : "expected ',' or ']'");
        skip_space(s);
    }
}

/* One value inside `depth` containers. */
static bool scan_value(struct scan *s, int depth)
{
    if (s->at >= s->end) return fail(s, "the text ends where a value should be");
    switch (*s->at) {
    case '{':
    case '[': return scan_container(s, depth + 1);
    case '"': return scan_string(s);
    case 't': return scan_word(s, "true");
    case 'f': return scan_word(s, "false");
    case 'n': return scan_word(s, "null");
    default: return scan_number(s);
    }
}

static bool scan_text(struct scan *s)
{
    size_t bad;
    if (!utf8_valid(s->begin, (size_t)(s->end - s->begin), &bad)) {
        s->at = s->begin + bad;
        return fail(s, "not valid UTF-8");
    }
    skip_space(s);
    if (!scan_value(s, 0)) return false;
    skip_space(s);
    if (s->at != s->end) return fail(s, "more text after the value");
    return true;
}

static int compare_keys(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static bool duplicate_key(const char *where, const char *key, struct error *err)
{
    return error_set(err, ERR_FORMAT, key, "%s: duplicate key \"%.80s\"", where, key);
}

/* The keys of one object are distinct. Sorting keeps a vocabulary of 150,000 keys quick. */
static bool check_keys(const struct cJSON *object, const char *where, struct error *err)
{
    size_t n = 0;
    for (const struct cJSON *c = object->child; c; c = c->next) n++;
    if (n < 2) return true;
    const char **keys = malloc(n * sizeof *keys);
    if (!keys) return error_set(err, ERR_MEMORY, NULL, "%s: no memory for %zu keys", where, n);
    size_t i = 0;
    for (const struct cJSON *c = object->child; c; c = c->next) keys[i++] = c->string;
    qsort(keys, n, sizeof *keys, compare_keys);
    const char *twice = NULL;
    for (i = 1; i < n && !twice; i++)
        if (strcmp(keys[i - 1], keys[i]) == 0) twice = keys[i];
    free(keys);
    return twice ? duplicate_key(where, twice, err) : true;
}

/* Recursion is bounded: the scan has checked the depth. */
static bool check_tree(const struct cJSON *item, const char *where, struct error *err)
{
    if (cJSON_IsObject(item) && !check_keys(item, where, err)) return false;
    for (const struct cJSON *c = item->child; c; c = c->next)
        if (c->child && !check_tree(c, where, err)) return false;
    return true;
}

struct cJSON *json_parse(const char *text, size_t n, int max_depth, const char *where,
                         struct error *err)
{
    ASSERT(max_depth > 0 && max_depth <= JSON_MAX_DEPTH);
    if (!text) text = ""; /* an empty buffer; NULL + 0 is undefined */
    struct scan s = {text, text, text + n, where, max_depth, err};
    if (!scan_text(&s)) return NULL;
    struct cJSON *root = cJSON_ParseWithLengthOpts(text, n, NULL, false);
    if (!root) {
        error_set(err, ERR_MEMORY, NULL, "%s: no memory for the JSON tree of %zu bytes", where, n);
        return NULL;
    }
    if (check_tree(root, where, err)) return root;
    cJSON_Delete(root);
    return NULL;
}

const struct cJSON *json_get(const struct cJSON *object, const char *key)
{
    return cJSON_IsObject(object) ? cJSON_GetObjectItemCaseSensitive(object, key) : NULL;
}

bool json_to_i64(const struct cJSON *item, int64_t *out)
{
    if (!cJSON_IsNumber(item)) return false;
    double v = item->valuedouble;
    if (!(v >= -9007199254740992.0 && v <= 9007199254740992.0) || v != trunc(v)) return false;
    *out = (int64_t)v;
    return true;
}

const char *json_type_name(const struct cJSON *item)
{
    if (cJSON_IsBool(item)) return "a boolean";
    if (cJSON_IsNumber(item)) return "a number";
    if (cJSON_IsString(item)) return "a string";
    if (cJSON_IsArray(item)) return "an array";
    if (cJSON_IsObject(item)) return "an object";
    return "null";
}

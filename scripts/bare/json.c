/* JSON trees: see cjson/cJSON.h. Texts come from base/json.c, which has found them valid, and from
 * golden files; what is wrong all the same gives NULL. */
#include <cjson/cJSON.h>

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- trees ---- */

static cJSON *item_new(int type)
{
    cJSON *i = calloc(1, sizeof *i);
    if (i) i->type = type;
    return i;
}

void cJSON_Delete(cJSON *item)
{
    while (item) {
        cJSON *next = item->next;
        cJSON_Delete(item->child);
        free(item->valuestring);
        free(item->string);
        free(item);
        item = next;
    }
}

void cJSON_free(void *p) { free(p); }

static bool is(const cJSON *i, int types) { return i && (i->type & types) != 0; }
cJSON_bool cJSON_IsBool(const cJSON *i) { return is(i, cJSON_True | cJSON_False); }
cJSON_bool cJSON_IsTrue(const cJSON *i) { return is(i, cJSON_True); }
cJSON_bool cJSON_IsNull(const cJSON *i) { return is(i, cJSON_NULL); }
cJSON_bool cJSON_IsNumber(const cJSON *i) { return is(i, cJSON_Number); }
cJSON_bool cJSON_IsString(const cJSON *i) { return is(i, cJSON_String); }
cJSON_bool cJSON_IsArray(const cJSON *i) { return is(i, cJSON_Array); }
cJSON_bool cJSON_IsObject(const cJSON *i) { return is(i, cJSON_Object); }

int cJSON_GetArraySize(const cJSON *array)
{
    int n = 0;
    const cJSON *i;
    cJSON_ArrayForEach(i, array) n++;
    return n;
}

cJSON *cJSON_GetArrayItem(const cJSON *array, int i)
{
    cJSON *item = array ? array->child : NULL;
    while (item && i-- > 0) item = item->next;
    return item;
}

cJSON *cJSON_GetObjectItemCaseSensitive(const cJSON *object, const char *name)
{
    cJSON *i;
    cJSON_ArrayForEach(i, object) if (i->string && strcmp(i->string, name) == 0) return i;
    return NULL;
}

cJSON *cJSON_GetObjectItem(const cJSON *object, const char *name)
{
    return cJSON_GetObjectItemCaseSensitive(object, name);
}

cJSON *cJSON_CreateNull(void) { return item_new(cJSON_NULL); }
cJSON *cJSON_CreateTrue(void) { return item_new(cJSON_True); }
cJSON *cJSON_CreateFalse(void) { return item_new(cJSON_False); }
cJSON *cJSON_CreateBool(cJSON_bool value) { return item_new(value ? cJSON_True : cJSON_False); }
cJSON *cJSON_CreateArray(void) { return item_new(cJSON_Array); }
cJSON *cJSON_CreateObject(void) { return item_new(cJSON_Object); }

cJSON *cJSON_CreateNumber(double value)
{
    cJSON *i = item_new(cJSON_Number);
    if (!i) return NULL;
    i->valuedouble = value;
    i->valueint = value >= INT32_MAX ? INT32_MAX : value <= INT32_MIN ? INT32_MIN : (int)value;
    return i;
}

static cJSON *text_new(int type, const char *text)
{
    cJSON *i = item_new(type);
    if (i) i->valuestring = strdup(text);
    return i;
}

cJSON *cJSON_CreateString(const char *text) { return text_new(cJSON_String, text); }
cJSON *cJSON_CreateRaw(const char *text) { return text_new(cJSON_Raw, text); }

cJSON_bool cJSON_AddItemToArray(cJSON *array, cJSON *item)
{
    if (!array || !item) return false;
    cJSON *first = array->child;
    if (!first) {
        array->child = item->prev = item;
        return true;
    }
    item->prev = first->prev;
    first->prev->next = item;
    first->prev = item;
    return true;
}

cJSON_bool cJSON_AddItemToObject(cJSON *object, const char *name, cJSON *item)
{
    if (!object || !item) return false;
    item->string = strdup(name);
    return cJSON_AddItemToArray(object, item);
}

static cJSON *added(cJSON *object, const char *name, cJSON *item)
{
    if (cJSON_AddItemToObject(object, name, item)) return item;
    cJSON_Delete(item);
    return NULL;
}

cJSON *cJSON_AddBoolToObject(cJSON *object, const char *name, cJSON_bool value)
{
    return added(object, name, cJSON_CreateBool(value));
}

cJSON *cJSON_AddNumberToObject(cJSON *object, const char *name, double value)
{
    return added(object, name, cJSON_CreateNumber(value));
}

cJSON *cJSON_AddStringToObject(cJSON *object, const char *name, const char *text)
{
    return added(object, name, cJSON_CreateString(text));
}

cJSON *cJSON_AddRawToObject(cJSON *object, const char *name, const char *text)
{
    return added(object, name, cJSON_CreateRaw(text));
}

cJSON *cJSON_AddArrayToObject(cJSON *object, const char *name)
{
    return added(object, name, cJSON_CreateArray());
}

cJSON *cJSON_AddObjectToObject(cJSON *object, const char *name)
{
    return added(object, name, cJSON_CreateObject());
}

cJSON *cJSON_CreateDoubleArray(const double *values, int n)
{
    cJSON *array = cJSON_CreateArray();
    for (int i = 0; i < n; i++) cJSON_AddItemToArray(array, cJSON_CreateNumber(values[i]));
    return array;
}

cJSON *cJSON_CreateStringArray(const char *const *texts, int n)
{
    cJSON *array = cJSON_CreateArray();
    for (int i = 0; i < n; i++) cJSON_AddItemToArray(array, cJSON_CreateString(texts[i]));
    return array;
}

/* ---- text to tree ---- */

struct reader { const char *at, *end; };

static void skip_space(struct reader *r)
{
    while (r->at < r->end && strchr(" \t\r\n", *r->at)) r->at++;
}

static bool take(struct reader *r, char c)
{
    skip_space(r);
    if (r->at >= r->end || *r->at != c) return false;
    r->at++;
    return true;
}

static unsigned read_hex4(struct reader *r)
{
    char digits[5] = "";
    for (int i = 0; i < 4 && r->at < r->end; i++) digits[i] = *r->at++;
    return (unsigned)strtoul(digits, NULL, 16);
}

static char *put_utf8(char *out, unsigned cp)
{
    if (cp < 0x80) {
        *out++ = (char)cp;
        return out;
    }
    int more = cp < 0x800 ? 1 : cp < 0x10000 ? 2 : 3;
    static const unsigned char lead[] = {0, 0xC0, 0xE0, 0xF0};
    *out++ = (char)(lead[more] | cp >> (6 * more));
    while (more-- > 0) *out++ = (char)(0x80 | (cp >> (6 * more) & 0x3F));
    return out;
}

static char *read_escape(struct reader *r, char *out)
{
    static const char names[] = "bfnrt", values[] = "\b\f\n\r\t";
    char c = *r->at++;
    const char *found = strchr(names, c);
    if (c == 'u') {
        unsigned cp = read_hex4(r);
        if (cp >= 0xD800 && cp < 0xDC00) {
            r->at += 2; /* \u */
            cp = 0x10000 + ((cp - 0xD800) << 10) + (read_hex4(r) - 0xDC00);
        }
        return put_utf8(out, cp);
    }
    *out++ = found ? values[found - names] : c;
    return out;
}

/* What follows the quote. An escape is never shorter than what it stands for. */
static char *read_string(struct reader *r)
{
    const char *end = r->at;
    while (end < r->end && *end != '"') end += *end == '\\' ? 2 : 1;
    if (end >= r->end) return NULL;
    char *text = malloc((size_t)(end - r->at) + 1), *out = text;
    while (text && r->at < end) {
        char c = *r->at++;
        if (c == '\\') out = read_escape(r, out);
        else *out++ = c;
    }
    if (text) *out = 0;
    r->at = end + 1;
    return text;
}

static cJSON *read_value(struct reader *r);

/* What follows the bracket. */
static cJSON *read_items(struct reader *r, int type)
{
    cJSON *list = item_new(type);
    char close = type == cJSON_Array ? ']' : '}';
    if (take(r, close)) return list;
    do {
        char *name = NULL;
        if (type == cJSON_Object) {
            if (!take(r, '"') || !(name = read_string(r)) || !take(r, ':')) goto bad;
        }
        cJSON *item = read_value(r);
        if (!item) {
            free(name);
            goto bad;
        }
        item->string = name;
        cJSON_AddItemToArray(list, item);
    } while (take(r, ','));
    if (take(r, close)) return list;
bad:
    cJSON_Delete(list);
    return NULL;
}

static cJSON *read_word(struct reader *r, const char *word, int type)
{
    size_t n = strlen(word);
    if ((size_t)(r->end - r->at) < n || memcmp(r->at, word, n) != 0) return NULL;
    r->at += n;
    return item_new(type);
}

static cJSON *read_number(struct reader *r)
{
    char text[64] = "", *end;
    size_t n = 0;
    while (r->at + n < r->end && n < sizeof text - 1 && strchr("+-.eE0123456789", r->at[n])) n++;
    memcpy(text, r->at, n);
    double value = strtod(text, &end);
    r->at += end - text;
    return end > text ? cJSON_CreateNumber(value) : NULL;
}

static cJSON *read_value(struct reader *r)
{
    if (take(r, '{')) return read_items(r, cJSON_Object);
    if (take(r, '[')) return read_items(r, cJSON_Array);
    if (take(r, '"')) {
        cJSON *i = item_new(cJSON_String);
        i->valuestring = read_string(r);
        if (i->valuestring) return i;
        cJSON_Delete(i);
        return NULL;
    }
    if (r->at >= r->end) return NULL;
    switch (*r->at) {
    case 't': return read_word(r, "true", cJSON_True);
    case 'f': return read_word(r, "false", cJSON_False);
    case 'n': return read_word(r, "null", cJSON_NULL);
    default: return read_number(r);
    }
}

cJSON *cJSON_ParseWithLengthOpts(const char *text, size_t n, const char **end, cJSON_bool whole)
{
    struct reader r = {text, text + n};
    cJSON *root = read_value(&r);
    if (end) *end = r.at;
    return root;
}

cJSON *cJSON_ParseWithLength(const char *text, size_t n)
{
    return cJSON_ParseWithLengthOpts(text, n, NULL, false);
}

/* ---- tree to text ---- */

static void print_string(FILE *to, const char *s)
{
    fputc('"', to);
    for (; *s; s++) {
        if (*s == '"' || *s == '\\') fprintf(to, "\\%c", *s);
        else if ((unsigned char)*s < 0x20) fprintf(to, "\\u%04x", *s);
        else fputc(*s, to);
    }
    fputc('"', to);
}

static void print_number(FILE *to, double x)
{
    if (x == floor(x) && fabs(x) < 1e15) fprintf(to, "%.0f", x);
    else fprintf(to, isfinite(x) ? "%.17g" : "null", x);
}

static void print_item(FILE *to, const cJSON *i, int depth, bool lines)
{
    if (i->type & (cJSON_Array | cJSON_Object)) {
        const cJSON *child;
        bool array = i->type == cJSON_Array;
        fputc(array ? '[' : '{', to);
        cJSON_ArrayForEach(child, i) {
            if (child != i->child) fputc(',', to);
            if (lines) fprintf(to, "\n%*s", 2 * depth + 2, "");
            if (!array) {
                print_string(to, child->string);
                fputs(lines ? ": " : ":", to);
            }
            print_item(to, child, depth + 1, lines);
        }
        if (lines && i->child) fprintf(to, "\n%*s", 2 * depth, "");
        fputc(array ? ']' : '}', to);
        return;
    }
    switch (i->type) {
    case cJSON_Number: print_number(to, i->valuedouble); break;
    case cJSON_String: print_string(to, i->valuestring); break;
    case cJSON_Raw: fputs(i->valuestring, to); break;
    case cJSON_True: fputs("true", to); break;
    case cJSON_False: fputs("false", to); break;
    default: fputs("null", to); break;
    }
}

static char *print(const cJSON *item, bool lines)
{
    char *text = NULL;
    size_t n;
    FILE *to = open_memstream(&text, &n);
    if (!to) return NULL;
    print_item(to, item, 0, lines);
    fclose(to);
    return text;
}

char *cJSON_Print(const cJSON *item) { return print(item, true); }
char *cJSON_PrintUnformatted(const cJSON *item) { return print(item, false); }

/* Request parameters as tables: see params.h. */
#include "api/params.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "api/json_out.h"
#include "base/json.h"
#include "base/options.h"

/* ---- values ---------------------------------------------------------------------------------- */

bool param_wrong_type(const struct cJSON *item, const char *path, const char *wanted,
                      struct error *err)
{
    return error_set(err, ERR_INVALID, path, "'%s' must be %s, not %s", path, wanted,
                     json_type_name(item));
}

bool param_out_of_memory(struct error *err)
{
    return error_set(err, ERR_MEMORY, NULL, "no memory for the request's parameters");
}

bool param_int(const struct cJSON *item, const char *path, int64_t min, int64_t max, int64_t *out,
               struct error *err)
{
    if (!cJSON_IsNumber(item)) return param_wrong_type(item, path, "an integer", err);
    double value = item->valuedouble;
    if (value != floor(value))
        return error_set(err, ERR_INVALID, path, "'%s' must be an integer, not %.9g", path, value);
    if (value < (double)min || value > (double)max)
        return error_set(err, ERR_INVALID, path, "'%s' is %.17g; it must be from %lld to %lld",
                         path, value, (long long)min, (long long)max);
    *out = (int64_t)value;
    return true;
}

bool param_number(const struct cJSON *item, const char *path, double min, double max,
                  bool above_min, double *out, struct error *err)
{
    if (!cJSON_IsNumber(item)) return param_wrong_type(item, path, "a number", err);
    double value = item->valuedouble;
    bool low = above_min ? value <= min : value < min;
    if (low || value > max)
        return error_set(err, ERR_INVALID, path, "'%s' is %.9g; it must be %s %g and at most %g",
                         path, value, above_min ? "above" : "at least", min, max);
    *out = value;
    return true;
}

bool param_bool(const struct cJSON *item, const char *path, bool *out, struct error *err)
{
    if (!cJSON_IsBool(item)) return param_wrong_type(item, path, "a boolean", err);
    *out = cJSON_IsTrue(item);
    return true;
}

bool param_string(struct arena *a, const struct cJSON *item, const char *path, const char **out,
                  size_t *n, struct error *err)
{
    if (!cJSON_IsString(item)) return param_wrong_type(item, path, "a string", err);
    size_t len = strlen(item->valuestring); /* json_parse refuses \u0000 */
    const char *copy = arena_copy(a, item->valuestring, len);
    if (!copy) return param_out_of_memory(err);
    *out = copy;
    if (n) *n = len;
    return true;
}

bool param_ids(struct arena *a, const struct cJSON *array, const char *path, const int32_t **out,
               size_t *n, struct error *err)
{
    size_t count = (size_t)cJSON_GetArraySize(array), i = 0;
    int32_t *ids = arena_array(a, count, sizeof *ids);
    if (!ids) return param_out_of_memory(err);
    const struct cJSON *item;
    cJSON_ArrayForEach(item, array) {
        int64_t id = 0;
        /* The path is made for the one that fails only: prompts are long. */
        if (!param_int(item, path, 0, INT32_MAX, &id, NULL)) {
            char at[112];
            snprintf(at, sizeof at, "%.80s[%zu]", path, i);
            return param_int(item, at, 0, INT32_MAX, &id, err);
        }
        ids[i++] = (int32_t)id;
    }
    *out = ids;
    *n = count;
    return true;
}

/* ---- rows ------------------------------------------------------------------------------------ */

static double row_max(const struct param *p, const struct api_limits *limits)
{
    return p->max == PARAM_MAX_N ? limits->max_n : p->max;
}

/* The value as one of the literals a NEUTRAL row may list, or "" for anything longer. */
static void neutral_literal(const struct cJSON *item, char out[32])
{
    out[0] = 0;
    if (cJSON_IsBool(item)) strcpy(out, cJSON_IsTrue(item) ? "true" : "false");
    else if (cJSON_IsArray(item) && !item->child) strcpy(out, "[]");
    else if (cJSON_IsObject(item) && !item->child) strcpy(out, "{}");
    else if (cJSON_IsString(item) && strlen(item->valuestring) < 24)
        snprintf(out, 32, "\"%s\"", item->valuestring);
}

static bool read_neutral(const struct param *p, const struct cJSON *item, struct error *err)
{
    char literal[32];
    neutral_literal(item, literal);
    size_t len = strlen(literal);
    for (const char *s = p->neutral; s && len > 0;) {
        size_t n = strcspn(s, ",");
        if (n == len && memcmp(s, literal, n) == 0) return true;
        s = s[n] ? s + n + 1 : NULL;
    }
    return error_set(err, ERR_UNSUPPORTED, p->name,
                     "'%s' is not supported: leave it out, or give null%s%s", p->name,
                     p->neutral ? " or " : "", p->neutral ? p->neutral : "");
}

static bool read_row(const struct param *p, const struct param_reader *r, const struct cJSON *item,
                     struct error *err)
{
    if (cJSON_IsNull(item) && !p->required) return true;
    void *at = (char *)r->out + p->offset;
    int64_t i;
    double d;
    switch (p->type) {
    case PARAM_BOOL: return param_bool(item, p->name, at, err);
    case PARAM_INT:
        if (!param_int(item, p->name, (int64_t)p->min, (int64_t)row_max(p, r->limits), &i, err))
            return false;
        *(int32_t *)at = (int32_t)i;
        return true;
    case PARAM_NUMBER:
        if (!param_number(item, p->name, p->min, p->max, p->above_min, &d, err)) return false;
        *(float *)at = (float)d;
        /* 1e-60 is above 0 as a double only. */
        if (p->above_min && *(float *)at <= (float)p->min)
            return error_set(err, ERR_INVALID, p->name, "'%s' is too close to %g", p->name, p->min);
        return true;
    case PARAM_STRING: return param_string(r->arena, item, p->name, at, NULL, err);
    case PARAM_CUSTOM: return p->read(r, p->name, item, err);
    case PARAM_NEUTRAL: return read_neutral(p, item, err);
    }
    return false;
}

static const struct param *find_row(const struct param *table, size_t n, unsigned routes,
                                    const char *name)
{
    for (size_t i = 0; i < n; i++)
        if ((table[i].routes & routes) && strcmp(table[i].name, name) == 0) return &table[i];
    return NULL;
}

/* One that has the row's parameter. */
static const char *path_of(const struct param *p)
{
    static const char *const paths[] = {
        "/v1/completions", "/v1/chat/completions", "/v1/tokenize", "/v1/detokenize",
        "/v1/fine_tuning/jobs", "/v1/models/load", "/v1/memory/plan",
    };
    enum { N_PATHS = sizeof paths / sizeof *paths };
    size_t i = 0;
    while (i < N_PATHS && !(p->routes >> i & 1)) i++;
    ASSERT(i < N_PATHS);
    return paths[i];
}

static bool unknown_param(const struct param *table, size_t n, enum route route, const char *name,
                          struct error *err)
{
    const struct param *other = find_row(table, n, ~0u, name);
    if (other)
        return error_set(err, ERR_INVALID, name,
                         "'%s' is not a parameter of this route, but of %s", name,
                         path_of(other));
    const char *names[64];
    size_t n_names = 0;
    for (size_t i = 0; i < n && n_names < 64; i++)
        if ((table[i].routes & route) && table[i].type != PARAM_NEUTRAL)
            names[n_names++] = table[i].name;
    const char *near = nearest_name(name, names, n_names);
    return error_set(err, ERR_INVALID, name, "unknown parameter '%.64s'%s%s%s", name,
                     near ? "; did you mean '" : "", near ? near : "", near ? "'?" : "");
}

static bool read_object(const struct param *table, size_t n, enum route route,
                        const struct param_reader *r, const struct cJSON *root, struct error *err)
{
    if (!cJSON_IsObject(root))
        return error_set(err, ERR_INVALID, NULL, "the body must be a JSON object, not %s",
                         json_type_name(root));
    const struct cJSON *item;
    cJSON_ArrayForEach(item, root) {
        const struct param *p = find_row(table, n, route, item->string);
        if (!p) return unknown_param(table, n, route, item->string, err);
        if (!read_row(p, r, item, err)) return false;
    }
    for (size_t i = 0; i < n; i++)
        if ((table[i].routes & route) && table[i].required && !json_get(root, table[i].name))
            return error_set(err, ERR_INVALID, table[i].name, "the parameter '%s' is missing",
                             table[i].name);
    return true;
}

bool params_parse(const struct param *table, size_t n, enum route route,
                  const struct param_reader *r, const char *body, size_t n_body, struct error *err)
{
    struct cJSON *root = json_parse(body, n_body, r->limits->json_depth, "the body", err);
    if (!root) return false;
    bool ok = read_object(table, n, route, r, root, err);
    cJSON_Delete(root);
    return ok;
}

/* ---- description ----------------------------------------------------------------------------- */

static void row_schema(const struct param *p, const struct api_limits *limits, struct buf *out)
{
    const char *null = p->required ? "" : ",\"null\"";
    switch (p->type) {
    case PARAM_BOOL: buf_printf(out, "\"type\":[\"boolean\"%s]", null); break;
    case PARAM_INT:
    case PARAM_NUMBER:
        buf_printf(out, "\"type\":[\"%s\"%s],\"%s\":",
                   p->type == PARAM_INT ? "integer" : "number", null,
                   p->above_min ? "exclusiveMinimum" : "minimum");
        json_out_double(out, p->min);
        buf_puts(out, ",\"maximum\":");
        json_out_double(out, row_max(p, limits));
        break;
    case PARAM_STRING: buf_printf(out, "\"type\":[\"string\"%s]", null); break;
    case PARAM_CUSTOM: buf_puts(out, p->schema); break;
    case PARAM_NEUTRAL:
        buf_printf(out, "\"enum\":[null%s%s]", p->neutral ? "," : "",
                   p->neutral ? p->neutral : "");
        break;
    }
    if (p->default_json) buf_printf(out, ",\"default\":%s", p->default_json);
    buf_puts(out, ",\"description\":");
    json_out_text(out,
                  p->help ? p->help : "Not supported: accepted only where it changes nothing.");
}

void params_schema(const struct param *table, size_t n, enum route route,
                   const struct api_limits *limits, struct buf *out)
{
    buf_puts(out, "{\"type\":\"object\",\"additionalProperties\":false,\"required\":[");
    const char *comma = "";
    for (size_t i = 0; i < n; i++) {
        if (!(table[i].routes & route) || !table[i].required) continue;
        buf_printf(out, "%s\"%s\"", comma, table[i].name);
        comma = ",";
    }
    buf_puts(out, "],\"properties\":{");
    comma = "";
    for (size_t i = 0; i < n; i++) {
        if (!(table[i].routes & route)) continue;
        buf_printf(out, "%s\"%s\":{", comma, table[i].name);
        row_schema(&table[i], limits, out);
        buf_putc(out, '}');
        comma = ",";
    }
    buf_puts(out, "}}");
}

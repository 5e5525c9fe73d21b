/* Request parameters as tables: one row names a parameter, its type, range, default and meaning.
 * Validation reads the rows, and so does /openapi.json: the description cannot drift from what
 * the server does. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "api/api.h"
#include "base/arena.h"
#include "base/buf.h"
#include "base/error.h"

struct cJSON;

/* Routes that take a body, as bits: a row may serve several. */
enum route {
    ROUTE_COMPLETIONS = 1,
    ROUTE_CHAT = 2,
    ROUTE_TOKENIZE = 4,
    ROUTE_DETOKENIZE = 8,
    ROUTE_FINE_TUNING = 16,
    ROUTE_LOAD = 32,
    ROUTE_PLAN = 64,
};

/* What a row's reader works with. */
struct param_reader {
    const struct api_limits *limits;
    struct arena *arena; /* strings and arrays of the result live here */
    void *out;           /* the struct that `offset` counts from */
};

enum param_type {
    PARAM_BOOL,    /* bool */
    PARAM_INT,     /* int32_t within [min, max] */
    PARAM_NUMBER,  /* float within [min, max] */
    PARAM_STRING,  /* const char *, NUL-terminated */
    PARAM_CUSTOM,  /* `read` does it; `schema` describes it */
    PARAM_NEUTRAL, /* OpenAI has it, gptd does not: only values that change nothing are accepted */
};

enum { PARAM_MAX_N = -1 }; /* as `max`: the server's limits.max_n */

struct param {
    const char *name;
    unsigned routes;
    enum param_type type;
    bool required;
    bool above_min; /* min itself is excluded */
    double min, max;
    size_t offset;
    const char *default_json; /* shown in the description; the caller sets it in the struct */
    const char *schema;       /* CUSTOM: members of its JSON schema */
    const char *neutral;      /* NEUTRAL: JSON literals besides null, with commas: "false,[]" */
    bool (*read)(const struct param_reader *r, const char *name, const struct cJSON *item,
                 struct error *err);
    const char *help;
};

/* Reads a body, which must be one JSON object, by the rows of `route`. An absent parameter, and
 * null for one that is not required, leave the struct as it is. ERR_FORMAT for what is not JSON;
 * ERR_INVALID for unknown (naming the nearest), missing, ill-typed and out-of-range parameters;
 * ERR_UNSUPPORTED for those that gptd does not do. err->param is the path of the value at fault. */
bool params_parse(const struct param *table, size_t n, enum route route,
                  const struct param_reader *r, const char *body, size_t n_body,
                  struct error *err) MUST_CHECK;

/* The JSON schema of the body: {"type":"object","properties":{...},...}. */
void params_schema(const struct param *table, size_t n, enum route route,
                   const struct api_limits *limits, struct buf *out);

/* For readers of CUSTOM rows: typed values, errors naming `path`. */
bool param_int(const struct cJSON *item, const char *path, int64_t min, int64_t max, int64_t *out,
               struct error *err) MUST_CHECK;
bool param_number(const struct cJSON *item, const char *path, double min, double max,
                  bool above_min, double *out, struct error *err) MUST_CHECK;
bool param_bool(const struct cJSON *item, const char *path, bool *out, struct error *err)
    MUST_CHECK;
/* A copy in the arena. */
bool param_string(struct arena *a, const struct cJSON *item, const char *path, const char **out,
                  size_t *n, struct error *err) MUST_CHECK;
/* An array of integers >= 0, copied to the arena; errors name "path[i]". */
bool param_ids(struct arena *a, const struct cJSON *array, const char *path, const int32_t **out,
               size_t *n, struct error *err) MUST_CHECK;
/* ERR_INVALID: "PATH must be WANTED, not a string". */
bool param_wrong_type(const struct cJSON *item, const char *path, const char *wanted,
                      struct error *err);
bool param_out_of_memory(struct error *err); /* ERR_MEMORY: the request's arena is full */

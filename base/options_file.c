/* Options files become arguments before those of the command line, so that both go the same way. */
#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/options.h"
#include "base/options_internal.h"

enum { FILE_LIMIT = 1 << 20, FILE_DEPTH = 2, ARGV_LIMIT = 4096, NUMBER_BYTES = 32 };

struct expansion {
    struct arena *memory;
    char **argv; /* [ARGV_LIMIT + 1] */
    int argc;
    const char *path; /* of the file being read, for errors */
};

static bool no_memory(struct error *err)
{
    return error_set(err, ERR_MEMORY, "options", "no memory for the options file");
}

static bool push(struct expansion *x, char *arg, struct error *err)
{
    if (!arg) return no_memory(err);
    if (x->argc == ARGV_LIMIT)
        return error_set(err, ERR_TOO_LARGE, "options", "there are over %d arguments", ARGV_LIMIT);
    x->argv[x->argc++] = arg;
    return true;
}

/* "--key=value". */
static bool push_pair(struct expansion *x, const char *key, const char *value, struct error *err)
{
    size_t size = strlen(key) + strlen(value) + 4;
    char *arg = arena_alloc(x->memory, size);
    if (arg) snprintf(arg, size, "--%s=%s", key, value);
    return push(x, arg, err);
}

static bool push_flag(struct expansion *x, const char *key, bool on, struct error *err)
{
    size_t size = strlen(key) + 6;
    char *arg = arena_alloc(x->memory, size);
    if (arg) snprintf(arg, size, "--%s%s", on ? "" : "no-", key);
    return push(x, arg, err);
}

/* A string or a number. */
static bool push_scalar(struct expansion *x, const char *key, const cJSON *item, struct error *err)
{
    char number[NUMBER_BYTES];
    if (cJSON_IsString(item)) return push_pair(x, key, item->valuestring, err);
    if (!cJSON_IsNumber(item))
        return error_set(err, ERR_INVALID, key,
                         "%s: \"%s\" is %s; an option is a string, a number, true, false, or an "
                         "array of strings", x->path, key, json_type_name(item));
    bool whole = item->valuedouble == floor(item->valuedouble) && fabs(item->valuedouble) < 1e15;
    snprintf(number, sizeof number, whole ? "%.0f" : "%.17g", item->valuedouble);
    return push_pair(x, key, number, err);
}

static bool push_member(struct expansion *x, const cJSON *item, struct error *err)
{
    const char *key = item->string;
    if (strcmp(key, "options") == 0 || strcmp(key, "help") == 0 || !*key || strchr(key, '='))
        return error_set(err, ERR_INVALID, key, "%s: \"%s\" cannot be given in a file", x->path,
                         key);
    if (cJSON_IsBool(item)) return push_flag(x, key, cJSON_IsTrue(item), err);
    if (!cJSON_IsArray(item)) return push_scalar(x, key, item, err);
    for (const cJSON *each = item->child; each; each = each->next)
        if (!push_scalar(x, key, each, err)) return false;
    return true;
}

static bool push_file(struct expansion *x, const char *path, struct error *err)
{
    struct buf text;
    buf_init(&text, FILE_LIMIT);
    x->path = path;
    cJSON *root = NULL;
    bool ok = file_read(path, &text, err);
    if (ok) {
        root = json_parse(text.data ? text.data : "", text.len, FILE_DEPTH, path, err);
        ok = root != NULL;
    }
    if (ok && !cJSON_IsObject(root))
        ok = error_set(err, ERR_FORMAT, "options", "%s: holds %s, not an object of options", path,
                       json_type_name(root));
    for (const cJSON *item = ok ? root->child : NULL; item && ok; item = item->next)
        ok = push_member(x, item, err);
    cJSON_Delete(root);
    buf_free(&text);
    return ok;
}

/* The file that argv[i] names with --options, or NULL when it is no such argument; *taken: how many
 * arguments that is. */
static const char *file_named(int argc, char **argv, int i, int *taken)
{
    *taken = 1;
    if (strncmp(argv[i], "--options=", 10) == 0) return argv[i] + 10;
    if (strcmp(argv[i], "--options") != 0) return NULL;
    *taken = 2;
    return i + 1 < argc ? argv[i + 1] : "";
}

/* GPTD_OPTIONS, then those of the command line, in their order. */
static bool push_files(struct expansion *x, int argc, char **argv, int first, struct error *err)
{
    const char *file = getenv(OPTIONS_PREFIX "OPTIONS");
    if (file && *file && !push_file(x, file, err)) return false;
    for (int i = first, taken; i < argc && strcmp(argv[i], "--") != 0; i += taken) {
        file = file_named(argc, argv, i, &taken);
        if (file && taken == 2 && i + 1 == argc)
            return error_set(err, ERR_INVALID, "options",
                             "--options needs a value: --options FILE.json");
        if (file && !push_file(x, file, err)) return false;
    }
    return true;
}

bool options_expand(int argc, char **argv, int first, struct arena *memory, int *out_argc,
                    char ***out_argv, struct error *err)
{
    struct expansion x = {.memory = memory};
    x.argv = arena_array(memory, ARGV_LIMIT + 1, sizeof *x.argv);
    if (!x.argv) return no_memory(err);
    while (first < argc && argv[first][0] != '-') first++;
    for (int i = 0; i < first && i < argc; i++)
        if (!push(&x, argv[i], err)) return false;
    if (!push_files(&x, argc, argv, first, err)
        || !push(&x, (char *)options_environment_mark, err))
        return false;
    bool ended = false;
    for (int i = first, taken = 1; i < argc; i += taken) {
        ended = ended || strcmp(argv[i], "--") == 0;
        taken = 1;
        if ((ended || !file_named(argc, argv, i, &taken)) && !push(&x, argv[i], err)) return false;
    }
    x.argv[x.argc] = NULL;
    *out_argc = x.argc;
    *out_argv = x.argv;
    return true;
}

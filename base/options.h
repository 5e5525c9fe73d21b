/* Options: one table a command (name, type, default, range, help). The command line and an options
 * file (`--options FILE.json`) go through it, `--help` is printed from it, unknown ones are errors
 * that name the nearest known one. Parsing fills plain variables; nothing reads options later. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/arena.h"
#include "base/error.h"

enum option_type {
    OPTION_FLAG,   /* bool: --name, --no-name */
    OPTION_INT,    /* int64_t within [min, max] */
    OPTION_DOUBLE, /* double within [min, max] */
    OPTION_STRING, /* const char * */
    OPTION_BYTES,  /* int64_t: 6GiB, 512MB, 4096 (B kB MB GB TB KiB MiB GiB TiB) */
    OPTION_LIST,   /* struct option_list: may be given several times */
};

struct option_list { int32_t n; const char *at[16]; };

struct option {
    const char *name;     /* "max-seqs" */
    enum option_type type;
    void *value;          /* where it goes; holds the default before parsing */
    double min, max;      /* INT, DOUBLE, BYTES; both 0: no bound but >= 0 for BYTES */
    const char *arg;      /* what help shows: "N", "PATH", "TEXT" */
    const char *help;     /* one sentence; the default is appended by the printer */
};

/* Parses argv[first..argc). Strings are borrowed from argv.
 * Positional arguments (not beginning with "--") go to positional[] up to max_positional; "--" ends
 * options. `--name value` and `--name=value` mean the same; given twice, the last one counts.
 * ERR_INVALID with err->param = the option. --help and -h set *help and return true at once. */
bool options_parse(const struct option *table, size_t n, int argc, char **argv, int first,
                   const char **positional, int max_positional, int *n_positional, bool *help,
                   struct error *err) MUST_CHECK;
/* A copy of argv in which each `--options FILE.json` from argv[first] on is replaced by what the
 * file says: {"port": 8081, "hint": true, "stop": ["a", "b"]} by --port=8081 --hint --stop=a
 * --stop=b. So a file's keys are checked like options, and what stands later on the command line
 * counts. Lives in `memory`. */
bool options_expand(int argc, char **argv, int first, struct arena *memory, int *out_argc,
                    char ***out_argv, struct error *err) MUST_CHECK;
void options_print_help(FILE *to, const char *usage, const char *summary,
                        const struct option *table, size_t n);
bool options_parse_bytes(const char *text, int64_t *out); /* "6GiB" -> 6442450944 */
/* The candidate nearest to `name` by edit distance (at most 3 edits), or NULL. */
const char *nearest_name(const char *name, const char *const *candidates, size_t n);

/* Options: one table a command (name, type, default, range, help). The command line, the
 * environment and options files go through it, `--help` is printed from it, unknown ones are errors
 * that name the nearest known one. Parsing fills plain variables; nothing reads options later.
 *
 * The command line counts over the environment, the environment over an options file, a file over
 * the default; a list that is given replaces what lists of lower standing hold.
 *
 * In the environment --max-seqs is GPTD_MAX_SEQS. Flags are 1, 0, true or false, and --no-log is
 * GPTD_NO_LOG=1 or GPTD_LOG=0. A list has a line for each value; without line ends commas separate
 * them. What is set to nothing counts as not set. A GPTD_ name that this table does not have may be
 * another subcommand's or another program's; one that nearly is an option is taken for a slip, and
 * the log says so. */
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

enum { OPTION_LIST_TEXT = 2048 };
struct option_list {
    int32_t n;
    const char *at[16];
    char text[OPTION_LIST_TEXT]; /* what values from the environment are cut out of */
};

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
/* A copy of argv for options_parse: what options files say comes first, from argv[first] on, then
 * the mark where the environment counts, then the command line. The files are GPTD_OPTIONS and
 * each `--options FILE.json`: {"port": 8081, "hint": true, "stop": ["a", "b"]} becomes --port=8081
 * --hint --stop=a --stop=b, so that a file's keys are checked like options. What stands before the
 * first option (`tokenizer train`) stays where it is. Lives in `memory`. */
bool options_expand(int argc, char **argv, int first, struct arena *memory, int *out_argc,
                    char ***out_argv, struct error *err) MUST_CHECK;
/* Takes every GPTD_ name out of the environment, for a child that is told everything on its command
 * line. Safe between fork and exec. */
void options_hide_environment(void);
void options_print_help(FILE *to, const char *usage, const char *summary,
                        const struct option *table, size_t n);
bool options_parse_bytes(const char *text, int64_t *out); /* "6GiB" -> 6442450944 */
/* The candidate nearest to `name` by edit distance (at most 3 edits), or NULL. */
const char *nearest_name(const char *name, const char *const *candidates, size_t n);
/* The same with at most max_edits. */
const char *nearest_name_within(const char *name, const char *const *candidates, size_t n,
                                size_t max_edits);

/* Options: see options.h. One pass over argv; every error names the option as the user typed it. */
#include "base/options.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/checked.h"
#include "base/options_internal.h"

enum { HELP_COLUMN = 34, HELP_WIDTH = 100, MAX_CANDIDATES = OPTIONS_MAX + 1 };

/* ---- Values ---- */

/* The multiplier that a size's suffix stands for; 0: unknown. */
static int64_t bytes_unit(const char *suffix)
{
    static const struct { const char *suffix; int64_t unit; } units[] = {
        {"", 1}, {"B", 1},
        {"kB", 1000}, {"MB", 1000000}, {"GB", 1000000000}, {"TB", 1000000000000},
        {"KiB", 1LL << 10}, {"MiB", 1LL << 20}, {"GiB", 1LL << 30}, {"TiB", 1LL << 40},
    };
    for (size_t i = 0; i < sizeof units / sizeof *units; i++)
        if (strcasecmp(suffix, units[i].suffix) == 0) return units[i].unit;
    return 0;
}

bool options_parse_bytes(const char *text, int64_t *out)
{
    int64_t whole = 0;
    const char *s = text;
    if (*s < '0' || *s > '9') return false;
    for (; *s >= '0' && *s <= '9'; s++)
        if (!checked_mul(whole, 10, &whole) || !checked_add(whole, *s - '0', &whole)) return false;
    double fraction = 0, place = 0.1;
    bool has_fraction = *s == '.';
    if (has_fraction) {
        if (*++s < '0' || *s > '9') return false;
        for (; *s >= '0' && *s <= '9'; s++, place /= 10) fraction += (*s - '0') * place;
    }
    int64_t unit = bytes_unit(s);
    if (unit == 0 || (has_fraction && unit == 1)) return false; /* there is no half byte */
    return checked_mul(whole, unit, &whole)
           && checked_add(whole, (int64_t)(fraction * (double)unit), out);
}

static bool in_range(const struct option *o, double v)
{
    if (o->min == 0 && o->max == 0) return o->type != OPTION_BYTES || v >= 0;
    return v >= o->min && v <= o->max;
}

/* "an integer from 1 to 64": what would be right, for messages. */
static bool value_error(const struct option *o, const char *given, struct error *err)
{
    const char *kind = o->type == OPTION_INT      ? "an integer"
                       : o->type == OPTION_DOUBLE ? "a number"
                                                  : "a size such as 512MiB or 6GB";
    char range[80] = "";
    if (o->min != 0 || o->max != 0)
        snprintf(range, sizeof range,
                 o->type == OPTION_DOUBLE ? " from %.15g to %.15g" : " from %.0f to %.0f", o->min,
                 o->max);
    return error_set(err, ERR_INVALID, o->name, "--%s %s: must be %s%s", o->name, given, kind,
                     range);
}

bool option_set(const struct option *o, const char *text, struct error *err)
{
    char *end;
    errno = 0;
    switch (o->type) {
    case OPTION_STRING:
        *(const char **)o->value = text;
        return true;
    case OPTION_LIST: {
        struct option_list *list = o->value;
        if (list->n == (int32_t)(sizeof list->at / sizeof *list->at))
            return error_set(err, ERR_INVALID, o->name, "--%s: may be given %d times at most",
                             o->name, list->n);
        list->at[list->n++] = text;
        return true;
    }
    case OPTION_INT: {
        long long v = strtoll(text, &end, 10);
        if (end == text || *end || errno || !in_range(o, (double)v))
            return value_error(o, text, err);
        *(int64_t *)o->value = v;
        return true;
    }
    case OPTION_DOUBLE: {
        double v = strtod(text, &end);
        if (end == text || *end || !isfinite(v) || !in_range(o, v))
            return value_error(o, text, err);
        *(double *)o->value = v;
        return true;
    }
    case OPTION_BYTES: {
        int64_t v;
        if (!options_parse_bytes(text, &v) || !in_range(o, (double)v))
            return value_error(o, text, err);
        *(int64_t *)o->value = v;
        return true;
    }
    case OPTION_FLAG: break;
    }
    ASSERT(!"a flag takes no value");
    return false;
}

/* ---- The command line ---- */

static const struct option *find_option(const struct option *table, size_t n, const char *name,
                                        size_t len)
{
    for (size_t i = 0; i < n; i++)
        if (strlen(table[i].name) == len && memcmp(table[i].name, name, len) == 0)
            return &table[i];
    return NULL;
}

static bool unknown_option(const struct option *table, size_t n, const char *arg, size_t len,
                           struct error *err)
{
    const char *candidates[MAX_CANDIDATES];
    size_t count = 0;
    candidates[count++] = "help";
    for (size_t i = 0; i < n && count < MAX_CANDIDATES; i++) candidates[count++] = table[i].name;
    char name[64];
    snprintf(name, sizeof name, "%.*s", (int)(len < 60 ? len : 60), arg);
    bool negated = strncmp(name, "no-", 3) == 0;
    const char *nearest = nearest_name(name, candidates, count);
    if (!nearest && negated) nearest = nearest_name(name + 3, candidates, count);
    if (!nearest)
        return error_set(err, ERR_INVALID, name, "there is no option --%s; see --help", name);
    return error_set(err, ERR_INVALID, name, "there is no option --%s; did you mean --%s?", name,
                     nearest);
}

/* A pass over the arguments, which come in layers: files, the environment, the command line. */
struct pass {
    const struct option *table;
    size_t n;
    int argc;
    char **argv;
    uint8_t layer, list_layer[OPTIONS_MAX]; /* the one that a list's values are from */
};

/* The value of `o`. A list that a layer gives begins anew there. */
static bool take_value(struct pass *p, const struct option *o, const char *text, struct error *err)
{
    size_t i = (size_t)(o - p->table);
    if (o->type == OPTION_LIST && p->list_layer[i] != p->layer) {
        p->list_layer[i] = p->layer;
        ((struct option_list *)o->value)->n = 0;
    }
    return option_set(o, text, err);
}

/* One option at argv[*i], which begins with "--"; moves *i past a value taken from the next one. */
static bool parse_option(struct pass *p, int *i, struct error *err)
{
    const struct option *table = p->table;
    const size_t n = p->n;
    const char *arg = p->argv[*i] + 2;
    const char *equals = strchr(arg, '=');
    size_t len = equals ? (size_t)(equals - arg) : strlen(arg);
    const struct option *o = find_option(table, n, arg, len);
    bool on = true;
    if (!o && len > 3 && memcmp(arg, "no-", 3) == 0) {
        o = find_option(table, n, arg + 3, len - 3);
        if (o && o->type != OPTION_FLAG) o = NULL;
        on = false;
    }
    if (!o && equals && len == 4 && memcmp(arg, "help", 4) == 0)
        return error_set(err, ERR_INVALID, "help", "--help takes no value");
    if (!o) return unknown_option(table, n, arg, len, err);
    if (o->type == OPTION_FLAG) {
        if (equals)
            return error_set(err, ERR_INVALID, o->name, "--%s takes no value; use --%s or --no-%s",
                             o->name, o->name, o->name);
        *(bool *)o->value = on;
        return true;
    }
    if (equals) return take_value(p, o, equals + 1, err);
    if (*i + 1 >= p->argc)
        return error_set(err, ERR_INVALID, o->name, "--%s needs a value: --%s %s", o->name, o->name,
                         o->arg ? o->arg : "VALUE");
    return take_value(p, o, p->argv[++*i], err);
}

/* Arguments before the environment's mark are an options file's. */
static bool is_of_file(int argc, char **argv, int i)
{
    while (i < argc && argv[i] != options_environment_mark) i++;
    return i < argc;
}

static bool name_file(struct error *err)
{
    struct error why = *err;
    return error_set(err, why.code, why.param, "in an options file: %s", why.text);
}

bool options_parse(const struct option *table, size_t n, int argc, char **argv, int first,
                   const char **positional, int max_positional, int *n_positional, bool *help,
                   struct error *err)
{
    struct pass pass = {.table = table, .n = n, .argc = argc, .argv = argv, .layer = 1};
    bool options_ended = false;
    ASSERT(n <= OPTIONS_MAX);
    *help = false;
    if (n_positional) *n_positional = 0;
    for (int i = first; i < argc; i++) {
        const char *arg = argv[i];
        if (arg == options_environment_mark) {
            if (!options_from_environment(table, n, err)) return false;
            pass.layer++;
        } else if (!options_ended && strcmp(arg, "--") == 0) {
            options_ended = true;
        } else if (!options_ended && (strcmp(arg, "--help") == 0 || strcmp(arg, "-h") == 0)) {
            *help = true;
            return true;
        } else if (!options_ended && strncmp(arg, "--", 2) == 0) {
            if (!parse_option(&pass, &i, err))
                return is_of_file(argc, argv, i) ? name_file(err) : false;
        } else if (n_positional && *n_positional < max_positional) {
            positional[(*n_positional)++] = arg;
        } else {
            return error_set(err, ERR_INVALID, NULL, "\"%s\" is not expected here; see --help",
                             arg);
        }
    }
    return true;
}

/* ---- Help ---- */

/* " (default 16)", or "" where the default is nothing, zero or off. */
static void default_text(const struct option *o, char *out, size_t size)
{
    out[0] = 0;
    switch (o->type) {
    case OPTION_INT:
        if (*(int64_t *)o->value)
            snprintf(out, size, " (default %lld)", (long long)*(int64_t *)o->value);
        break;
    case OPTION_DOUBLE:
        if (*(double *)o->value != 0) snprintf(out, size, " (default %g)", *(double *)o->value);
        break;
    case OPTION_STRING:
        if (*(const char **)o->value && **(const char **)o->value)
            snprintf(out, size, " (default %s)", *(const char **)o->value);
        break;
    case OPTION_BYTES: {
        int64_t v = *(int64_t *)o->value;
        if (v && v % (1 << 20) == 0)
            snprintf(out, size, " (default %lldMiB)", (long long)(v >> 20));
        else if (v && v % (1 << 10) == 0)
            snprintf(out, size, " (default %lldKiB)", (long long)(v >> 10));
        else if (v)
            snprintf(out, size, " (default %lldB)", (long long)v);
        break;
    }
    case OPTION_FLAG:
    case OPTION_LIST: break;
    }
}

/* Words of `text` wrapped between HELP_COLUMN and HELP_WIDTH; the cursor stands at `column`. */
static void print_wrapped(FILE *to, const char *text, int column)
{
    while (*text) {
        int word = (int)strcspn(text, " ");
        if (column > HELP_COLUMN && column + 1 + word > HELP_WIDTH) {
            fprintf(to, "\n%*s", HELP_COLUMN, "");
            column = HELP_COLUMN;
        } else if (column > HELP_COLUMN) {
            fputc(' ', to);
            column++;
        }
        fprintf(to, "%.*s", word, text);
        column += word;
        text += word;
        while (*text == ' ') text++;
    }
    fputc('\n', to);
}

static void print_option(FILE *to, const struct option *o)
{
    char left[96], text[512], def[128];
    bool off_by_default = o->type == OPTION_FLAG && !*(bool *)o->value;
    if (o->type == OPTION_FLAG)
        snprintf(left, sizeof left, "  --%s%s", off_by_default ? "" : "no-", o->name);
    else
        snprintf(left, sizeof left, "  --%s %s", o->name, o->arg ? o->arg : "VALUE");
    default_text(o, def, sizeof def);
    snprintf(text, sizeof text, "%s%s", o->help, def);
    int n = fprintf(to, "%s", left);
    if (n > HELP_COLUMN - 2) {
        fputc('\n', to);
        n = 0;
    }
    fprintf(to, "%*s", HELP_COLUMN - n, "");
    print_wrapped(to, text, HELP_COLUMN);
}

void options_print_help(FILE *to, const char *usage, const char *summary,
                        const struct option *table, size_t n)
{
    fprintf(to, "usage: %s\n\n%s\n\n", usage, summary);
    for (size_t i = 0; i < n; i++) print_option(to, &table[i]);
    fprintf(to, "  --options FILE.json%*sMore options, as {\"name\": value}.\n",
            HELP_COLUMN - 21, "");
    fprintf(to, "  --help%*sThis text.\n", HELP_COLUMN - 8, "");
    fprintf(to,
            "\nEach is an environment variable too: --some-name is GPTD_SOME_NAME; flags are 1 or "
            "0, lists\nhave a value a line or between commas. The command line counts over the "
            "environment, that over\nfiles.\n");
}

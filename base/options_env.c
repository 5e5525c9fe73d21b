/* Options from the environment: see options.h. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/options_internal.h"

enum { NAME_BYTES = 80, BYTES_PER_EDIT = 4, MAX_EDITS = 3 };

const char options_environment_mark[] = "the environment";

/* "memory-budget" with "NO_" before it: GPTD_NO_MEMORY_BUDGET. */
static void variable_name(const char *option, const char *before, char out[NAME_BYTES])
{
    snprintf(out, NAME_BYTES, OPTIONS_PREFIX "%s%s", before, option);
    for (char *s = out; *s; s++) *s = *s == '-' ? '_' : (char)toupper((unsigned char)*s);
}

/* What the variable holds, or NULL: what is set to nothing is not set. */
static const char *value_of(const char *variable)
{
    const char *value = getenv(variable);
    return value && *value ? value : NULL;
}

static bool parse_flag(const char *variable, const char *text, bool *out, struct error *err)
{
    bool on = strcmp(text, "1") == 0 || strcmp(text, "true") == 0;
    if (!on && strcmp(text, "0") != 0 && strcmp(text, "false") != 0)
        return error_set(err, ERR_INVALID, variable, "%s=%.100s: must be 1, 0, true or false",
                         variable, text);
    *out = on;
    return true;
}

static bool set_flag(const struct option *o, const char *variable, struct error *err)
{
    char negated[NAME_BYTES];
    bool on;
    variable_name(o->name, "NO_", negated);
    const char *plain = value_of(variable), *no = value_of(negated);
    if (plain) {
        if (!parse_flag(variable, plain, &on, err)) return false;
        *(bool *)o->value = on;
    }
    if (no) {
        if (!parse_flag(negated, no, &on, err)) return false;
        *(bool *)o->value = !on;
    }
    return true;
}

/* One value a line, or between commas where there is one line. Empty ones are left out, so that the
 * last line may end like the others. */
static bool set_list(const struct option *o, const char *variable, const char *text,
                     struct error *err)
{
    struct option_list *list = o->value;
    const char *separator = strchr(text, '\n') ? "\r\n" : ",";
    if (strlen(text) >= sizeof list->text)
        return error_set(err, ERR_TOO_LARGE, variable,
                         "%s: is over %zu bytes; an options file takes more", variable,
                         sizeof list->text - 1);
    strcpy(list->text, text);
    list->n = 0;
    char *rest;
    for (char *s = strtok_r(list->text, separator, &rest); s; s = strtok_r(NULL, separator, &rest))
        if (!option_set(o, s, err)) return false;
    return true;
}

/* What was wrong, with the variable before it. Kubernetes gives every pod of a namespace
 * SERVICE_PORT=tcp://ADDRESS:PORT for each of its services. */
static bool name_variable(const char *variable, const char *text, struct error *err)
{
    struct error why = *err;
    bool of_kubernetes = strncmp(text, "tcp://", 6) == 0;
    return error_set(err, why.code, why.param, "%s in the environment: %.300s%s", variable,
                     why.text,
                     of_kubernetes ? "; Kubernetes sets it for a service called gptd: say "
                                     "enableServiceLinks: false in the pod's spec"
                                   : "");
}

static bool set_from_environment(const struct option *o, struct error *err)
{
    char variable[NAME_BYTES];
    variable_name(o->name, "", variable);
    if (o->type == OPTION_FLAG) return set_flag(o, variable, err);
    const char *text = value_of(variable);
    if (!text) return true;
    bool ok = o->type == OPTION_LIST ? set_list(o, variable, text, err) : option_set(o, text, err);
    return ok || name_variable(variable, text, err);
}

/* The option that "NAME=value" nearly names, or NULL: for none, or for an option itself. A short
 * name must be nearer than a long one, or options of other subcommands would look like slips. */
static const char *slip_for(const char *name, const struct option *table, size_t n)
{
    const char *known[OPTIONS_MAX];
    char option[NAME_BYTES];
    size_t len = strcspn(name, "=");
    if (len >= sizeof option) return NULL;
    for (size_t i = 0; i < len; i++)
        option[i] = name[i] == '_' ? '-' : (char)tolower((unsigned char)name[i]);
    option[len] = 0;
    const char *bare = strncmp(option, "no-", 3) == 0 ? option + 3 : option;
    for (size_t i = 0; i < n; i++) {
        bool negated = bare != option && table[i].type == OPTION_FLAG;
        if (strcmp(table[i].name, option) == 0 || (negated && strcmp(table[i].name, bare) == 0))
            return NULL;
        known[i] = table[i].name;
    }
    size_t edits = strlen(bare) / BYTES_PER_EDIT;
    return nearest_name_within(bare, known, n, edits < MAX_EDITS ? edits : MAX_EDITS);
}

/* Says each slip once: what was said is taken out, and a second parse does not find it. */
static void warn_of_slips(const struct option *table, size_t n)
{
    const size_t prefix = strlen(OPTIONS_PREFIX);
    for (char **at = environ; at && *at;) {
        char variable[NAME_BYTES], name[NAME_BYTES];
        const char *meant = strncmp(*at, OPTIONS_PREFIX, prefix) == 0
                                ? slip_for(*at + prefix, table, n) : NULL;
        if (!meant) {
            at++;
            continue;
        }
        snprintf(name, sizeof name, "%.*s", (int)strcspn(*at, "="), *at);
        variable_name(meant, "", variable);
        log_warn("%s in the environment is no option; did you mean %s?", name, variable);
        unsetenv(name); /* what follows moves here */
    }
}

bool options_from_environment(const struct option *table, size_t n, struct error *err)
{
    for (size_t i = 0; i < n; i++)
        if (!set_from_environment(&table[i], err)) return false;
    warn_of_slips(table, n);
    return true;
}

void options_hide_environment(void)
{
    char **to = environ;
    for (char **from = environ; from && *from; from++)
        if (strncmp(*from, OPTIONS_PREFIX, strlen(OPTIONS_PREFIX)) != 0) *to++ = *from;
    if (to) *to = NULL;
}

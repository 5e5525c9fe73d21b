/* What subcommands share: see command.h. */
#include "server/command.h"

#include <stdio.h>
#include <string.h>

int command_fail(const char *command, const struct error *err)
{
    fprintf(stderr, "gptd %s: %s\n", command, err->text);
    return err->code == ERR_NO_FIT ? EXIT_NO_FIT : err->code == ERR_DEVICE ? EXIT_DEVICE : EXIT_FAILED;
}

int command_usage(const char *command, const struct error *err)
{
    fprintf(stderr, "gptd %s: %s\n", command, err->text);
    return EXIT_USAGE;
}

int32_t command_inputs(const struct option_list *named, const char **all, int n_positional)
{
    memmove(all + named->n, all, (size_t)n_positional * sizeof *all);
    memcpy(all, named->at, (size_t)named->n * sizeof *all);
    return named->n + n_positional;
}

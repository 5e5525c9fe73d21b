/* What subcommands share: see command.h. */
#include "server/command.h"

#include <stdio.h>

int command_fail(const char *command, const struct error *err)
{
    fprintf(stderr, "gptd %s: %s\n", command, err->text);
    return err->code == ERR_NO_FIT ? EXIT_NO_FIT : EXIT_FAILED;
}

int command_usage(const char *command, const struct error *err)
{
    fprintf(stderr, "gptd %s: %s\n", command, err->text);
    return EXIT_USAGE;
}

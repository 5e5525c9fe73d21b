/* `gptd key new`: prints a line for a key file. */
#include <stdio.h>
#include <string.h>

#include "server/auth.h"
#include "server/command.h"

int cmd_key(int argc, char **argv)
{
    const char *name = NULL;
    const struct option table[] = {
        {"name", OPTION_STRING, &name, 0, 0, "NAME",
         "What the log calls the key's owner: letters, digits and . _ @ + -"},
    };
    struct error err;
    char key[AUTH_NEW_KEY_SIZE];
    bool help = false, new_given = argc > 2 && strcmp(argv[2], "new") == 0;
    if (!options_parse(table, 1, argc, argv, new_given ? 3 : 2, NULL, 0, NULL, &help, &err))
        return command_usage("key", &err);
    if (help) {
        options_print_help(stdout, "gptd key new [--name NAME]",
                           "Prints a new random key as a line for a key file: gptd key new >> "
                           "FILE",
                           table, 1);
        return EXIT_DONE;
    }
    if (!new_given) {
        error_set(&err, ERR_INVALID, NULL, "say what to do: gptd key new");
        return command_usage("key", &err);
    }
    if (name && !auth_name_is_good(name, strlen(name))) {
        error_set(&err, ERR_INVALID, "name",
                  "--name %s: must be 1 to 63 of A-Z a-z 0-9 . _ @ + -", name);
        return command_usage("key", &err);
    }
    if (!auth_new_key(key, &err)) return command_fail("key", &err);
    printf(name ? "%s %s\n" : "%s\n", key, name);
    return fflush(stdout) == 0 ? EXIT_DONE : EXIT_FAILED;
}

/* What subcommands share: see command.h. */
#include "server/command.h"

#include <stdio.h>
#include <string.h>

int command_fail(const char *command, const struct error *err)
{
    fprintf(stderr, "gptd %s: %s\n", command, err->text);
    if (err->code == ERR_NO_FIT) return EXIT_NO_FIT;
    return err->code == ERR_DEVICE ? EXIT_DEVICE : EXIT_FAILED;
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

bool command_tokenizer_path(const char *given, char path[TOKENIZER_PATH_BYTES], struct error *err)
{
    static const char file[] = "tokenizer.json";
    size_t n = strlen(given), n_file = sizeof file - 1;
    if (n >= TOKENIZER_PATH_BYTES)
        return error_set(err, ERR_TOO_LARGE, "tokenizer", "--tokenizer: the path is over %d bytes",
                         TOKENIZER_PATH_BYTES - 1);
    memcpy(path, given, n + 1);
    if (strcmp(path, file) == 0) strcpy(path, ".");
    else if (n > n_file && path[n - n_file - 1] == '/' && strcmp(path + n - n_file, file) == 0)
        path[n - n_file] = 0;
    return true;
}

/* The subcommands of gptd, and what they share: exit codes and the one line that says what failed.
 * argv[0] is "gptd", argv[1] the subcommand; options begin at argv[2]. */
#pragma once

#include <stddef.h>

#include "base/error.h"
#include "base/options.h"

#ifndef GPTD_VERSION /* a release says it on the compiler's command line */
#define GPTD_VERSION "0.1.0"
#endif

enum { EXIT_DONE = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_NO_FIT = 3,
       EXIT_STALLED = 4, EXIT_DEVICE = 5 };

int cmd_serve(int argc, char **argv);
int cmd_generate(int argc, char **argv);
int cmd_inspect(int argc, char **argv);
int cmd_train(int argc, char **argv);
int cmd_eval(int argc, char **argv);
int cmd_plan(int argc, char **argv);
int cmd_convert(int argc, char **argv);
int cmd_data(int argc, char **argv);
int cmd_probe(int argc, char **argv);
int cmd_tokenizer(int argc, char **argv);
int cmd_key(int argc, char **argv);

/* "gptd serve: TEXT" on stderr; returns the exit code that the error's kind calls for. */
int command_fail(const char *command, const struct error *err);
/* The same for a command line that makes no sense: EXIT_USAGE. */
int command_usage(const char *command, const struct error *err);

/* The directory or .gguf file that --tokenizer means: DIR/tokenizer.json is DIR. */
enum { TOKENIZER_PATH_BYTES = 4096 };
bool command_tokenizer_path(const char *given, char path[TOKENIZER_PATH_BYTES], struct error *err)
    MUST_CHECK;

/* Input files: those of --input, then what stands on the command line without an option, as a
 * shell leaves it of `--input *.txt`. all[] begins with n_positional of the latter and has room
 * for OPTION_LIST_MAX more; returns how many it holds in the end. */
enum { COMMAND_MAX_INPUTS = 4096, OPTION_LIST_MAX = 16 };
int32_t command_inputs(const struct option_list *named, const char **all, int n_positional);

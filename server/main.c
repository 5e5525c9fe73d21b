/* gptd: one program, one subcommand a task. Each subcommand is a file of its own, cmd_NAME.c. */
#include <microhttpd.h>
#include <stdio.h>
#include <string.h>

#include "server/command.h"
#include "server/process.h"

struct subcommand {
    const char *name;
    const char *help;
    int (*run)(int argc, char **argv);
};

static const struct subcommand subcommands[] = {
    {"serve", "serve a model over HTTP", cmd_serve},
    {"generate", "generate text on the command line", cmd_generate},
    {"train", "train a model from text", cmd_train},
    {"eval", "loss and perplexity of a model on text", cmd_eval},
    {"plan", "print what a model takes, before anything is taken", cmd_plan},
    {"inspect", "print what a checkpoint holds", cmd_inspect},
    {"convert", "write a model in another format or element type", cmd_convert},
    {"data", "turn text into token shards for training", cmd_data},
    {"probe", "ask a server how it is", cmd_probe},
    {"tokenizer", "make a tokenizer from text", cmd_tokenizer},
    {"key", "make a key for a server's key file", cmd_key},
};
enum { N_SUBCOMMANDS = sizeof subcommands / sizeof *subcommands, OPTIONS_LIMIT = 8 << 20 };

static void print_usage(FILE *to)
{
    fprintf(to, "usage: gptd SUBCOMMAND [OPTIONS]\n\n"
                "Serves GPTs over HTTP, in memory that is known before it is taken.\n\n");
    for (int i = 0; i < N_SUBCOMMANDS; i++)
        fprintf(to, "  %-10s %s\n", subcommands[i].name, subcommands[i].help);
    fprintf(to, "\n  gptd SUBCOMMAND --help   its options\n  gptd --version\n");
}

static int unknown_subcommand(const char *name)
{
    const char *names[N_SUBCOMMANDS];
    for (int i = 0; i < N_SUBCOMMANDS; i++) names[i] = subcommands[i].name;
    const char *nearest = nearest_name(name, names, N_SUBCOMMANDS);
    if (nearest)
        fprintf(stderr, "gptd: there is no subcommand %s; did you mean %s?\n", name, nearest);
    else
        fprintf(stderr, "gptd: there is no subcommand %s; see gptd --help\n", name);
    return EXIT_USAGE;
}

/* Runs it on the command line with options files put in their places. */
static int run_subcommand(const struct subcommand *s, int argc, char **argv)
{
    struct arena memory;
    struct error err;
    int code;
    arena_init(&memory, OPTIONS_LIMIT);
    if (options_expand(argc, argv, 2, &memory, &argc, &argv, &err)) code = s->run(argc, argv);
    else code = command_usage(s->name, &err);
    arena_free(&memory);
    return code;
}

int main(int argc, char **argv)
{
    process_settle();
    if (argc < 2) {
        print_usage(stderr);
        return EXIT_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        print_usage(stdout);
        return EXIT_DONE;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("gptd %s\nlibmicrohttpd %s\n", GPTD_VERSION, MHD_get_version());
        return EXIT_DONE;
    }
    for (int i = 0; i < N_SUBCOMMANDS; i++)
        if (strcmp(argv[1], subcommands[i].name) == 0) 
            return run_subcommand(&subcommands[i], argc, argv);
    return unknown_subcommand(argv[1]);
}

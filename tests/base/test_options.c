/* Tests of base/options.c and base/options_file.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/base/option_values.h"

enum { MAX_ARGS = 32 };

/* Parses the NULL-terminated arguments after the program's name and subcommand. -1: help, 0: error,
 * 1: fine. */
static int parse(struct values *v, struct error *err, ...)
{
    char *argv[MAX_ARGS] = {"gptd", "test"};
    int argc = 2;
    va_list args;
    va_start(args, err);
    for (char *a; (a = va_arg(args, char *));) argv[argc++] = a;
    va_end(args);
    struct option table[N_TABLE];
    values_init(v, table);
    bool help;
    if (!options_parse(table, N_TABLE, argc, argv, 2, NULL, 0, NULL, &help, err)) return 0;
    return help ? -1 : 1;
}

static void test_every_type(void **state)
{
    struct values v;
    struct error err;
    assert_int_equal(parse(&v, &err, "--hint", "--no-cache", "--port", "0", "--memory-budget=6GiB",
                           "--temperature", "1e-1", "--model", "--odd", "--stop", "a", "--stop=b=c",
                           NULL), 1);
    assert_true(v.hint);
    assert_false(v.cache);
    assert_int_equal(v.port, 0);
    assert_int_equal(v.budget, 6LL << 30);
    assert_true(v.temperature == 0.1);
    assert_string_equal(v.model, "--odd");
    assert_int_equal(v.stops.n, 2);
    assert_string_equal(v.stops.at[0], "a");
    assert_string_equal(v.stops.at[1], "b=c");
}

static void test_nothing_changes_nothing(void **state)
{
    struct values v;
    struct error err;
    assert_int_equal(parse(&v, &err, NULL), 1);
    assert_int_equal(v.port, 8080);
    assert_true(v.cache);
    assert_string_equal(v.model, "none");
}

static void test_the_last_one_counts(void **state)
{
    struct values v;
    struct error err;
    assert_int_equal(parse(&v, &err, "--port", "1", "--port=2", "--hint", "--no-hint", NULL), 1);
    assert_int_equal(v.port, 2);
    assert_false(v.hint);
}

static void test_an_empty_string_is_a_value(void **state)
{
    struct values v;
    struct error err;
    assert_int_equal(parse(&v, &err, "--model=", "--stop", "", NULL), 1);
    assert_string_equal(v.model, "");
    assert_string_equal(v.stops.at[0], "");
}

static void test_help_ends_parsing(void **state)
{
    struct values v;
    struct error err;
    assert_int_equal(parse(&v, &err, "--port", "1", "--help", "--nonsense", NULL), -1);
    assert_int_equal(parse(&v, &err, "-h", NULL), -1);
}

static void test_values_that_will_not_do(void **state)
{
    static const struct { char *option, *value; } bad[] = {
        {"port", "x"}, {"port", ""}, {"port", "80 "}, {"port", "8.0"}, {"port", "-1"},
        {"port", "65536"}, {"port", "99999999999999999999"}, {"temperature", "hot"},
        {"temperature", "nan"}, {"temperature", "inf"}, {"temperature", "-0.1"},
        {"temperature", "100.1"}, {"temperature", "1e999"}, {"memory-budget", "6 apples"},
        {"memory-budget", "-1"}, {"memory-budget", ""}, {"memory-budget", "GiB"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct values v;
        struct error err;
        char option[40];
        snprintf(option, sizeof option, "--%s", bad[i].option);
        assert_int_equal(parse(&v, &err, option, bad[i].value, NULL), 0);
        assert_int_equal(err.code, ERR_INVALID);
        assert_string_equal(err.param, bad[i].option);
        assert_non_null(strstr(err.text, option));
        assert_non_null(strstr(err.text, "must be"));
    }
}

static void test_mistakes_are_explained(void **state)
{
    struct values v;
    struct error err;
    assert_int_equal(parse(&v, &err, "--modle", "x", NULL), 0);
    assert_string_equal(err.text, "there is no option --modle; did you mean --model?");
    assert_int_equal(parse(&v, &err, "--no-cashe", NULL), 0);
    assert_non_null(strstr(err.text, "--cache"));
    assert_int_equal(parse(&v, &err, "--quetzalcoatl", NULL), 0);
    assert_non_null(strstr(err.text, "--help"));
    assert_int_equal(parse(&v, &err, "--no-port", NULL), 0);
    assert_int_equal(parse(&v, &err, "--port", NULL), 0);
    assert_string_equal(err.text, "--port needs a value: --port N");
    assert_int_equal(parse(&v, &err, "--hint=yes", NULL), 0);
    assert_non_null(strstr(err.text, "takes no value"));
    assert_int_equal(parse(&v, &err, "stray", NULL), 0);
    assert_non_null(strstr(err.text, "stray"));
    assert_int_equal(parse(&v, &err, "--=x", NULL), 0);
}

static void test_a_list_has_an_end(void **state)
{
    struct values v;
    struct error err;
    char *argv[2 + 17];
    struct option table[N_TABLE];
    bool help;
    values_init(&v, table);
    for (int i = 0; i < 17; i++) argv[2 + i] = "--stop=x";
    assert_true(options_parse(table, N_TABLE, 18, argv, 2, NULL, 0, NULL, &help, &err));
    assert_int_equal(v.stops.n, 16);
    v.stops.n = 0;
    assert_false(options_parse(table, N_TABLE, 19, argv, 2, NULL, 0, NULL, &help, &err));
    assert_string_equal(err.param, "stop");
}

static void test_positional_arguments(void **state)
{
    char *argv[] = {"gptd", "test", "one", "--port", "7", "--", "--two", "three"};
    struct values v;
    struct option table[N_TABLE];
    const char *positional[3];
    int n;
    bool help;
    struct error err;
    values_init(&v, table);
    assert_true(options_parse(table, N_TABLE, 8, argv, 2, positional, 3, &n, &help, &err));
    assert_int_equal(n, 3);
    assert_string_equal(positional[0], "one");
    assert_string_equal(positional[1], "--two");
    assert_string_equal(positional[2], "three");
    assert_false(options_parse(table, N_TABLE, 8, argv, 2, positional, 2, &n, &help, &err));
    assert_non_null(strstr(err.text, "three"));
}

static void test_bytes(void **state)
{
    static const struct { const char *text; int64_t bytes; } good[] = {
        {"0", 0}, {"4096", 4096}, {"12B", 12}, {"3kB", 3000}, {"512MB", 512000000},
        {"2GB", 2000000000}, {"1TB", 1000000000000}, {"1KiB", 1024}, {"8MiB", 8 << 20},
        {"6GiB", 6442450944}, {"1TiB", 1LL << 40}, {"1.5GiB", 1610612736}, {"0.5kB", 500},
        {"6gib", 6442450944}, {"9223372036854775807", INT64_MAX},
    };
    static const char *const bad[] = {
        "", "B", "x", "-1", "+1", " 1", "1 GiB", "1.5", "1.5B", "1.GiB", ".5GiB", "1GiBB", "1Gi",
        "9223372036854775808", "8388608TiB", "99999999999999999999GiB", "1e3", "0x10",
    };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        int64_t v = -1;
        assert_true(options_parse_bytes(good[i].text, &v));
        assert_int_equal(v, good[i].bytes);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        int64_t v;
        assert_false(options_parse_bytes(bad[i], &v));
    }
}

static void test_help_shows_names_and_defaults(void **state)
{
    struct values v;
    struct option table[N_TABLE];
    char text[4096] = "";
    values_init(&v, table);
    v.budget = 6LL << 30;
    FILE *f = fmemopen(text, sizeof text, "w");
    options_print_help(f, "gptd test [OPTIONS]", "Tests.", table, N_TABLE);
    fclose(f);
    assert_non_null(strstr(text, "usage: gptd test [OPTIONS]\n"));
    assert_non_null(strstr(text, "--hint "));
    assert_non_null(strstr(text, "--no-cache ")); /* on by default: what one may say is no */
    assert_non_null(strstr(text, "--port N"));
    assert_non_null(strstr(text, "Where. (default 8080)"));
    assert_non_null(strstr(text, "(default 6144MiB)"));
    assert_non_null(strstr(text, "(default 0.8)"));
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
        assert_true(strlen(line) <= 100);
}

/* ---- Options files ---- */

static char path[] = "/tmp/gptd-test-options-XXXXXX";

static int make_file(void **state)
{
    int fd = mkstemp(path);
    return fd < 0 ? 1 : close(fd);
}

static int remove_file(void **state) { return unlink(path); }

/* Expands {gptd, test, --port, 1, --options, FILE, --port, 2} for a file with these contents. */
static bool expand(const char *json, struct arena *memory, int *argc, char ***argv,
                   struct error *err)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(json, f);
    fclose(f);
    char *args[] = {"gptd", "test", "--port", "1", "--options", path, "--port", "2"};
    arena_init(memory, 1 << 20);
    return options_expand(8, args, 2, memory, argc, argv, err);
}

static void test_a_file_becomes_arguments(void **state)
{
    struct arena memory;
    struct error err;
    int argc;
    char **argv;
    assert_true(expand("{\"model\": \"a b\", \"port\": 8081, \"temperature\": 0.25, "
                       "\"hint\": true, \"cache\": false, \"stop\": [\"x\", \"y\"]}",
                       &memory, &argc, &argv, &err));
    static const char *const expected[] = {
        "gptd", "test", "--model=a b", "--port=8081", "--temperature=0.25", "--hint", "--no-cache",
        "--stop=x", "--stop=y", "the environment", "--port", "1", "--port", "2",
    };
    assert_int_equal(argc, sizeof expected / sizeof *expected);
    for (int i = 0; i < argc; i++) assert_string_equal(argv[i], expected[i]);
    assert_null(argv[argc]);
    arena_free(&memory);
}

static void test_what_stands_before_options_stays_there(void **state)
{
    char *args[] = {"gptd", "tokenizer", "train", "--port", "1", "--", "--options", "x"};
    struct arena memory;
    struct error err;
    int argc;
    char **argv;
    arena_init(&memory, 1 << 20);
    assert_true(options_expand(8, args, 2, &memory, &argc, &argv, &err));
    assert_int_equal(argc, 9);
    assert_string_equal(argv[2], "train");
    assert_string_equal(argv[4], "--port");
    assert_string_equal(argv[7], "--options");
    arena_free(&memory);
}

static void test_files_that_will_not_do(void **state)
{
    static const char *const bad[] = {
        "", "[]", "5", "{", "{\"port\": null}", "{\"port\": {}}", "{\"stop\": [[\"x\"]]}",
        "{\"options\": \"x\"}", "{\"help\": true}", "{\"a=b\": 1}", "{\"\": 1}",
        "{\"port\": 1, \"port\": 2}",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct arena memory;
        struct error err;
        int argc;
        char **argv;
        assert_false(expand(bad[i], &memory, &argc, &argv, &err));
        assert_true(err.text[0]);
        arena_free(&memory);
    }
}

static void test_options_needs_a_file(void **state)
{
    char *args[] = {"gptd", "test", "--options"};
    char *missing[] = {"gptd", "test", "--options=/no/such/file"};
    char *literal[] = {"gptd", "test", "--", "--options"};
    struct arena memory;
    struct error err;
    int argc;
    char **argv;
    arena_init(&memory, 1 << 20);
    assert_false(options_expand(3, args, 2, &memory, &argc, &argv, &err));
    assert_int_equal(err.code, ERR_INVALID);
    assert_false(options_expand(3, missing, 2, &memory, &argc, &argv, &err));
    assert_non_null(strstr(err.text, "/no/such/file"));
    assert_true(options_expand(4, literal, 2, &memory, &argc, &argv, &err));
    assert_int_equal(argc, 5);
    arena_free(&memory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_type),
        cmocka_unit_test(test_nothing_changes_nothing),
        cmocka_unit_test(test_the_last_one_counts),
        cmocka_unit_test(test_an_empty_string_is_a_value),
        cmocka_unit_test(test_help_ends_parsing),
        cmocka_unit_test(test_values_that_will_not_do),
        cmocka_unit_test(test_mistakes_are_explained),
        cmocka_unit_test(test_a_list_has_an_end),
        cmocka_unit_test(test_positional_arguments),
        cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_help_shows_names_and_defaults),
        cmocka_unit_test(test_a_file_becomes_arguments),
        cmocka_unit_test(test_what_stands_before_options_stays_there),
        cmocka_unit_test(test_files_that_will_not_do),
        cmocka_unit_test(test_options_needs_a_file),
    };
    return cmocka_run_group_tests(tests, make_file, remove_file);
}

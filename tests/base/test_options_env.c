/* Tests of base/options_env.c: the way from the environment, an options file and the command line
 * through options_expand and options_parse. */
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

enum { MAX_ARGS = 16 };

/* Parses the NULL-terminated arguments as main does: files, environment, command line. */
static bool parse(struct values *v, struct error *err, ...)
{
    char *args[MAX_ARGS] = {"gptd", "test"};
    char **argv;
    int argc = 2;
    va_list rest;
    va_start(rest, err);
    for (char *a; (a = va_arg(rest, char *));) args[argc++] = a;
    va_end(rest);
    struct option table[N_TABLE];
    values_init(v, table);
    struct arena memory;
    bool help;
    arena_init(&memory, 1 << 20);
    bool ok = options_expand(argc, args, 2, &memory, &argc, &argv, err) &&
              options_parse(table, N_TABLE, argc, argv, 2, NULL, 0, NULL, &help, err);
    arena_free(&memory);
    return ok;
}

static int clear(void **state)
{
    options_hide_environment();
    return 0;
}

static void set(const char *name, const char *value)
{
    assert_int_equal(setenv(name, value, 1), 0);
}

static void test_every_type(void **state)
{
    struct values v;
    struct error err;
    set("GPTD_HINT", "1");
    set("GPTD_CACHE", "false");
    set("GPTD_PORT", "81");
    set("GPTD_MEMORY_BUDGET", "6GiB");
    set("GPTD_TEMPERATURE", "1e-1");
    set("GPTD_MODEL", "a,b c");
    set("GPTD_STOP", "x,y z");
    assert_true(parse(&v, &err, NULL));
    assert_true(v.hint);
    assert_false(v.cache);
    assert_int_equal(v.port, 81);
    assert_int_equal(v.budget, 6LL << 30);
    assert_true(v.temperature == 0.1);
    assert_string_equal(v.model, "a,b c");
    assert_int_equal(v.stops.n, 2);
    assert_string_equal(v.stops.at[0], "x");
    assert_string_equal(v.stops.at[1], "y z");
}

static void test_nothing_is_not_set(void **state)
{
    struct values v;
    struct error err;
    set("GPTD_PORT", "");
    set("GPTD_MODEL", "");
    set("GPTD_CACHE", "");
    set("GPTD_STOP", "");
    assert_true(parse(&v, &err, NULL));
    assert_int_equal(v.port, 8080);
    assert_string_equal(v.model, "none");
    assert_true(v.cache);
    assert_int_equal(v.stops.n, 0);
}

static void test_flags(void **state)
{
    static const struct { const char *name, *value; bool cache; } cases[] = {
        {"GPTD_CACHE", "0", false}, {"GPTD_CACHE", "true", true}, {"GPTD_NO_CACHE", "1", false},
        {"GPTD_NO_CACHE", "true", false}, {"GPTD_NO_CACHE", "0", true},
    };
    struct values v;
    struct error err;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        set(cases[i].name, cases[i].value);
        assert_true(parse(&v, &err, NULL));
        assert_int_equal(v.cache, cases[i].cache);
        unsetenv(cases[i].name);
    }
    set("GPTD_NO_HINT", "no");
    assert_false(parse(&v, &err, NULL));
    assert_string_equal(err.text, "GPTD_NO_HINT=no: must be 1, 0, true or false");
}

static void test_lists(void **state)
{
    struct values v;
    struct error err;
    set("GPTD_STOP", "a, b\nc\r\n\n");
    assert_true(parse(&v, &err, NULL));
    assert_int_equal(v.stops.n, 2);
    assert_string_equal(v.stops.at[0], "a, b");
    assert_string_equal(v.stops.at[1], "c");
    assert_true(parse(&v, &err, NULL)); /* the variable itself is left as it is */
    assert_int_equal(v.stops.n, 2);
    set("GPTD_STOP", "1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17");
    assert_false(parse(&v, &err, NULL));
    assert_non_null(strstr(err.text, "16 times"));
    char *endless = malloc(OPTION_LIST_TEXT + 1);
    memset(endless, 'x', OPTION_LIST_TEXT);
    endless[OPTION_LIST_TEXT] = 0;
    set("GPTD_STOP", endless);
    assert_false(parse(&v, &err, NULL));
    assert_int_equal(err.code, ERR_TOO_LARGE);
    set("GPTD_STOP", endless + 1);
    assert_true(parse(&v, &err, NULL));
    assert_int_equal(strlen(v.stops.at[0]), OPTION_LIST_TEXT - 1);
    free(endless);
}

static void test_values_that_will_not_do_name_the_variable(void **state)
{
    struct values v;
    struct error err;
    set("GPTD_PORT", "65536");
    assert_false(parse(&v, &err, NULL));
    assert_int_equal(err.code, ERR_INVALID);
    assert_string_equal(err.param, "port");
    assert_string_equal(err.text, "GPTD_PORT in the environment: --port 65536: must be an integer "
                                  "from 0 to 65535");
    set("GPTD_PORT", "tcp://10.0.0.1:8080");
    assert_false(parse(&v, &err, NULL));
    assert_non_null(strstr(err.text, "enableServiceLinks"));
}

static char path[] = "/tmp/gptd-test-environment-XXXXXX";

static void write_file(const char *json)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(json, f);
    fclose(f);
}

static void test_who_counts(void **state)
{
    struct values v;
    struct error err;
    write_file("{\"port\": 1, \"temperature\": 1, \"memory-budget\": 1, \"stop\": [\"a\", \"b\"]}");
    assert_true(parse(&v, &err, "--options", path, NULL));
    assert_int_equal(v.port, 1);
    assert_int_equal(v.stops.n, 2);
    set("GPTD_PORT", "2");
    set("GPTD_TEMPERATURE", "2");
    set("GPTD_STOP", "c");
    assert_true(parse(&v, &err, "--port", "3", "--options", path, NULL));
    assert_int_equal(v.port, 3);
    assert_true(v.temperature == 2);
    assert_int_equal(v.budget, 1);
    assert_int_equal(v.stops.n, 1); /* it replaces the file's */
    assert_string_equal(v.stops.at[0], "c");
    assert_true(parse(&v, &err, "--stop", "d", "--options", path, "--stop", "e", NULL));
    assert_int_equal(v.stops.n, 2);
    assert_string_equal(v.stops.at[0], "d");
    assert_string_equal(v.stops.at[1], "e");
}

static void test_an_options_file_from_the_environment(void **state)
{
    struct values v;
    struct error err;
    write_file("{\"port\": 1, \"model\": \"of the file\"}");
    set("GPTD_OPTIONS", path);
    assert_true(parse(&v, &err, "--port", "3", NULL));
    assert_int_equal(v.port, 3);
    set("GPTD_OPTIONS", "/no/such/file");
    assert_false(parse(&v, &err, NULL));
    assert_non_null(strstr(err.text, "/no/such/file"));
}

/* What goes to stderr while the environment is read. */
static void parse_saying(char *said, size_t size)
{
    struct values v;
    struct error err;
    FILE *f = tmpfile();
    int before = dup(STDERR_FILENO);
    assert_non_null(f);
    dup2(fileno(f), STDERR_FILENO);
    bool ok = parse(&v, &err, NULL);
    dup2(before, STDERR_FILENO);
    close(before);
    assert_true(ok);
    rewind(f);
    said[fread(said, 1, size - 1, f)] = 0;
    fclose(f);
}

static void test_slips_are_named_once(void **state)
{
    char said[1024];
    set("GPTD_MEMORY_BUGDET", "1");
    set("GPTD_NO_CASHE", "1");
    set("GPTD_STOPS", "x");
    parse_saying(said, sizeof said);
    assert_non_null(strstr(said, "GPTD_MEMORY_BUGDET in the environment is no option; did you mean "
                                 "GPTD_MEMORY_BUDGET?"));
    assert_non_null(strstr(said, "GPTD_NO_CASHE"));
    assert_non_null(strstr(said, "did you mean GPTD_STOP?"));
    parse_saying(said, sizeof said);
    assert_string_equal(said, "");
}

static void test_names_of_others_are_left_alone(void **state)
{
    static const char *const names[] = {
        "GPTD_BINARY", "GPTD_TEST_DATA", "GPTD_SERVICE_HOST", "GPTD_PORT_8080_TCP", "GPTD_HOST",
        "GPTD_PROMPT", "GPTD_", "GPTD_NO_", "GPT_PORT", "GPTDPORT", "GPTD_OPTIONS",
    };
    char said[1024];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) set(names[i], "");
    parse_saying(said, sizeof said);
    assert_string_equal(said, "");
}

static void test_hiding_leaves_the_rest(void **state)
{
    set("GPTD_PORT", "1");
    set("OTHER_GPTD_PORT", "2");
    options_hide_environment();
    assert_null(getenv("GPTD_PORT"));
    assert_string_equal(getenv("OTHER_GPTD_PORT"), "2");
}

static int make_file(void **state)
{
    int fd = mkstemp(path);
    return fd < 0 ? 1 : close(fd);
}

static int remove_file(void **state) { return unlink(path); }

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_every_type, clear),
        cmocka_unit_test_setup(test_nothing_is_not_set, clear),
        cmocka_unit_test_setup(test_flags, clear),
        cmocka_unit_test_setup(test_lists, clear),
        cmocka_unit_test_setup(test_values_that_will_not_do_name_the_variable, clear),
        cmocka_unit_test_setup(test_who_counts, clear),
        cmocka_unit_test_setup(test_an_options_file_from_the_environment, clear),
        cmocka_unit_test_setup(test_slips_are_named_once, clear),
        cmocka_unit_test_setup(test_names_of_others_are_left_alone, clear),
        cmocka_unit_test_setup(test_hiding_leaves_the_rest, clear),
    };
    return cmocka_run_group_tests(tests, make_file, remove_file);
}

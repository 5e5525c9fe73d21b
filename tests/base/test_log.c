/* Tests of base/log.c: stderr is a file meanwhile. */
#include <pthread.h>
#include <regex.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/log.h"

static FILE *capture;
static int old_stderr;

static void begin_capture(void)
{
    capture = tmpfile();
    assert_non_null(capture);
    old_stderr = dup(STDERR_FILENO);
    dup2(fileno(capture), STDERR_FILENO);
}

/* What was logged; the caller frees it. */
static char *end_capture(void)
{
    dup2(old_stderr, STDERR_FILENO);
    close(old_stderr);
    long n = (long)lseek(fileno(capture), 0, SEEK_END);
    char *text = calloc(1, (size_t)n + 1);
    assert_non_null(text);
    assert_int_equal(pread(fileno(capture), text, (size_t)n, 0), n);
    fclose(capture);
    return text;
}

static void test_a_line(void **state)
{
    begin_capture();
    log_warn("%d of %s", 3, "seven");
    char *text = end_capture();
    regex_t line;
    assert_int_equal(regcomp(&line, "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\\."
                                    "[0-9]{3}Z warn  3 of seven\n$", REG_EXTENDED), 0);
    assert_int_equal(regexec(&line, text, 0, NULL, 0), 0);
    regfree(&line);
    free(text);
}

static void test_levels(void **state)
{
    begin_capture();
    log_debug("no");
    log_info("yes");
    log_set_level(LOG_ERROR);
    log_warn("no");
    log_error("yes");
    log_set_level(LOG_DEBUG);
    log_debug("yes");
    log_set_level(LOG_INFO);
    char *text = end_capture();
    int n = 0;
    for (char *p = text; (p = strchr(p, '\n')); p++) n++;
    assert_int_equal(n, 3);
    assert_null(strstr(text, " no"));
    free(text);
}

static void test_level_names(void **state)
{
    enum log_level level = LOG_ERROR;
    assert_true(log_level_parse("debug", &level));
    assert_int_equal(level, LOG_DEBUG);
    assert_false(log_level_parse("loud", &level));
    assert_int_equal(level, LOG_DEBUG);
}

static void test_one_event_is_one_line_whatever_it_says(void **state)
{
    char big[5000];
    memset(big, 'x', sizeof big - 1);
    big[sizeof big - 1] = 0;
    begin_capture();
    log_info("a\nb\r\x1B[31m");
    log_info("%s", big);
    char *text = end_capture();
    assert_non_null(strstr(text, "a b  [31m\n"));
    char *second = strchr(text, '\n') + 1;
    assert_int_equal(strchr(second, '\n') - second, strlen(second) - 1);
    assert_true(strlen(second) < 1100);
    free(text);
}

static void *log_many(void *arg)
{
    for (int i = 0; i < 200; i++) log_info("from %s with care", (char *)arg);
    return NULL;
}

static void test_threads_do_not_mix_lines(void **state)
{
    pthread_t threads[4];
    begin_capture();
    for (int i = 0; i < 4; i++) pthread_create(&threads[i], NULL, log_many, "a-thread-of-its-own");
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    char *text = end_capture();
    int n = 0;
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"), n++)
        assert_string_equal(line + 25, "info  from a-thread-of-its-own with care");
    assert_int_equal(n, 800);
    free(text);
}

static void test_json(void **state)
{
    begin_capture();
    log_set_format(LOG_JSON);
    log_warn("a \"quote\", a \\, a\nline, \xc3\xa9 and \xff");
    log_event(LOG_INFO, "text", "\"status\":200");
    log_event(LOG_DEBUG, "no", "\"no\":0");
    log_set_format(LOG_TEXT);
    log_event(LOG_INFO, "text", "\"status\":200");
    char *text = end_capture();
    regex_t line;
    assert_int_equal(regcomp(&line, "^\\{\"time\":\"[0-9T:.-]{23}Z\",\"level\":\"warn\",",
                             REG_EXTENDED), 0);
    assert_int_equal(regexec(&line, text, 0, NULL, 0), 0);
    regfree(&line);
    assert_non_null(strstr(text, "\"warn\",\"message\":"
                                 "\"a \\\"quote\\\", a \\\\, a line, \xc3\xa9 and ?\"}\n"));
    assert_non_null(strstr(text, "\"info\",\"status\":200}\n"));
    assert_non_null(strstr(text, "Z info  text\n"));
    assert_null(strstr(text, "no"));
    free(text);
}

static void test_long_messages_are_cut(void **state)
{
    char long_one[3000], *text;
    memset(long_one, '"', sizeof long_one);
    long_one[sizeof long_one - 1] = 0;
    for (int format = LOG_TEXT; format <= LOG_JSON; format++) {
        begin_capture();
        log_set_format((enum log_format)format);
        log_info("%s", long_one);
        log_set_format(LOG_TEXT);
        text = end_capture();
        assert_in_range(strlen(text), 900, 2048);
        assert_string_equal(text + strlen(text) - 2, format == LOG_JSON ? "}\n" : "\"\n");
        free(text);
    }
}

static void test_format_names(void **state)
{
    enum log_format format = LOG_TEXT;
    assert_true(log_format_parse("json", &format));
    assert_int_equal(format, LOG_JSON);
    assert_false(log_format_parse("xml", &format));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_json),
        cmocka_unit_test(test_long_messages_are_cut),
        cmocka_unit_test(test_format_names),
        cmocka_unit_test(test_a_line),
        cmocka_unit_test(test_levels),
        cmocka_unit_test(test_level_names),
        cmocka_unit_test(test_one_event_is_one_line_whatever_it_says),
        cmocka_unit_test(test_threads_do_not_mix_lines),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

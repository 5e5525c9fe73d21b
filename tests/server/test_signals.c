/* Tests of server/signals.c: signals sent to this very process. */
#include <semaphore.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>

#include <cmocka.h>

#include "server/signals.h"

/* The signals that are handled from here on, as they come. */
struct seen {
    struct signals *signals;
    sem_t each;
    int numbers[4];
    int last_count;
};

static void note(void *ctx, int number, int count)
{
    struct seen *s = ctx;
    if (count <= 4) s->numbers[count - 1] = number;
    s->last_count = count;
    sem_post(&s->each);
}

static void seen_open(struct seen *s, enum signals_hangup hangup)
{
    struct error err;
    *s = (struct seen){.last_count = 0};
    sem_init(&s->each, 0, 0);
    assert_true(signals_start(hangup, note, s, &s->signals, &err));
}

static void seen_close(struct seen *s)
{
    signals_stop(s->signals);
    sem_destroy(&s->each);
}

static bool is_blocked(int number)
{
    sigset_t mask;
    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    return sigismember(&mask, number);
}

static void test_each_signal_is_a_call(void **state)
{
    struct seen s;
    seen_open(&s, HANGUP_DEFAULT);
    kill(getpid(), SIGTERM);
    sem_wait(&s.each);
    kill(getpid(), SIGINT);
    sem_wait(&s.each);
    assert_int_equal(s.numbers[0], SIGTERM);
    assert_int_equal(s.numbers[1], SIGINT);
    assert_int_equal(s.last_count, 2);
    seen_close(&s);
}

static void test_a_hangup_is_a_call_for_who_wants_it(void **state)
{
    struct seen s;
    seen_open(&s, HANGUP_DEFAULT);
    assert_false(is_blocked(SIGHUP));
    seen_close(&s);
    seen_open(&s, HANGUP_HANDLE);
    kill(getpid(), SIGHUP);
    sem_wait(&s.each);
    assert_int_equal(s.numbers[0], SIGHUP);
    seen_close(&s);
}

static void test_stop_gives_the_mask_back(void **state)
{
    struct seen s;
    seen_open(&s, HANGUP_DEFAULT);
    assert_true(is_blocked(SIGTERM));
    seen_close(&s);
    assert_false(is_blocked(SIGTERM));
    signals_stop(NULL);
}

static void test_a_closed_pipe_is_no_end(void **state)
{
    struct seen s;
    int ends[2];
    seen_open(&s, HANGUP_DEFAULT);
    assert_int_equal(pipe(ends), 0);
    close(ends[0]);
    assert_int_equal(write(ends[1], "x", 1), -1);
    close(ends[1]);
    seen_close(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_signal_is_a_call),
        cmocka_unit_test(test_a_hangup_is_a_call_for_who_wants_it),
        cmocka_unit_test(test_stop_gives_the_mask_back),
        cmocka_unit_test(test_a_closed_pipe_is_no_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

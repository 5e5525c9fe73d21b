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

struct seen { sem_t each; int numbers[4]; int last_count; };

static void note(void *ctx, int number, int count)
{
    struct seen *s = ctx;
    if (count <= 4) s->numbers[count - 1] = number;
    s->last_count = count;
    sem_post(&s->each);
}

static void test_each_signal_is_a_call(void **state)
{
    struct seen s = {.last_count = 0};
    struct signals *signals;
    struct error err;
    sem_init(&s.each, 0, 0);
    assert_true(signals_start(HANGUP_DEFAULT, note, &s, &signals, &err));
    kill(getpid(), SIGTERM);
    sem_wait(&s.each);
    kill(getpid(), SIGINT);
    sem_wait(&s.each);
    assert_int_equal(s.numbers[0], SIGTERM);
    assert_int_equal(s.numbers[1], SIGINT);
    assert_int_equal(s.last_count, 2);
    signals_stop(signals);
    sem_destroy(&s.each);
}

static void test_a_hangup_is_a_call_for_who_wants_it(void **state)
{
    struct seen s = {.last_count = 0};
    struct signals *signals;
    struct error err;
    sigset_t mask;
    sem_init(&s.each, 0, 0);
    assert_true(signals_start(HANGUP_DEFAULT, note, &s, &signals, &err));
    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    assert_false(sigismember(&mask, SIGHUP));
    signals_stop(signals);
    assert_true(signals_start(HANGUP_HANDLE, note, &s, &signals, &err));
    kill(getpid(), SIGHUP);
    sem_wait(&s.each);
    assert_int_equal(s.numbers[0], SIGHUP);
    signals_stop(signals);
    sem_destroy(&s.each);
}

static void test_stop_gives_the_mask_back(void **state)
{
    struct seen s = {.last_count = 0};
    struct signals *signals;
    struct error err;
    sigset_t mask;
    sem_init(&s.each, 0, 0);
    assert_true(signals_start(HANGUP_DEFAULT, note, &s, &signals, &err));
    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    assert_true(sigismember(&mask, SIGTERM));
    signals_stop(signals);
    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    assert_false(sigismember(&mask, SIGTERM));
    signals_stop(NULL);
    sem_destroy(&s.each);
}

static void test_a_closed_pipe_is_no_end(void **state)
{
    struct seen s = {.last_count = 0};
    struct signals *signals;
    struct error err;
    int ends[2];
    sem_init(&s.each, 0, 0);
    assert_true(signals_start(HANGUP_DEFAULT, note, &s, &signals, &err));
    assert_int_equal(pipe(ends), 0);
    close(ends[0]);
    assert_int_equal(write(ends[1], "x", 1), -1);
    close(ends[1]);
    signals_stop(signals);
    sem_destroy(&s.each);
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

/* Many owners at once: threads that submit, read, cancel and free at random moments. Every reply
 * that finished equals the same request run alone, every one that was cut short is a beginning of
 * it, and nothing is held at the end. */
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "tests/model/engine_fixture.h"

enum { N_CLIENTS = 64, N_ROUNDS = 4, N_KINDS = 24, MAX_CHOICES = 3, MAX_REPLY = 40 };

static const char MODEL[] = "tests/golden/llama";

/* The tokens of each kind of request, run alone. */
static struct reply {
    int32_t n[MAX_CHOICES];
    struct engine_token tokens[MAX_CHOICES][MAX_REPLY];
} replies[N_KINDS];

static void run_alone(void)
{
    struct engine_options o = fixture_options();
    o.prefix_cache = false;
    struct engine_fixture f;
    fixture_open(&f, MODEL, &o);
    for (int i = 0; i < N_KINDS; i++) {
        struct job j;
        job_init(&j, (uint64_t)i + 500, f.engine);
        job_run(&j, f.engine);
        for (int k = 0; k < j.params.n; k++) {
            const struct engine_choice *c = &j.request->choices[k];
            replies[i].n[k] = atomic_load(&c->n_tokens);
            memcpy(replies[i].tokens[k], c->tokens, (size_t)replies[i].n[k] * sizeof *c->tokens);
        }
        job_free(&j);
    }
    fixture_close(&f);
}

/* What notify gets: lives exactly as long as the client's round, like a connection's state. */
struct bell {
    pthread_mutex_t lock;
    pthread_cond_t rung;
    int64_t rings;
};

static void ring(void *ctx)
{
    struct bell *b = ctx;
    pthread_mutex_lock(&b->lock);
    b->rings++;
    pthread_cond_signal(&b->rung);
    pthread_mutex_unlock(&b->lock);
}

static struct bell *bell_new(void)
{
    struct bell *b = calloc(1, sizeof *b);
    pthread_mutex_init(&b->lock, NULL);
    pthread_cond_init(&b->rung, NULL);
    return b;
}

static void bell_free(struct bell *b)
{
    pthread_mutex_destroy(&b->lock);
    pthread_cond_destroy(&b->rung);
    memset(b, 0xDD, sizeof *b); /* a late ring would trip over this */
    free(b);
}

struct client {
    struct engine *engine;
    uint64_t seed;
    _Atomic int n_finished;
    int n_cut, n_refused;
    int n_patient, n_hopeless; /* of these, those that had to finish, and to be cut */
    const char *_Atomic fault; /* cmocka's asserts work on the main thread only */
};

/* Everything published so far agrees with the reply alone. */
static bool agrees(const struct job *j, const struct reply *want)
{
    for (int k = 0; k < j->params.n; k++) {
        const struct engine_choice *c = &j->request->choices[k];
        int32_t n = atomic_load_explicit(&c->n_tokens, memory_order_acquire);
        if (n > want->n[k]) return false;
        for (int32_t i = 0; i < n; i++) {
            const struct engine_token *a = &c->tokens[i], *b = &want->tokens[k][i];
            if (a->id != b->id || a->logprob != b->logprob || a->is_stop != b->is_stop)
                return false;
        }
    }
    return true;
}

/* Follows the reply by the bell; after `patience` rings the client goes away. */
static void follow(struct client *c, struct job *j, struct bell *b, const struct reply *want,
                   int64_t patience)
{
    struct engine_request *r = j->request;
    int64_t heard = 0;
    while (atomic_load_explicit(&r->state, memory_order_acquire) != REQUEST_DONE) {
        pthread_mutex_lock(&b->lock);
        while (b->rings == heard) pthread_cond_wait(&b->rung, &b->lock);
        heard = b->rings;
        pthread_mutex_unlock(&b->lock);
        if (!agrees(j, want)) c->fault = "a token differs";
        if (heard > patience) engine_cancel(c->engine, r);
    }
}

enum mood { ON_TIME, IMPATIENT, CHANGES_ITS_MIND, CANCELS_AT_ONCE, TOO_LATE, PATIENT, N_MOODS = 8 };

static void check_end(struct client *c, const struct job *j, const struct reply *want,
                      enum mood mood)
{
    bool cut = false;
    for (int k = 0; k < j->params.n; k++) {
        const struct engine_choice *choice = &j->request->choices[k];
        int32_t reason = atomic_load(&choice->finish);
        if (reason == FINISH_CANCELED || reason == FINISH_DEADLINE) cut = true;
        else if (reason != FINISH_STOP && reason != FINISH_LENGTH) c->fault = "a strange end";
        else if (atomic_load(&choice->n_tokens) != want->n[k]) c->fault = "a reply is too short";
    }
    if (!agrees(j, want)) c->fault = "a reply differs";
    if (cut) c->n_cut++;
    else c->n_finished++;
    if (mood >= PATIENT && cut) c->fault = "a reply was cut short for no reason";
    if (mood >= PATIENT) c->n_patient++;
    if (mood == TOO_LATE && !cut) c->fault = "a reply came after its deadline";
    if (mood == TOO_LATE) c->n_hopeless++;
}

static void one_request(struct client *c, struct rng *g)
{
    int kind = rng_below(g, N_KINDS);
    const struct reply *want = &replies[kind];
    struct job j;
    job_init(&j, (uint64_t)kind + 500, c->engine);
    struct bell *b = bell_new();
    j.params.notify = ring;
    j.params.ctx = b;
    enum mood mood = (enum mood)rng_below(g, N_MOODS);
    if (mood == ON_TIME) j.params.deadline_ns = clock_ns() + rng_below(g, 20) * 1000000;
    if (mood == TOO_LATE) j.params.deadline_ns = clock_ns();
    int64_t patience = mood == IMPATIENT ? rng_below(g, 8) : INT64_MAX;
    struct error err;
    if (!engine_request_new(c->engine, &j.params, &j.request, &err)) {
        c->fault = "a request was refused";
        return;
    }
    if (mood == CHANGES_ITS_MIND) { /* before submitting */
        engine_request_free(j.request);
        bell_free(b);
        return;
    }
    while (!engine_submit(c->engine, j.request, &err)) { /* retry later, as a 429 says */
        if (err.code != ERR_BUSY) c->fault = "refused, but not for being busy";
        c->n_refused++;
        usleep(1000);
    }
    if (mood == CANCELS_AT_ONCE) engine_cancel(c->engine, j.request);
    follow(c, &j, b, want, patience);
    check_end(c, &j, want, mood);
    engine_request_free(j.request); /* from here on nobody rings */
    bell_free(b);
}

static void *client_main(void *arg)
{
    struct client *c = arg;
    struct rng g = {c->seed};
    for (int i = 0; i < N_ROUNDS; i++) one_request(c, &g);
    return NULL;
}

/* Reads the numbers all the while, as a metrics scraper would. */
struct watcher {
    struct engine *engine;
    _Atomic bool stop;
    const char *fault;
};

static void *watch(void *arg)
{
    struct watcher *c = arg;
    int64_t steps = 0;
    do {
        struct engine_stats s;
        engine_stats(c->engine, &s);
        if (s.n_steps < steps || s.kv.active < 0 || s.kv.active > s.kv.total)
            c->fault = "odd numbers";
        if (s.kv.free + s.kv.cached + s.kv.active != s.kv.total) c->fault = "pages are missing";
        steps = s.n_steps;
        sched_yield();
    } while (!atomic_load(&c->stop));
    return NULL;
}

static void run_clients(struct engine_options o)
{
    struct engine_fixture f;
    fixture_open(&f, MODEL, &o);
    pthread_t threads[N_CLIENTS], watching;
    struct client clients[N_CLIENTS];
    struct watcher watcher = {.engine = f.engine};
    assert_int_equal(pthread_create(&watching, NULL, watch, &watcher), 0);
    for (int i = 0; i < N_CLIENTS; i++) {
        clients[i] = (struct client){.engine = f.engine, .seed = (uint64_t)i * 0x9E3779B97F4A7C15u};
        assert_int_equal(pthread_create(&threads[i], NULL, client_main, &clients[i]), 0);
    }
    int finished = 0, cut = 0, refused = 0, patient = 0, hopeless = 0;
    const char *fault = NULL;
    for (int i = 0; i < N_CLIENTS; i++) {
        pthread_join(threads[i], NULL);
        finished += clients[i].n_finished;
        cut += clients[i].n_cut;
        refused += clients[i].n_refused;
        patient += clients[i].n_patient;
        hopeless += clients[i].n_hopeless;
        if (clients[i].fault) fault = clients[i].fault;
    }
    atomic_store(&watcher.stop, true);
    pthread_join(watching, NULL);
    if (watcher.fault) fault = watcher.fault;
    print_message("%d finished, %d cut short, %d refused\n", finished, cut, refused);
    if (fault) fail_msg("%s", fault);
    /* Who leaves in time to be cut short is a matter of speed; the seeds alone decide who stays to
     * the end, and who comes too late. */
    assert_true(patient > 50 && hopeless > 10);
    assert_true(finished >= patient && cut >= hopeless);
    if (o.max_queue >= N_CLIENTS) assert_int_equal(refused, 0);
    fixture_assert_clean(&f);
    fixture_close(&f);
}

static void test_many_clients(void **state)
{
    (void)state;
    run_alone();
    struct engine_options o = fixture_options();
    run_clients(o);
    o.max_batch_tokens = 7;
    o.max_seqs = 5;
    o.max_queue = 20;
    run_clients(o);
}

/* Requests come in while the engine drains: each is refused or finishes, none is lost. */
static void *submit_until_refused(void *arg)
{
    struct client *c = arg;
    for (;;) {
        struct job j;
        job_init_plain(&j, 5, 20);
        struct error err;
        if (!engine_request_new(c->engine, &j.params, &j.request, &err)) {
            c->fault = "a request was refused";
            return NULL;
        }
        bool ok = engine_submit(c->engine, j.request, &err);
        if (ok) {
            engine_wait(c->engine, j.request);
            int32_t reason = atomic_load(&j.request->choices[0].finish);
            if (reason == FINISH_SHUTDOWN) c->n_cut++;
            else if (reason == FINISH_LENGTH) c->n_finished++;
            else c->fault = "a strange end";
        }
        engine_request_free(j.request);
        if (!ok && err.code == ERR_UNAVAILABLE) return NULL;
    }
}

static void test_drain_under_load(void **state)
{
    (void)state;
    struct engine_fixture f;
    fixture_open(&f, MODEL, NULL);
    pthread_t threads[8];
    struct client clients[8];
    for (int i = 0; i < 8; i++) {
        clients[i] = (struct client){.engine = f.engine};
        assert_int_equal(pthread_create(&threads[i], NULL, submit_until_refused, &clients[i]), 0);
    }
    for (int i = 0; i < 8; i++)
        while (atomic_load(&clients[i].n_finished) < 3 && !clients[i].fault) usleep(1000);
    engine_drain(f.engine);
    for (int i = 0; i < 8; i++) {
        pthread_join(threads[i], NULL);
        assert_null(clients[i].fault);
        assert_int_equal(clients[i].n_cut, 0); /* what was accepted finished */
    }
    fixture_assert_clean(&f);
    fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_many_clients),
        cmocka_unit_test(test_drain_under_load),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

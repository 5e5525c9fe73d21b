/* The engine: a request's life, its edges and its refusals, on a device whose steps are held. */
#include <math.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "tests/model/engine_fixture.h"

static const char MODEL[] = "tests/golden/llama"; /* context 128, vocabulary 160 */

static int32_t n_tokens(const struct job *j, int32_t choice)
{
    return atomic_load(&j->request->choices[choice].n_tokens);
}

static enum finish_reason finish(const struct job *j)
{
    return (enum finish_reason)atomic_load(&j->request->choices[0].finish);
}

static bool is_done(const struct job *j) { return atomic_load(&j->request->state) == REQUEST_DONE; }

static struct engine_stats stats_of(const struct engine_fixture *f)
{
    struct engine_stats s;
    engine_stats(f->engine, &s);
    return s;
}

static void begin_plain(struct job *j, struct engine_fixture *f, int32_t n_prompt,
                        int32_t max_tokens)
{
    job_init_plain(j, n_prompt, max_tokens);
    assert_true(job_new(j, f->engine));
    job_submit(j, f->engine);
}

static void run_plain(struct job *j, struct engine_fixture *f, int32_t n_prompt, int32_t max_tokens)
{
    job_init_plain(j, n_prompt, max_tokens);
    job_run(j, f->engine);
}

/* Waits, checks how it ended, frees. */
static void end(struct job *j, struct engine_fixture *f, enum finish_reason reason, int32_t tokens)
{
    engine_wait(f->engine, j->request);
    assert_true(is_done(j));
    assert_int_equal(finish(j), reason);
    if (tokens >= 0) assert_int_equal(n_tokens(j, 0), tokens);
    job_free(j);
}

static void close_clean(struct engine_fixture *f)
{
    fixture_assert_clean(f);
    assert_int_equal(atomic_load(&f->n_allocs), 1); /* the arena, and nothing ever after */
    fixture_close(f);
}

/* ---- Memory ---- */

static void test_plan_is_the_allocation(void **state)
{
    (void)state;
    struct engine_fixture f;
    fixture_open(&f, MODEL, NULL);
    struct engine_memory m = stats_of(&f).memory;
    int64_t sum = 0;
    for (int i = 0; i < N_MEMORY_COMPONENTS; i++) {
        assert_int_equal(m.planned[i], m.allocated[i]);
        sum += m.allocated[i];
    }
    assert_true(m.planned[MEMORY_WEIGHTS] > 0 && m.planned[MEMORY_KV_CACHE] > 0);
    assert_true(m.planned[MEMORY_ACTIVATIONS] > 0 && m.planned[MEMORY_WORKSPACE] > 0);
    assert_true(m.planned[MEMORY_STAGING] > 0 && m.planned[MEMORY_HOST] > 0);
    assert_int_equal(m.planned_bytes, sum);
    assert_int_equal(m.allocated_bytes, sum);
    assert_int_equal(f.alloc_bytes, f.engine->device_plan.total);
    assert_int_equal(f.alloc_bytes + f.engine->host_plan.total, sum);
    /* Two full sequences of 8 pages for 8 slots. */
    assert_int_equal(stats_of(&f).kv.total, 2 * 8);
    assert_int_equal(m.in_use[MEMORY_KV_CACHE], 0);
    assert_int_equal(m.in_use[MEMORY_WEIGHTS], m.planned[MEMORY_WEIGHTS]);
    /* Loading went through planned memory too. */
    int64_t load = gpt_load_staging_bytes(&f.engine->gpt);
    assert_true(load > 0 && load < m.planned[MEMORY_STAGING]);
    assert_int_equal(m.in_use[MEMORY_STAGING], m.planned[MEMORY_STAGING] - load);

    struct job j;
    begin_plain(&j, &f, 40, 9);
    end(&j, &f, FINISH_LENGTH, 9);
    m = stats_of(&f).memory;
    assert_int_equal(m.peak[MEMORY_KV_CACHE], 3 * m.kv_page_bytes);
    for (int i = 0; i < N_MEMORY_COMPONENTS; i++) assert_true(m.peak[i] <= m.planned[i]);
    assert_int_equal(m.in_use[MEMORY_KV_CACHE], 0);
    close_clean(&f);
}

/* The pieces that engine_plan lists, added up by reaching furthest. */
struct listed { int64_t n, end[2], kv; int32_t arenas; };

static void see_piece(void *ctx, const struct plan_item *item)
{
    struct listed *l = ctx;
    assert_non_null(item->name);
    assert_true(item->bytes > 0 && item->offset % DEVICE_ALIGN == 0);
    if (item->offset == 0 && (strcmp(item->name, "engine") == 0
                              || strcmp(item->name, "token_embedding") == 0))
        l->arenas++;
    int which = l->arenas == 2; /* the host arena is listed first */
    if (item->offset + item->bytes > l->end[which]) l->end[which] = item->offset + item->bytes;
    if (item->component == MEMORY_KV_CACHE) l->kv += item->bytes;
    l->n++;
}

static void test_plan_without_opening(void **state)
{
    (void)state;
    struct engine_fixture f;
    struct engine_need need;
    struct listed listed = {0};
    struct error err;
    fixture_open(&f, MODEL, NULL);
    struct engine_options o = fixture_options();
    assert_true(
        engine_plan(engine_config(f.engine), &o, f.device, see_piece, &listed, &need, &err));
    struct engine_memory m = stats_of(&f).memory;
    assert_memory_equal(need.memory.component, m.allocated, sizeof m.allocated);
    assert_int_equal(need.memory.total_bytes, m.allocated_bytes);
    assert_int_equal(need.memory.device_bytes, f.alloc_bytes);
    assert_int_equal(need.kv_pages, stats_of(&f).kv.total);
    assert_int_equal(need.kv_page_bytes, m.kv_page_bytes);
    assert_int_equal(listed.end[0], need.memory.host_bytes);
    assert_int_equal(listed.end[1], need.memory.device_bytes);
    assert_int_equal(listed.kv, m.allocated[MEMORY_KV_CACHE]);
    o.max_context = 1 << 30;
    assert_false(engine_plan(engine_config(f.engine), &o, f.device, NULL, NULL, &need, &err));
    assert_string_equal(err.param, "max_context");
    close_clean(&f);
}

/* A device whose workspace shrinks once its memory is there. */
static const struct device_ops *honest;
static bool shrunk;

static void *alloc_and_shrink(struct device *d, size_t bytes, struct error *err)
{
    shrunk = true;
    return honest->alloc(d, bytes, err);
}

static int64_t shrinking_workspace(const struct device *d, const struct workspace_shape *s)
{
    return honest->workspace_bytes(d, s) - (shrunk ? 2 * DEVICE_ALIGN : 0);
}

static void test_what_is_not_as_planned_does_not_serve(void **state)
{
    (void)state;
    struct engine_fixture f;
    struct error err = {0};
    fixture_open(&f, MODEL, NULL);
    engine_close(f.engine);
    struct engine_options o = fixture_options();
    struct device_ops liar = *(honest = f.device->ops);
    liar.alloc = alloc_and_shrink;
    liar.workspace_bytes = shrinking_workspace;
    f.device->ops = &liar;
    assert_false(engine_open(f.device, f.checkpoint, f.tokenizer, &o, &f.engine, &err));
    assert_int_equal(err.code, ERR_INTERNAL);
    assert_non_null(strstr(err.text, "the memory plan and the allocation differ: planned"));
    f.device->ops = honest;
    assert_true(engine_open(f.device, f.checkpoint, f.tokenizer, &o, &f.engine, &err));
    fixture_close(&f);
}

static void test_budget(void **state)
{
    (void)state;
    struct engine_fixture f;
    struct error err = {0};
    fixture_open(&f, MODEL, NULL);
    struct engine_options o = fixture_options();
    int64_t whole = stats_of(&f).memory.planned_bytes;
    fixture_close(&f);

    o.memory_budget = whole; /* to the byte */
    fixture_open(&f, MODEL, &o);
    assert_int_equal(stats_of(&f).kv.total, 16);
    fixture_close(&f);

    o.memory_budget = whole - 1;
    fixture_open(&f, MODEL, &o);
    assert_true(stats_of(&f).kv.total < 16 && stats_of(&f).kv.total >= 8);
    assert_true(stats_of(&f).memory.planned_bytes <= o.memory_budget);
    struct job j;
    begin_plain(&j, &f, 100, 28);
    end(&j, &f, FINISH_LENGTH, 28);
    close_clean(&f);

    o.memory_budget = whole / 4;
    assert_false(fixture_try_open(&f, MODEL, &o, &err));
    assert_int_equal(err.code, ERR_NO_FIT);
    assert_string_equal(err.param, "memory_budget");
    char number[32];
    snprintf(number, sizeof number, "%lld", (long long)o.memory_budget);
    assert_non_null(strstr(err.text, number));
    assert_non_null(strstr(err.text, "for 8 pages"));
    assert_int_equal(atomic_load(&f.n_allocs), 0); /* said no before taking anything */
    fixture_close(&f);
}

static void refuse_options(struct engine_options o, enum error_code code, const char *param)
{
    struct engine_fixture f;
    struct error err = {0};
    assert_false(fixture_try_open(&f, MODEL, &o, &err));
    assert_int_equal(err.code, code);
    assert_string_equal(err.param, param);
    fixture_close(&f);
}

#define WITH(field, v) (o = fixture_options(), o.field = (v), o)

static void test_options_refused(void **state)
{
    (void)state;
    struct engine_options o;
    refuse_options(WITH(max_seqs, 0), ERR_INVALID, "max_seqs");
    refuse_options(WITH(max_seqs, 5000), ERR_INVALID, "max_seqs");
    refuse_options(WITH(max_batch_tokens, 0), ERR_INVALID, "max_batch_tokens");
    refuse_options(WITH(max_queue, 0), ERR_INVALID, "max_queue");
    refuse_options(WITH(max_context, 129), ERR_INVALID, "max_context");
    refuse_options(WITH(max_context, -1), ERR_INVALID, "max_context");
    refuse_options(WITH(dtype, DTYPE_F16), ERR_UNSUPPORTED, "dtype"); /* by the CPU */
    refuse_options(WITH(dtype, DTYPE_Q4_K), ERR_INVALID, "dtype");
    refuse_options(WITH(kv_dtype, DTYPE_F16), ERR_UNSUPPORTED, "kv_dtype"); /* by the CPU */
    refuse_options(WITH(kv_bytes, 10), ERR_NO_FIT, "kv_bytes");
    refuse_options(WITH(memory_budget, -5), ERR_INVALID, "memory_budget");
}

/* ---- What is refused ---- */

static void refuse(struct engine_fixture *f, const struct engine_params *p, enum error_code code,
                   const char *param)
{
    struct engine_request *r = NULL;
    struct error err = {0};
    assert_false(engine_request_new(f->engine, p, &r, &err));
    assert_null(r);
    assert_int_equal(err.code, code);
    assert_string_equal(err.param, param);
    assert_true(err.text[0] != 0);
}

static void test_request_refused(void **state)
{
    (void)state;
    struct engine_fixture f;
    fixture_open(&f, MODEL, NULL);
    struct job j;
    job_init_plain(&j, 10, 5);
    struct engine_params p;
#define BUT(field, v) (p = j.params, p.field = (v), &p)
    refuse(&f, BUT(n_prompt, 0), ERR_INVALID, "prompt");
    refuse(&f, BUT(n_prompt, 129), ERR_INVALID, "prompt");
    refuse(&f, BUT(max_tokens, 0), ERR_INVALID, "max_tokens");
    refuse(&f, BUT(max_tokens, -1), ERR_INVALID, "max_tokens");
    refuse(&f, BUT(max_tokens, 119), ERR_INVALID, "max_tokens");
    refuse(&f, BUT(max_tokens, INT32_MAX), ERR_INVALID, "max_tokens");
    refuse(&f, BUT(n, 0), ERR_INVALID, "n");
    refuse(&f, BUT(n, 9), ERR_INVALID, "n");
    refuse(&f, BUT(n_top, 21), ERR_INVALID, "logprobs");
    refuse(&f, BUT(n_top, -1), ERR_INVALID, "logprobs");
    refuse(&f, BUT(sampling.temperature, -1), ERR_INVALID, "temperature");
    refuse(&f, BUT(n_stop_ids, -1), ERR_INVALID, "stop_ids");
    refuse(&f, BUT(stops.n, STOP_MAX + 1), ERR_INVALID, "stop");
    refuse(&f, BUT(stops.n, 1), ERR_INVALID, "stop"); /* an empty string */
    j.prompt[3] = 160;
    refuse(&f, &j.params, ERR_INVALID, "prompt");
    j.prompt[3] = -1;
    refuse(&f, &j.params, ERR_INVALID, "prompt");
    j.prompt[3] = 0;
    /* 100 + 28 - 1 tokens: 8 pages, of which 6 are shared; the pool has 16. */
    job_init_plain(&j, 100, 28);
    refuse(&f, BUT(n, 6), ERR_NO_FIT, "n");
    p.n = 5;
    struct engine_request *r;
    assert_true(engine_request_new(f.engine, &p, &r, NULL));
    engine_request_free(r); /* never submitted */
    engine_request_free(NULL);
#undef BUT
    close_clean(&f);
}

static void test_pool_smaller_than_a_request(void **state)
{
    (void)state;
    struct engine_fixture f;
    fixture_open(&f, MODEL, NULL);
    struct engine_options o = fixture_options();
    o.kv_bytes = 3 * stats_of(&f).memory.kv_page_bytes;
    fixture_close(&f);
    fixture_open(&f, MODEL, &o);
    struct job j;
    job_init_plain(&j, 30, 20); /* 49 tokens: 4 pages */
    refuse(&f, &j.params, ERR_NO_FIT, "max_tokens");
    begin_plain(&j, &f, 30, 19); /* 48 tokens: 3 */
    end(&j, &f, FINISH_LENGTH, 19);
    close_clean(&f);
}

/* ---- Lengths ---- */

static void test_lengths(void **state)
{
    (void)state;
    static const int32_t cases[][2] = {{1, 1},   {1, 127},  {15, 1}, {16, 1}, {16, 16}, {17, 15},
                                       {32, 17}, {127, 1}, {112, 16}, {64, 64}};
    struct engine_fixture f;
    fixture_open(&f, MODEL, NULL);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct job j;
        begin_plain(&j, &f, cases[i][0], cases[i][1]);
        end(&j, &f, FINISH_LENGTH, cases[i][1]);
        fixture_assert_clean(&f);
    }
    close_clean(&f);
}

static void test_prefix_hits(void **state)
{
    (void)state;
    /* Prompt, then what a second, equal one finds: its last token is always computed. */
    static const int32_t cases[][2] = {{1, 0}, {16, 0}, {17, 16}, {32, 16}, {33, 32}, {90, 80}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct engine_fixture f;
        fixture_open(&f, MODEL, NULL);
        struct job j;
        run_plain(&j, &f, cases[i][0], 2);
        assert_int_equal(j.request->n_cached, 0);
        job_free(&j);
        run_plain(&j, &f, cases[i][0], 2);
        assert_int_equal(j.request->n_cached, cases[i][1]);
        job_free(&j);
        job_init_plain(&j, cases[i][0], 2);
        j.params.cache_salt = 7;
        job_run(&j, f.engine);
        assert_int_equal(j.request->n_cached, 0); /* another salt shares nothing */
        job_free(&j);
        close_clean(&f);
    }
}

static void test_reply_is_found_again(void **state)
{
    (void)state;
    struct engine_fixture f;
    fixture_open(&f, MODEL, NULL);
    struct job j, next;
    run_plain(&j, &f, 20, 20);
    /* The next turn of a chat begins with prompt and reply: 39 of their tokens were computed. */
    job_init_plain(&next, 20, 2);
    for (int i = 0; i < 20; i++) next.prompt[20 + i] = j.request->choices[0].tokens[i].id;
    next.params.n_prompt = 40;
    job_run(&next, f.engine);
    assert_int_equal(next.request->n_cached, 32);
    job_free(&j);
    job_free(&next);
    close_clean(&f);
}

static void test_choices_share_the_prompt(void **state)
{
    (void)state;
    for (int prefix = 0; prefix < 2; prefix++) {
        struct engine_options o = fixture_options();
        o.prefix_cache = prefix;
        struct engine_fixture f;
        fixture_open(&f, MODEL, &o);
        struct job j;
        job_init_plain(&j, 40, 4);
        j.params.n = 3;
        j.params.sampling.temperature = 1;
        assert_true(job_new(&j, f.engine));
        fixture_hold(&f);
        job_submit(&j, f.engine);
        fixture_wait_step(&f, 1);
        fixture_let(&f, 1);
        fixture_wait_step(&f, 2);
        struct engine_stats s = stats_of(&f);
        assert_int_equal(s.running, 3);
        assert_int_equal(s.kv.shared, 2); /* of 40 tokens, 32 */
        fixture_unhold(&f);
        engine_wait(f.engine, j.request);
        const struct engine_choice *c = j.request->choices;
        for (int i = 0; i < 3; i++) assert_int_equal(n_tokens(&j, i), 4);
        assert_memory_not_equal(c[0].tokens, c[1].tokens, 4 * sizeof *c[0].tokens);
        assert_memory_not_equal(c[1].tokens, c[2].tokens, 4 * sizeof *c[0].tokens);
        /* The prompt once, and 8 rows for each other choice. */
        assert_int_equal(stats_of(&f).n_prefill_tokens, 40 + 2 * 8);
        job_free(&j);
        close_clean(&f);
    }
}

static void test_scoring_alone(void **state)
{
    (void)state;
    struct engine_fixture f;
    fixture_open(&f, MODEL, NULL);
    for (int32_t n = 1; n <= 128; n += 127) {
        struct job j;
        job_init_plain(&j, n, 0);
        j.params.prompt_logprobs = true;
        j.params.n_top = 2;
        job_run(&j, f.engine);
        const struct engine_request *r = j.request;
        assert_int_equal(atomic_load(&r->n_prompt_scored), n > 1 ? n : 1);
        assert_int_equal(r->prompt_scores[0].id, j.prompt[0]);
        assert_int_equal(r->prompt_top[0].id, -1);
        for (int32_t i = 1; i < n; i++) {
            assert_int_equal(r->prompt_scores[i].id, j.prompt[i]);
            assert_true(r->prompt_scores[i].logprob < 0);
            assert_true(r->prompt_top[2 * i].logprob >= r->prompt_scores[i].logprob);
        }
        end(&j, &f, FINISH_LENGTH, 0);
    }
    close_clean(&f);
}

/* ---- Stops ---- */

static void test_stop_id_ends_it(void **state)
{
    (void)state;
    struct engine_fixture f;
    fixture_open(&f, MODEL, NULL);
    struct job j;
    run_plain(&j, &f, 10, 12);
    int32_t at = 5, stop = j.request->choices[0].tokens[at].id;
    for (int32_t i = 0; i < at; i++)
        if (j.request->choices[0].tokens[i].id == stop) at = i;
    job_free(&j);

    job_init_plain(&j, 10, 12);
    j.params.stop_ids = &stop;
    j.params.n_stop_ids = 1;
    job_run(&j, f.engine);
    const struct engine_choice *c = &j.request->choices[0];
    for (int32_t i = 0; i <= at; i++) assert_int_equal(c->tokens[i].is_stop, i == at);
    assert_int_equal(c->text_bytes, -1);
    end(&j, &f, FINISH_STOP, at + 1);

    job_init_plain(&j, 10, 12);
    j.params.stop_ids = &stop;
    j.params.n_stop_ids = 1;
    j.params.ignore_eos = true; /* it cannot even be drawn */
    job_run(&j, f.engine);
    for (int32_t i = 0; i < 12; i++) assert_int_not_equal(j.request->choices[0].tokens[i].id, stop);
    end(&j, &f, FINISH_LENGTH, 12);
    close_clean(&f);
}

/* The reply's text, cut anywhere across its tokens, is found as a stop string where it ends. */
static void test_stop_string_spans_tokens(void **state)
{
    (void)state;
    struct engine_fixture f;
    fixture_open(&f, MODEL, NULL);
    struct job j;
    run_plain(&j, &f, 10, 12);
    char text[128];
    size_t n = 0, ends[12];
    struct token_decoder d = {.started = true};
    for (int i = 0; i < 12; i++) {
        size_t len;
        const char *bytes = token_decode(f.tokenizer, &d, j.request->choices[0].tokens[i].id, &len);
        memcpy(text + n, bytes, len);
        n += len;
        ends[i] = n;
    }
    job_free(&j);
    for (size_t begin = 0; begin + 7 <= n; begin += 3) {
        size_t first = 0; /* of these 7 bytes in the text */
        while (memcmp(text + first, text + begin, 7) != 0) first++;
        int32_t tokens = 0;
        while (ends[tokens] < first + 7) tokens++;
        job_init_plain(&j, 10, 12);
        j.params.stops.n = 1;
        j.params.stops.at[0].bytes = text + begin;
        j.params.stops.at[0].n = 7;
        job_run(&j, f.engine);
        assert_int_equal(j.request->choices[0].text_bytes, first);
        end(&j, &f, FINISH_STOP, tokens + 1);
    }
    close_clean(&f);
}

/* ---- Ends from outside ---- */

static void test_cancel_everywhere(void **state)
{
    (void)state;
    struct engine_options o = fixture_options();
    o.max_seqs = 2;
    o.max_batch_tokens = 16;
    struct engine_fixture f;
    fixture_open(&f, MODEL, &o);
    struct job decoding, prefilling, queued;
    fixture_hold(&f);
    begin_plain(&decoding, &f, 4, 20);
    fixture_wait_step(&f, 1);
    begin_plain(&prefilling, &f, 70, 4);
    begin_plain(&queued, &f, 4, 4);
    fixture_let(&f, 3);
    fixture_wait_step(&f, 4);
    assert_int_equal(n_tokens(&decoding, 0), 3);
    assert_int_equal(atomic_load(&prefilling.request->state), REQUEST_RUNNING);
    assert_int_equal(n_tokens(&prefilling, 0), 0);
    assert_int_equal(atomic_load(&queued.request->state), REQUEST_QUEUED);
    assert_int_equal(stats_of(&f).queued, 1);
    engine_cancel(f.engine, decoding.request);
    engine_cancel(f.engine, prefilling.request);
    engine_cancel(f.engine, queued.request);
    fixture_let(&f, 1); /* the step under way is the last that they see */
    end(&decoding, &f, FINISH_CANCELED, 4);
    end(&prefilling, &f, FINISH_CANCELED, 0);
    end(&queued, &f, FINISH_CANCELED, 0);
    fixture_assert_clean(&f);
    assert_int_equal(f.n_begun, 4);

    fixture_unhold(&f);
    struct job late;
    run_plain(&late, &f, 4, 4);
    engine_cancel(f.engine, late.request); /* harmless */
    end(&late, &f, FINISH_LENGTH, 4);
    close_clean(&f);
}

static void test_deadlines(void **state)
{
    (void)state;
    struct engine_options o = fixture_options();
    o.max_seqs = 1;
    struct engine_fixture f;
    fixture_open(&f, MODEL, &o);
    struct job running, queued, late;
    int64_t soon = clock_ns() + 50 * 1000 * 1000;
    fixture_hold(&f);
    job_init_plain(&running, 4, 100);
    running.params.deadline_ns = soon;
    assert_true(job_new(&running, f.engine));
    job_submit(&running, f.engine);
    job_init_plain(&queued, 4, 4);
    queued.params.deadline_ns = soon;
    assert_true(job_new(&queued, f.engine));
    job_submit(&queued, f.engine);
    fixture_wait_step(&f, 1);
    while (clock_ns() < soon) sched_yield();
    fixture_let(&f, 1);
    end(&running, &f, FINISH_DEADLINE, 1);
    end(&queued, &f, FINISH_DEADLINE, 0);
    job_init_plain(&late, 4, 4);
    late.params.deadline_ns = 1;
    assert_true(job_new(&late, f.engine));
    job_submit(&late, f.engine);
    end(&late, &f, FINISH_DEADLINE, 0);
    assert_int_equal(f.n_begun, 1);
    fixture_unhold(&f);
    close_clean(&f);
}

static void test_shutdown(void **state)
{
    (void)state;
    struct engine_options o = fixture_options();
    o.max_seqs = 1;
    struct engine_fixture f;
    fixture_open(&f, MODEL, &o);
    struct job running, queued;
    fixture_hold(&f);
    begin_plain(&running, &f, 4, 100);
    begin_plain(&queued, &f, 4, 4);
    fixture_wait_step(&f, 1);
    /* Closing begins while the step is held: on a busy machine both would else be done before. */
    pthread_mutex_lock(&f.engine->lock);
    f.engine->closing = true;
    pthread_mutex_unlock(&f.engine->lock);
    fixture_unhold(&f);
    fixture_close(&f); /* requests may outlive the engine */
    assert_true(is_done(&running) && is_done(&queued));
    assert_int_equal(finish(&queued), FINISH_SHUTDOWN);
    assert_int_equal(finish(&running), FINISH_SHUTDOWN);
    job_free(&running);
    job_free(&queued);
}

static void test_drain(void **state)
{
    (void)state;
    struct engine_fixture f;
    fixture_open(&f, MODEL, NULL);
    struct job j, refused;
    fixture_hold(&f);
    begin_plain(&j, &f, 4, 10);
    engine_drain(f.engine);
    assert_true(stats_of(&f).draining);
    assert_false(engine_idle(f.engine));
    job_init_plain(&refused, 4, 4);
    assert_true(job_new(&refused, f.engine));
    struct error err;
    assert_false(engine_submit(f.engine, refused.request, &err));
    assert_int_equal(err.code, ERR_UNAVAILABLE);
    job_free(&refused);
    fixture_unhold(&f);
    end(&j, &f, FINISH_LENGTH, 10);
    close_clean(&f);
}

static void test_device_failure(void **state)
{
    (void)state;
    struct engine_options o = fixture_options();
    o.max_seqs = 1;
    struct engine_fixture f;
    fixture_open(&f, MODEL, &o);
    struct job running, queued, after;
    fixture_hold(&f);
    begin_plain(&running, &f, 20, 10);
    begin_plain(&queued, &f, 4, 4);
    fixture_wait_step(&f, 1);
    fixture_let(&f, 1);
    fixture_wait_step(&f, 2);
    fixture_fail(&f);
    fixture_unhold(&f);
    engine_wait(f.engine, running.request);
    assert_int_equal(running.request->error.code, ERR_DEVICE);
    assert_non_null(strstr(running.request->error.text, "on fire"));
    end(&running, &f, FINISH_ERROR, 1);
    engine_wait(f.engine, queued.request);
    assert_non_null(strstr(queued.request->error.text, "on fire"));
    end(&queued, &f, FINISH_ERROR, 0);

    assert_true(stats_of(&f).device_failed);
    job_init_plain(&after, 4, 4);
    assert_true(job_new(&after, f.engine));
    struct error err = {0};
    assert_false(engine_submit(f.engine, after.request, &err));
    assert_int_equal(err.code, ERR_DEVICE);
    assert_non_null(strstr(err.text, "on fire"));
    job_free(&after);
    close_clean(&f);
}

/* A greedy job of tokens from 64 up, but for the one at `at`. */
static void begin_with(struct job *j, struct engine_fixture *f, int32_t at, int32_t id, int32_t n,
                       bool scored)
{
    job_init_plain(j, 20, 10);
    for (int32_t i = 0; i < 20; i++) j->prompt[i] = i == at ? id : 64 + i * 3;
    j->params.n = n;
    j->params.prompt_logprobs = scored;
    assert_true(job_new(j, f->engine));
    job_submit(j, f->engine);
}

static void end_without_numbers(struct job *j, struct engine_fixture *f, bool first)
{
    engine_wait(f->engine, j->request);
    assert_int_equal(j->request->error.code, ERR_MODEL);
    assert_non_null(strstr(j->request->error.text, "too large for f32"));
    assert_int_equal(j->request->first_failure, first);
    for (int32_t i = 0; i < j->params.n; i++)
        assert_int_equal(atomic_load(&j->request->choices[i].finish), FINISH_ERROR);
    end(j, f, FINISH_ERROR, 0);
}

/* A token whose embedding is not a number ends the requests that have it, and changes no bit of
 * those beside them, nor of those that get its pages. */
static void test_logits_that_are_not_finite(void **state)
{
    (void)state;
    enum { BROKEN = 64, MOST_COLS = 64, ALONE = 0, BESIDE = 1, AFTER = 2 };
    static float rows[BROKEN * MOST_COLS];
    struct engine_options o = fixture_options();
    struct engine_fixture f;
    struct job good, bad, scored;
    struct buf said[3];
    o.prefix_cache = false;
    fixture_open(&f, "tests/golden/gpt2", &o);
    struct matrix *wte = &f.engine->gpt.wte; /* it is the head, too: such tokens are never drawn */
    assert_true(wte->n_in <= MOST_COLS && wte->n_out > BROKEN);
    for (int64_t i = 0; i < BROKEN * wte->n_in; i++) rows[i] = NAN;
    f.real->matrix_write(f.device, wte, 0, BROKEN, rows);
    for (int i = ALONE; i <= AFTER; i++) {
        if (i == BESIDE) {
            fixture_hold(&f);
            begin_with(&bad, &f, 19, 5, 3, false);
            begin_with(&scored, &f, 7, 6, 1, true);
        }
        begin_with(&good, &f, -1, 0, 1, false);
        fixture_unhold(&f);
        engine_wait(f.engine, good.request);
        buf_init(&said[i], 1 << 16);
        job_render(&good, &said[i]);
        end(&good, &f, FINISH_LENGTH, 10);
        assert_int_equal(said[i].len, said[ALONE].len);
        assert_memory_equal(said[i].data, said[ALONE].data, said[ALONE].len);
        if (i != BESIDE) continue;
        end_without_numbers(&bad, &f, true);
        end_without_numbers(&scored, &f, false);
        assert_int_equal(stats_of(&f).n_model_failures, 2);
        memset(f.engine->kv.data, 0xFF, (size_t)(stats_of(&f).kv.total * f.engine->kv_page_bytes));
    }
    for (int i = ALONE; i <= AFTER; i++) buf_free(&said[i]);
    close_clean(&f);
}

/* At start-up there is no engine then, and in a step no reply; nothing is left of either. */
static void test_every_device_operation_fails_once(void **state)
{
    int64_t n_opens = 0, n_steps = 0, left = 0;
    for (int64_t k = 1; left == 0; k++) {
        struct engine_fixture f;
        struct error err;
        struct job j;
        fixture_fail_operation(k);
        if (!fixture_try_open(&f, MODEL, NULL, &err)) {
            assert_non_null(strstr(err.text, "on fire"));
            assert_null(f.engine);
            fixture_close(&f);
            n_opens++;
            continue;
        }
        run_plain(&j, &f, 20, 10);
        left = fixture_fail_operation(0);
        if (left == 0) {
            assert_int_equal(j.request->error.code, ERR_DEVICE);
            assert_non_null(strstr(j.request->error.text, "on fire"));
            n_steps++;
        } else {
            assert_int_equal(j.request->error.code, ERR_NONE);
        }
        job_free(&j);
        close_clean(&f);
    }
    assert_true(n_opens >= 2); /* an allocation, and the sync after loading */
    assert_true(n_steps >= 10);
}

/* ---- The queue ---- */

static void test_queue_full(void **state)
{
    (void)state;
    struct engine_options o = fixture_options();
    o.max_seqs = 1;
    o.max_queue = 3;
    struct engine_fixture f;
    fixture_open(&f, MODEL, &o);
    struct job running, waiting[4];
    fixture_hold(&f);
    begin_plain(&running, &f, 4, 4);
    fixture_wait_step(&f, 1);
    struct engine_request *r[4];
    for (int i = 0; i < 4; i++) {
        job_init_plain(&waiting[i], 4, 2);
        assert_true(job_new(&waiting[i], f.engine));
        r[i] = waiting[i].request;
    }
    struct error err;
    assert_false(engine_submit_all(f.engine, r, 4, &err)); /* more than the queue ever holds */
    assert_int_equal(err.code, ERR_TOO_LARGE);
    assert_true(engine_submit_all(f.engine, r, 2, &err));
    assert_false(engine_submit_all(f.engine, r + 2, 2, &err)); /* all or none */
    assert_int_equal(err.code, ERR_BUSY);
    assert_int_equal(stats_of(&f).queued, 2);
    assert_true(engine_submit(f.engine, r[2], &err));
    assert_false(engine_submit(f.engine, r[3], &err));
    assert_int_equal(err.code, ERR_BUSY);
    fixture_unhold(&f);
    end(&running, &f, FINISH_LENGTH, 4);
    for (int i = 0; i < 3; i++) end(&waiting[i], &f, FINISH_LENGTH, 2);
    assert_true(engine_submit(f.engine, r[3], &err)); /* what was refused may try again */
    end(&waiting[3], &f, FINISH_LENGTH, 2);
    close_clean(&f);
}

static void test_no_overtaking(void **state)
{
    (void)state;
    struct engine_options o = fixture_options();
    o.max_seqs = 4;
    struct engine_fixture f;
    fixture_open(&f, MODEL, &o); /* a pool of 8 pages */
    struct job big, wide, small;
    fixture_hold(&f);
    begin_plain(&big, &f, 4, 60); /* 4 pages */
    fixture_wait_step(&f, 1);
    begin_plain(&wide, &f, 4, 100); /* 7: must wait for the first */
    begin_plain(&small, &f, 4, 4);  /* 1: would fit, but is behind */
    fixture_let(&f, 59);
    fixture_wait_step(&f, 60);
    assert_int_equal(atomic_load(&wide.request->state), REQUEST_QUEUED);
    assert_int_equal(atomic_load(&small.request->state), REQUEST_QUEUED);
    assert_int_equal(n_tokens(&small, 0), 0);
    fixture_unhold(&f);
    end(&big, &f, FINISH_LENGTH, 60);
    engine_wait(f.engine, wide.request);
    engine_wait(f.engine, small.request);
    assert_true(wide.request->admitted_ns <= small.request->admitted_ns);
    assert_true(small.request->done_ns < wide.request->done_ns); /* then they run together */
    end(&small, &f, FINISH_LENGTH, 4);
    end(&wide, &f, FINISH_LENGTH, 100);
    close_clean(&f);
}

/* ---- Steps ---- */

static void test_decodes_go_on_beside_a_prefill(void **state)
{
    (void)state;
    struct engine_options o = fixture_options();
    o.max_batch_tokens = 16;
    struct engine_fixture f;
    fixture_open(&f, MODEL, &o);
    struct job stream, prompt;
    fixture_hold(&f);
    begin_plain(&stream, &f, 4, 60);
    fixture_wait_step(&f, 1);
    begin_plain(&prompt, &f, 100, 4);
    fixture_let(&f, 1);
    int64_t before = 0;
    for (int i = 2; i < 20; i++) {
        fixture_wait_step(&f, i);
        assert_int_equal(n_tokens(&stream, 0), i - 1); /* a token every step */
        int64_t now = stats_of(&f).n_prefill_tokens;
        assert_true(now - before <= 4);
        before = now;
        fixture_let(&f, 1);
    }
    assert_true(before > 60); /* and the prompt gets on */
    fixture_unhold(&f);
    end(&stream, &f, FINISH_LENGTH, 60);
    end(&prompt, &f, FINISH_LENGTH, 4);
    close_clean(&f);
}

static void test_stats_during_a_step(void **state)
{
    (void)state;
    struct engine_fixture f;
    fixture_open(&f, MODEL, NULL);
    int64_t opened = stats_of(&f).last_progress_ns;
    assert_true(opened > 0 && opened <= clock_ns());
    struct job j;
    fixture_hold(&f);
    int64_t submitted = clock_ns();
    begin_plain(&j, &f, 40, 4);
    /* Idle time is nobody's fault: the clock of progress starts with the request. */
    assert_true(stats_of(&f).last_progress_ns >= submitted);
    fixture_wait_step(&f, 1);
    struct engine_stats s = stats_of(&f);
    assert_int_equal(s.running, 1);
    assert_int_equal(s.queued, 0);
    assert_int_equal(s.n_steps, 0);
    int64_t stuck = s.last_progress_ns;
    assert_int_equal(stats_of(&f).last_progress_ns, stuck);
    fixture_unhold(&f);
    engine_wait(f.engine, j.request);
    s = stats_of(&f);
    assert_true(s.last_progress_ns > stuck);
    assert_int_equal(s.n_steps, 4);
    assert_int_equal(s.n_prefill_tokens, 40);
    assert_int_equal(s.n_decode_tokens, 3);
    assert_true(s.busy_ns > 0);
    const struct engine_request *r = j.request;
    assert_true(r->submitted_ns <= r->admitted_ns && r->admitted_ns <= r->first_token_ns);
    assert_true(r->first_token_ns <= r->done_ns);
    end(&j, &f, FINISH_LENGTH, 4);
    close_clean(&f);
}

static void count(void *ctx) { atomic_fetch_add((_Atomic int *)ctx, 1); }

static void test_notified_once_a_step(void **state)
{
    (void)state;
    struct engine_fixture f;
    fixture_open(&f, MODEL, NULL);
    struct job j;
    _Atomic int calls = 0;
    job_init_plain(&j, 5, 6);
    j.params.n = 3;
    j.params.notify = count;
    j.params.ctx = &calls;
    job_run(&j, f.engine);
    /* The first choice begins a step before the others: 6 tokens and one step more. */
    assert_int_equal(atomic_load(&calls), 7);
    end(&j, &f, FINISH_LENGTH, 6);
    close_clean(&f);
}

static void test_accessors(void **state)
{
    (void)state;
    struct engine_options o = fixture_options();
    o.max_context = 100;
    struct engine_fixture f;
    fixture_open(&f, MODEL, &o);
    assert_int_equal(engine_config(f.engine)->vocab_size, 160);
    assert_ptr_equal(engine_tokenizer(f.engine), f.tokenizer);
    assert_int_equal(strlen(engine_fingerprint(f.engine)), 16);
    assert_int_equal(engine_max_context(f.engine), 100);
    assert_int_equal(engine_max_seqs(f.engine), 8);
    assert_string_equal(finish_reason_name(FINISH_STOP), "stop");
    assert_string_equal(finish_reason_name(FINISH_LENGTH), "length");
    close_clean(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plan_is_the_allocation),
        cmocka_unit_test(test_plan_without_opening),
        cmocka_unit_test(test_what_is_not_as_planned_does_not_serve),
        cmocka_unit_test(test_budget),
        cmocka_unit_test(test_options_refused),
        cmocka_unit_test(test_request_refused),
        cmocka_unit_test(test_pool_smaller_than_a_request),
        cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_prefix_hits),
        cmocka_unit_test(test_reply_is_found_again),
        cmocka_unit_test(test_choices_share_the_prompt),
        cmocka_unit_test(test_scoring_alone),
        cmocka_unit_test(test_stop_id_ends_it),
        cmocka_unit_test(test_stop_string_spans_tokens),
        cmocka_unit_test(test_cancel_everywhere),
        cmocka_unit_test(test_deadlines),
        cmocka_unit_test(test_shutdown),
        cmocka_unit_test(test_drain),
        cmocka_unit_test(test_device_failure),
        cmocka_unit_test(test_logits_that_are_not_finite),
        cmocka_unit_test(test_every_device_operation_fails_once),
        cmocka_unit_test(test_queue_full),
        cmocka_unit_test(test_no_overtaking),
        cmocka_unit_test(test_decodes_go_on_beside_a_prefill),
        cmocka_unit_test(test_stats_during_a_step),
        cmocka_unit_test(test_notified_once_a_step),
        cmocka_unit_test(test_accessors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

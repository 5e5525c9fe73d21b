/* Whole small models on the CUDA device: the engine's greedy text is the other implementations',
 * and the first steps of training have the CPU's losses. On a GPU, or on the interpreter of
 * tests/ptxsim (make test-cuda). */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/checked.h"
#include "cuda/cuda.h"
#include "tests/cuda/cuda_side.h"
#include "tests/model/golden.h"
#include "tests/model/train_fixture.h"
#include "tests/ptxsim/ptxsim.h"

#pragma weak ptxsim_set_cublas
#pragma weak ptxsim_cublas_products
#pragma weak ptxsim_cublas_choices
#pragma weak ptxsim_calls
#pragma weak ptxsim_set_host_limit
#pragma weak ptxsim_refuse_graphs
#pragma weak ptxsim_code
#pragma weak ptxsim_set_compute_capability
#pragma weak ptxsim_set_gpus

enum { MAX_GREEDY = 6, STEPS = 3 };

static void must(bool ok, const struct error *err)
{
    if (!ok) fail_msg("%s", err->text);
}

/* The last GPU: where there are several, the engine's and the trainer's threads have to name
 * theirs. */
static struct device *cuda_or_skip(void)
{
    struct error err;
    struct device *d = NULL;
    int32_t n = cuda_device_count();
    if (n == 0) skip();
    must(cuda_device_open(n - 1, &d, &err), &err);
    return d;
}

/* ... that computes in the type: GPUs before sm_80 do not in bf16. */
static struct device *cuda_of_type_or_skip(enum dtype dtype)
{
    struct device *d = cuda_or_skip();
    if (dtype != DTYPE_BF16 || d->ops->computes_in(d, dtype)) return d;
    d->ops->close(d);
    skip();
    return NULL;
}

/* Log-probabilities within `tolerance`; where that is the rounding of f32, the greedy text too. */
static void check_prompt(struct engine *e, const cJSON *prompt, double tolerance)
{
    const cJSON *logprobs = cJSON_GetObjectItem(prompt, "logprobs");
    const cJSON *greedy = cJSON_GetObjectItem(prompt, "greedy");
    struct job j;
    int32_t n_greedy = golden_run(&j, e, prompt, MAX_GREEDY);
    for (int32_t i = 1; i < cJSON_GetArraySize(logprobs); i++) {
        double want = cJSON_GetArrayItem(logprobs, i)->valuedouble;
        assert_near(j.request->prompt_scores[i].logprob, want, tolerance, "logprob of a prompt", i, 0);
    }
    for (int32_t i = 0; i < n_greedy && tolerance <= 1e-4; i++)
        assert_int_equal(j.request->choices[0].tokens[i].id, golden_int(greedy, i));
    job_free(&j);
}

/* A model on a device, which closes with it. */
struct served { struct device *d; struct checkpoint *checkpoint; struct engine *engine; };

static void serve(struct served *s, struct device *d, const char *path, const struct engine_options *o)
{
    struct error err;
    s->d = d;
    must(checkpoint_open(path, &s->checkpoint, &err), &err);
    must(engine_open(d, s->checkpoint, NULL, o, &s->engine, &err), &err);
}

static void serve_end(struct served *s)
{
    engine_close(s->engine);
    checkpoint_close(s->checkpoint);
    s->d->ops->close(s->d);
}

static void run_together(struct engine *e, struct job *jobs, int n)
{
    for (int i = 0; i < n; i++) {
        assert_true(job_new(&jobs[i], e));
        job_submit(&jobs[i], e);
    }
    for (int i = 0; i < n; i++) engine_wait(e, jobs[i].request);
}

static void check_model(const char *path, enum dtype dtype, double tolerance)
{
    struct device *d = cuda_of_type_or_skip(dtype);
    cJSON *golden = golden_read(path);
    struct engine_options o = fixture_options();
    struct served s;
    o.max_batch_tokens = 20; /* prompts come in pieces */
    o.dtype = dtype;
    serve(&s, d, path, &o);
    const cJSON *prompts = cJSON_GetObjectItem(golden, "prompts"), *prompt;
    assert_true(cJSON_GetArraySize(prompts) > 0);
    struct ptxsim_calls before = on_interpreter() ? ptxsim_calls() : (struct ptxsim_calls){0};
    cJSON_ArrayForEach(prompt, prompts) check_prompt(s.engine, prompt, tolerance);
    /* Every token after a prompt's first comes of a recorded step. */
    if (on_interpreter()) {
        int64_t steps = ptxsim_calls().graph_launches - before.graph_launches;
        int64_t kernels = ptxsim_calls().graph_kernels - before.graph_kernels;
        assert_true(steps >= cJSON_GetArraySize(prompts) * (MAX_GREEDY - 1));
        /* Five a layer; embedding, rows that want logits, norm, head, sampling. */
        if (dtype != DTYPE_F32)
            assert_int_equal(kernels, steps * (5 * checkpoint_config(s.checkpoint)->n_layer + 5));
    }
    serve_end(&s);
    cJSON_Delete(golden);
}

static void test_gpt2_is_served(void **state) { check_model("tests/golden/gpt2", DTYPE_F32, 1e-4); }
static void test_qwen3_is_served(void **state) { check_model("tests/golden/qwen3", DTYPE_F32, 1e-4); }

/* As far from f32's scores as the CPU's own are in these types: 0.08 and 0.23. */
static void test_llama_is_served_in_narrow_types(void **state)
{
    check_model("tests/golden/llama", DTYPE_BF16, 0.1);
    check_model("tests/golden/llama", DTYPE_Q8_0, 0.3);
}

/* Five more tokens cost five times: one copy up, the recorded step, one copy down, one wait, and no
 * launch beside it, whatever a request asks of sampling; all copies by way of page-locked
 * memory. */
static void check_decoding_calls(struct engine *engine, const struct sample_params *sampling)
{
    enum { SHORT = 2, MORE = 5 };
    struct ptxsim_calls calls[3];
    for (int i = 0; i < 2; i++) {
        struct job j;
        calls[i] = ptxsim_calls();
        job_init_plain(&j, 4, i == 0 ? SHORT : SHORT + MORE);
        if (sampling) j.params.sampling = *sampling;
        job_run(&j, engine);
        assert_int_equal(j.request->choices[0].n_tokens, j.params.max_tokens);
        job_free(&j);
    }
    calls[2] = ptxsim_calls();
    const struct ptxsim_calls *a = calls, *b = calls + 1, *c = calls + 2;
    assert_int_equal((c->graph_launches - b->graph_launches) - (b->graph_launches - a->graph_launches), MORE);
    assert_int_equal((c->launches - b->launches) - (b->launches - a->launches), 0);
    assert_int_equal((c->uploads - b->uploads) - (b->uploads - a->uploads), MORE);
    assert_int_equal((c->downloads - b->downloads) - (b->downloads - a->downloads), MORE);
    assert_int_equal((c->waits - b->waits) - (b->waits - a->waits), MORE);
    assert_int_equal(c->pageable - a->pageable, 0);
}

static void test_calls_of_a_decoding_step(void **state)
{
    if (!on_interpreter()) skip();
    struct device *d = cuda_or_skip();
    struct engine_options o = fixture_options();
    const struct token_bias bias[] = {{3, 2.5f}, {7, -1}};
    struct sample_params sampling;
    struct served s;
    o.dtype = DTYPE_F32;
    o.prefix_cache = false;
    serve(&s, d, "tests/golden/gpt2", &o);
    check_decoding_calls(s.engine, NULL);
    sample_params_init(&sampling);
    sampling.top_k = 50;
    sampling.top_p = 0.9f;
    sampling.repetition_penalty = 1.2f;
    sampling.frequency_penalty = 0.5f;
    sampling.bias = bias;
    sampling.n_bias = 2;
    check_decoding_calls(s.engine, &sampling);
    serve_end(&s);
}

/* Without page-locked memory there is no engine, and the message says what was missing. */
static void test_refused_page_locked_memory(void **state)
{
    if (!on_interpreter()) skip();
    struct device *d = cuda_or_skip();
    struct engine_options o = fixture_options();
    struct checkpoint *checkpoint;
    struct engine *engine = NULL;
    struct error err;
    o.dtype = DTYPE_F32;
    must(checkpoint_open("tests/golden/gpt2", &checkpoint, &err), &err);
    ptxsim_set_host_limit(4096);
    assert_false(engine_open(d, checkpoint, NULL, &o, &engine, &err));
    ptxsim_set_host_limit(SIZE_MAX);
    assert_int_equal(err.code, ERR_MEMORY);
    assert_non_null(strstr(err.text, "page-locking"));
    assert_non_null(strstr(err.text, "cudaErrorMemoryAllocation"));
    must(d->ops->sync(d, &err), &err); /* the device has not failed */
    checkpoint_close(checkpoint);
    d->ops->close(d);
}

/* Memory is zero at first; what is refused leaves the device as it was, for whoever asks for errors
 * of launches. */
static void test_device_memory_is_zero_or_refused(void **state)
{
    enum { N = 1024 };
    struct device *d = cuda_or_skip();
    struct error err;
    float got[N], zeros[N] = {0};
    assert_null(d->ops->alloc(d, (size_t)1 << 50, &err));
    assert_int_equal(err.code, ERR_MEMORY);
    assert_non_null(strstr(err.text, "allocating 1125899906842624 bytes"));
    struct tensor t = {d->ops->alloc(d, sizeof got, &err), DTYPE_F32, 1, N};
    must(t.data != NULL, &err);
    d->train->dropout(d, t, t, (struct dropout){0});
    d->ops->download(d, got, t.data, sizeof got);
    must(d->ops->sync(d, &err), &err);
    assert_memory_equal(got, zeros, sizeof got);
    d->ops->free(d, t.data, sizeof got);
    d->ops->close(d);
}

/* What the driver does not launch, here for its size, is found at the next wait at the latest. */
static void test_refused_launch_is_a_failure(void **state)
{
    enum { N = 16, TOO_MANY = 65536 * 32 }; /* more rows than grids of plain products have blocks for */
    struct device *d = cuda_or_skip();
    struct error err;
    void *p = d->ops->alloc(d, N * N * sizeof(float), &err); /* nobody gets to read it */
    must(p != NULL, &err);
    struct tensor x = {p, DTYPE_F32, TOO_MANY, N};
    struct matrix w = {.data = p, .dtype = DTYPE_F32, .n_out = N, .n_in = N};
    d->ops->matmul(d, x, x, &w, NULL, EPILOGUE_NONE);
    assert_false(d->ops->sync(d, &err));
    assert_int_equal(err.code, ERR_DEVICE);
    assert_non_null(strstr(err.text, "failed in matmul"));
    assert_non_null(strstr(err.text, "cudaErrorInvalidConfiguration"));
    d->ops->free(d, p, N * N * sizeof(float));
    d->ops->close(d);
}

/* Steps that cannot be recorded are no reason to run without: it is the GPU that has failed. */
static void test_refused_recordings(void **state)
{
    if (!on_interpreter()) skip();
    struct device *d = cuda_or_skip();
    struct engine_options o = fixture_options();
    struct checkpoint *checkpoint;
    struct engine *engine = NULL;
    struct error err;
    o.dtype = DTYPE_F32;
    must(checkpoint_open("tests/golden/gpt2", &checkpoint, &err), &err);
    ptxsim_refuse_graphs(true);
    assert_false(engine_open(d, checkpoint, NULL, &o, &engine, &err));
    ptxsim_refuse_graphs(false);
    assert_int_equal(err.code, ERR_DEVICE);
    assert_non_null(strstr(err.text, "failed in recording: out of memory"));
    checkpoint_close(checkpoint);
    d->ops->close(d);
}

/* ---- how many keys attention is told of ---- */

/* Attention of few rows is spread over as many blocks as its batch says that there may be keys:
 * what it does not say, nobody reads. Only contexts longer than the models' here are spread. */
static struct {
    void (*kv_attention)(struct device *, struct tensor, struct tensor, const struct batch *,
                         const struct attention *, const struct kv_cache *, int32_t);
    void (*graph_begin)(struct device *);
    struct device_graph *(*graph_end)(struct device *);
    int32_t max_context;
    int64_t n_recorded, n_run;
    bool records;
} keys;

static void watch_begin(struct device *d) { keys.records = true, keys.graph_begin(d); }
static struct device_graph *watch_end(struct device *d) { return keys.records = false, keys.graph_end(d); }

static void watch_keys(struct device *d, struct tensor out, struct tensor qkv, const struct batch *b,
                       const struct attention *a, const struct kv_cache *kv, int32_t layer)
{
    int32_t last = keys.records ? keys.max_context : 0;
    for (int32_t i = 0; i < b->n_spans && !keys.records; i++) /* the interpreter's memory is the host's */
        last = (int32_t)fmax(last, b->spans[i].start + b->spans[i].n_rows);
    if (b->max_keys < last) fail_msg("%d keys, and attention is told of %d", last, b->max_keys);
    if (keys.records) keys.n_recorded++;
    else keys.n_run++;
    keys.kv_attention(d, out, qkv, b, a, kv, layer);
}

static void test_attention_is_told_of_all_keys(void **state)
{
    if (!on_interpreter()) skip();
    struct device *d = cuda_of_type_or_skip(DTYPE_BF16);
    struct device_ops *ops = (struct device_ops *)d->ops;
    struct engine_options o = fixture_options();
    struct served s;
    struct job jobs[2];
    o.dtype = DTYPE_BF16;
    o.max_batch_tokens = 48;
    o.max_context = 90;
    keys.kv_attention = ops->kv_attention, ops->kv_attention = watch_keys;
    keys.graph_begin = ops->graph_begin, ops->graph_begin = watch_begin;
    keys.graph_end = ops->graph_end, ops->graph_end = watch_end;
    keys.max_context = (int32_t)o.max_context;
    serve(&s, d, "tests/golden/gpt2", &o);
    job_init_plain(&jobs[0], 60, 1); /* the longer one first */
    job_init_plain(&jobs[1], 5, 1);
    run_together(s.engine, jobs, 2);
    for (int i = 0; i < 2; i++) job_free(&jobs[i]);
    serve_end(&s);
    assert_true(keys.n_recorded > 0 && keys.n_run > 0);
}

/* ---- company ---- */

enum { N_COMPANY = 5 };

/* Prompts that begin alike, of several lengths; two choices; draws and greedy ones; one whose
 * prompt is scored. */
static void company_init(struct job jobs[N_COMPANY])
{
    static const int32_t prompts[] = {3, 17, 9, 34, 12}, tokens[] = {6, 5, 6, 3, 4};
    for (int i = 0; i < N_COMPANY; i++) {
        struct engine_params *p = &jobs[i].params;
        job_init_plain(&jobs[i], prompts[i], tokens[i]);
        p->sampling.seed = (uint64_t)i;
        p->sampling.temperature = i % 2 ? 0.9f : 0;
        p->sampling.repetition_penalty = i == 2 ? 1.3f : 1;
        p->n = i == 1 ? 2 : 1;
        p->n_top = i;
        p->prompt_logprobs = i == 4;
    }
}

/* All that the requests were told. */
static void render_company(struct job jobs[N_COMPANY], struct buf *out)
{
    for (int i = 0; i < N_COMPANY; i++) {
        job_render(&jobs[i], out);
        job_free(&jobs[i]);
    }
}

/* Requests have the same bits alone and with others, which takes recordings of as many rows as
 * decode; prompts come a row a step, which none of these is for. */
static void test_requests_do_not_know_their_company(void **state)
{
    struct device *d = cuda_of_type_or_skip(DTYPE_BF16);
    struct engine_options o = fixture_options();
    struct served s;
    struct job jobs[N_COMPANY];
    struct buf alone, together;
    o.max_batch_tokens = 7;
    o.dtype = DTYPE_BF16;
    serve(&s, d, "tests/golden/llama", &o);
    buf_init(&alone, 1 << 16);
    buf_init(&together, 1 << 16);
    company_init(jobs);
    for (int i = 0; i < N_COMPANY; i++) job_run(&jobs[i], s.engine);
    render_company(jobs, &alone);
    company_init(jobs);
    run_together(s.engine, jobs, N_COMPANY);
    render_company(jobs, &together);
    assert_int_equal(together.len, alone.len);
    assert_memory_equal(together.data, alone.data, alone.len);
    buf_free(&alone);
    buf_free(&together);
    serve_end(&s);
}

/* ---- training ---- */

/* Of the first steps. */
struct train_numbers { double loss[STEPS], grad_norm[STEPS]; };

static void train(struct train_fixture *f, struct device *d, const char *run, struct train_numbers *out)
{
    struct device *own = f->device;
    if (d) f->device = d;
    train_fixture_use_run(f, run);
    train_fixture_begin(f);
    train_fixture_steps(f, STEPS);
    for (int i = 0; i < STEPS; i++) {
        out->loss[i] = train_fixture_metric(f, i, "loss");
        out->grad_norm[i] = train_fixture_metric(f, i, "grad_norm");
    }
    train_fixture_end(f);
    f->device = own;
}

/* All that GPT-2 is not, and everything computed again. */
static void use_llama(struct train_fixture *f)
{
    static const char model[] =
        "{\"n_layer\":2,\"n_head\":2,\"n_kv_head\":1,\"n_embd\":32,\"n_ff\":48,\"block_size\":16,"
        "\"pos_encoding\":\"rope\",\"norm_type\":\"rmsnorm\",\"mlp_type\":\"swiglu\",\"qk_norm\":true,"
        "\"tie_weights\":false}";
    struct trainer_options *o = &f->options;
    struct error err;
    int64_t vocab_size = o->model.vocab_size;
    must(gpt_config_from_preset(model, strlen(model), "test", &o->model, &err), &err);
    o->model.vocab_size = vocab_size;
    o->config.recompute = RECOMPUTE_BLOCK;
}

/* Losses and gradients' norms, relative to the CPU's. */
static void check_training(enum dtype dtype, bool llama, double tolerance)
{
    struct device *d = cuda_of_type_or_skip(dtype);
    struct train_fixture f;
    struct train_numbers want, got, again;
    train_fixture_open(&f, 1500);
    if (llama) use_llama(&f);
    f.options.config.dtype = dtype;
    f.options.config.dropout = 0.1;
    f.options.config.micro_batch_size = 3; /* then one */
    f.options.config.loss_rows = 21;
    f.options.model.vocab_size = round_up(f.options.model.vocab_size, 8); /* which cuBLASLt takes */
    train(&f, NULL, "cpu", &want);
    schedule_seed(1);
    train(&f, d, "cuda", &got);
    schedule_seed(6); /* warps take other turns, and nothing is recorded: the same bits */
    ((struct device_ops *)d->ops)->graph_begin = NULL;
    train(&f, d, "again", &again);
    assert_memory_equal(&again, &got, sizeof got);
    for (int i = 0; i < STEPS; i++) {
        print_message("step %d: loss %.6f, gradients %.6f on the CPU, %.6f and %.6f here\n", i + 1, want.loss[i],
                      want.grad_norm[i], got.loss[i], got.grad_norm[i]);
        assert_near(got.loss[i] / want.loss[i], 1, tolerance, "loss", i, 0);
        assert_near(got.grad_norm[i] / want.grad_norm[i], 1, 4 * tolerance, "gradients' norm", i, 0);
    }
    train_fixture_close(&f);
    d->ops->close(d);
}

struct step_calls {
    int64_t batch, micro_batch, n; /* sequences of a step, of a micro-batch; micro-batches of a step */
    int64_t uploads, downloads, waits;
};

/* A step after the warm-up, whose micro-batches are of its shapes: each is one copy up, one launch
 * and one copy down, of its losses. The gradients' norm is a copy more, and behind it is the only
 * wait, unless there are more micro-batches than the host holds. All copies are by way of
 * page-locked memory. */
static void check_calls(const struct step_calls *want)
{
    enum { BEFORE = 2, OTHER_KERNELS = 3 /* of the norm two, and AdamW's */ };
    struct device *d = cuda_or_skip();
    struct train_fixture f;
    train_fixture_open(&f, 1500);
    struct device *own = f.device;
    f.device = d;
    f.options.config.dtype = DTYPE_F32;
    f.options.config.batch_size = want->batch;
    f.options.config.micro_batch_size = want->micro_batch;
    train_fixture_begin(&f);
    train_fixture_steps(&f, BEFORE);
    struct ptxsim_calls before = ptxsim_calls();
    train_fixture_steps(&f, 1);
    struct ptxsim_calls after = ptxsim_calls();
    assert_int_equal(after.graph_launches - before.graph_launches, want->n);
    assert_int_equal(after.launches - before.launches, OTHER_KERNELS);
    assert_int_equal(after.uploads - before.uploads, want->uploads);
    assert_int_equal(after.downloads - before.downloads, want->downloads);
    assert_int_equal(after.waits - before.waits, want->waits);
    assert_int_equal(after.pageable - before.pageable, 0);
    train_fixture_end(&f);
    f.device = own;
    train_fixture_close(&f);
    d->ops->close(d);
}

static void test_calls_of_a_training_step(void **state)
{
    static const struct step_calls cases[] = {
        {4, 4, 1, 1, 2, 1}, {4, 3, 2, 2, 3, 1} /* the last one is short */, {9, 1, 9, 9, 10, 2},
    };
    if (!on_interpreter()) skip();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check_calls(&cases[i]);
}

static void test_f32_training_has_the_same_losses(void **state) { check_training(DTYPE_F32, false, 1e-5); }
static void test_bf16_training_of_llama_has_near_losses(void **state) { check_training(DTYPE_BF16, true, 2e-3); }

static void test_training_with_cublas_has_near_losses(void **state)
{
    if (!ptxsim_set_cublas) skip(); /* a GPU has it or not */
    struct device *d = cuda_of_type_or_skip(DTYPE_BF16);
    d->ops->close(d);
    ptxsim_set_cublas(true);
    check_training(DTYPE_BF16, false, 2e-3);
    ptxsim_set_cublas(false);
    assert_true(ptxsim_cublas_products() > 0);
}

/* Where text flows, all micro-batches are of the shapes that the warm-up had: no step waits for a
 * choice. */
static void test_algorithms_are_chosen_before_the_first_step(void **state)
{
    if (!ptxsim_set_cublas) skip();
    struct train_fixture f;
    train_fixture_open(&f, 1500);
    ptxsim_set_cublas(true);
    struct device *own = f.device, *d = f.device = cuda_or_skip();
    f.options.config.dtype = DTYPE_F32;
    f.options.config.batch_size = 5;
    f.options.config.micro_batch_size = 3; /* the step's last one is shorter */
    int64_t before = ptxsim_cublas_choices();
    train_fixture_begin(&f);
    int64_t chosen = ptxsim_cublas_choices(), products = ptxsim_cublas_products();
    assert_true(chosen > before);
    train_fixture_steps(&f, 2);
    assert_true(ptxsim_cublas_products() > products);
    assert_int_equal(ptxsim_cublas_choices(), chosen);
    train_fixture_end(&f);
    ptxsim_set_cublas(false);
    f.device = own;
    train_fixture_close(&f);
    d->ops->close(d);
}

/* Data of documents that are kept apart: sequences of 16 rows in one span, in two equal ones, in
 * two others. The last token of a document has no row. */
static void use_documents(struct train_fixture *f)
{
    static const char *const lines[] = {"the cat sees she.", "a dog lik", "my bird f", "she fo", "the old man "};
    snprintf(f->text_path, sizeof f->text_path, "%s/documents.jsonl", f->dir);
    FILE *out = fopen(f->text_path, "w");
    assert_non_null(out);
    for (int i = 0; i < 60; i++) fprintf(out, "{\"text\": \"%s\"}\n", lines[i % 5]);
    assert_int_equal(fclose(out), 0);
    f->options.config.keep_documents_apart = true;
    train_fixture_open_data(f);
}

/* Micro-batches of as many rows, whose spans differ in number and in length: what is launched again
 * is what was recorded of just such a one. */
static void test_recorded_steps_of_documents(void **state)
{
    enum { DOCUMENT_STEPS = 3 };
    struct device *d = cuda_or_skip();
    struct train_fixture f;
    double losses[3][DOCUMENT_STEPS];
    train_fixture_open(&f, 1500);
    use_documents(&f);
    f.options.config.dtype = DTYPE_F32;
    f.options.config.batch_size = 3;
    f.options.config.micro_batch_size = 1;
    struct device *own = f.device;
    for (int run = 0; run < 3; run++) { /* on the CPU; recorded; not recorded */
        static const char *const names[] = {"cpu", "recorded", "again"};
        if (run > 0) f.device = d;
        if (run == 2) ((struct device_ops *)d->ops)->graph_begin = NULL;
        train_fixture_use_run(&f, names[run]);
        struct ptxsim_calls before = on_interpreter() ? ptxsim_calls() : (struct ptxsim_calls){0};
        train_fixture_begin(&f);
        train_fixture_steps(&f, DOCUMENT_STEPS);
        if (run == 1 && on_interpreter()) /* most micro-batches' shapes have come before */
            assert_true(ptxsim_calls().graph_launches - before.graph_launches > 2 * DOCUMENT_STEPS);
        for (int i = 0; i < DOCUMENT_STEPS; i++) losses[run][i] = train_fixture_metric(&f, i, "loss");
        train_fixture_end(&f);
    }
    assert_memory_equal(losses[1], losses[2], sizeof losses[1]);
    for (int i = 0; i < DOCUMENT_STEPS; i++) assert_near(losses[1][i], losses[0][i], 2e-5, "loss", i, 0);
    f.device = own;
    train_fixture_close(&f);
    d->ops->close(d);
}

/* ---- loss scaling ---- */

enum { SCALED_STEPS = 7 };

/* What the metrics say of each step. */
struct scaled_run { double loss[SCALED_STEPS], grad_norm[SCALED_STEPS], scale[SCALED_STEPS]; };

static void run_scaled(struct train_fixture *f, const char *name, double scale, struct scaled_run *out)
{
    f->options.config.loss_scale = scale;
    train_fixture_use_run(f, name);
    train_fixture_begin(f);
    train_fixture_steps(f, SCALED_STEPS);
    for (int i = 0; i < SCALED_STEPS; i++) {
        out->loss[i] = train_fixture_metric(f, i, "loss");
        out->grad_norm[i] = train_fixture_metric(f, i, "grad_norm"); /* 0: not finite */
        out->scale[i] = train_fixture_metric(f, i, "loss_scale");
    }
    train_fixture_end(f);
}

/* f16 begins with a scale at which gradients overflow. The micro-batch is recorded in the first
 * step, so only if what is launched from then on reads the scale of its own step do gradients
 * become finite when it has been halved often enough. Then they are those of a run with a small
 * scale whose weights never moved: the skipped steps have left them alone. */
static void test_f16_loss_scale_reaches_recorded_steps(void **state)
{
    const double scale = 0x1p24;
    struct train_fixture f;
    struct scaled_run halved, still, again;
    if (on_interpreter() && ptxsim_code() > 75) ptxsim_set_compute_capability(75); /* no bf16 */
    struct device *d = cuda_or_skip();
    train_fixture_open(&f, 1500);
    struct device *own = f.device;
    f.device = d;
    f.options.config.dtype = DTYPE_F16;
    struct ptxsim_calls before = on_interpreter() ? ptxsim_calls() : (struct ptxsim_calls){0};
    run_scaled(&f, "halved", scale, &halved);
    if (on_interpreter())
        assert_int_equal(ptxsim_calls().graph_launches - before.graph_launches, SCALED_STEPS);
    int skipped = 0;
    while (skipped < SCALED_STEPS && !(halved.grad_norm[skipped] > 0)) skipped++;
    print_message("%d steps skipped\n", skipped);
    assert_true(skipped >= 3 && skipped <= SCALED_STEPS - 2);
    for (int i = 0; i < SCALED_STEPS; i++)
        assert_true(halved.scale[i] == ldexp(scale, -(i < skipped ? i : skipped)));

    double learning_rate = f.options.config.learning_rate, min_lr = f.options.config.min_lr;
    f.options.config.learning_rate = 1e-20, f.options.config.min_lr = 0;
    run_scaled(&f, "still", 1024, &still);
    assert_memory_equal(halved.loss, still.loss, (size_t)(skipped + 1) * sizeof *still.loss);
    assert_true(halved.loss[skipped + 1] != still.loss[skipped + 1]); /* the first update */
    double norm = still.grad_norm[skipped];
    assert_near(halved.grad_norm[skipped] / norm, 1, 5e-3, "gradients' norm", skipped, 0);

    f.options.config.learning_rate = learning_rate, f.options.config.min_lr = min_lr;
    ((struct device_ops *)d->ops)->graph_begin = NULL; /* nothing is recorded: the same bits */
    run_scaled(&f, "again", scale, &again);
    assert_memory_equal(&again, &halved, sizeof again);
    f.device = own;
    train_fixture_close(&f);
    d->ops->close(d);
    if (on_interpreter()) ptxsim_set_compute_capability(0);
}

int main(int argc, char **argv)
{
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    if (on_interpreter()) ptxsim_set_gpus(2);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gpt2_is_served),
        cmocka_unit_test(test_qwen3_is_served),
        cmocka_unit_test(test_llama_is_served_in_narrow_types),
        cmocka_unit_test(test_calls_of_a_decoding_step),
        cmocka_unit_test(test_refused_page_locked_memory),
        cmocka_unit_test(test_device_memory_is_zero_or_refused),
        cmocka_unit_test(test_refused_launch_is_a_failure),
        cmocka_unit_test(test_refused_recordings),
        cmocka_unit_test(test_attention_is_told_of_all_keys),
        cmocka_unit_test(test_requests_do_not_know_their_company),
        cmocka_unit_test(test_calls_of_a_training_step),
        cmocka_unit_test(test_f32_training_has_the_same_losses),
        cmocka_unit_test(test_bf16_training_of_llama_has_near_losses),
        cmocka_unit_test(test_training_with_cublas_has_near_losses),
        cmocka_unit_test(test_algorithms_are_chosen_before_the_first_step),
        cmocka_unit_test(test_recorded_steps_of_documents),
        cmocka_unit_test(test_f16_loss_scale_reaches_recorded_steps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

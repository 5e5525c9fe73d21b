/* Parity: the forward pass against Hugging Face transformers' logits (tests/golden, made by
 * scripts/make_goldens.py), against every intermediate tensor of a trained minGPT model
 * (nano_sort), and against llama2.c's greedy text (stories260K). On every instruction set. The last
 * two need data of others, which tests/golden/README.md says how to get; without it they are
 * skipped. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/file.h"
#include "model/safetensors.h"
#include "model/tokenizer.h"
#include "tests/cpu/amx_emulator.h"
#include "tests/cpu/cpu_util.h"
#include "tests/model/golden.h"
#include "tests/model/model_runner.h"

#define GOLDEN "tests/golden/"

enum { MAX_ROWS = 64 };

/* ---- data of others ---- */

enum { PATH_BYTES = 512 };

/* $GPTD_TEST_DATA/name, into path[PATH_BYTES]. */
static const char *data_path(char *path, const char *name)
{
    const char *dir = getenv("GPTD_TEST_DATA");
    snprintf(path, PATH_BYTES, "%s/%s", dir ? dir : "", name);
    return path;
}

static void skip_without(const char *name)
{
    char path[PATH_BYTES];
    if (!getenv("GPTD_TEST_DATA") || !file_exists(data_path(path, name))) skip();
}

static int32_t read_ids(const cJSON *array, int32_t *ids, int32_t max)
{
    int32_t n = 0;
    const cJSON *item;
    cJSON_ArrayForEach(item, array)
    {
        assert_true(n < max);
        ids[n++] = item->valueint;
    }
    return n;
}

static int32_t argmax(const float *x, int64_t n)
{
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    return (int32_t)best;
}

static float max_difference(const float *a, const float *b, int64_t n)
{
    float worst = 0;
    for (int64_t i = 0; i < n; i++) {
        float d = a[i] == b[i] ? 0 : fabsf(a[i] - b[i]); /* -inf masks both alike */
        if (!(d <= worst)) worst = d; /* a NaN sticks */
    }
    return worst;
}

/* ---- transformers ---- */

static const char *const golden_names[] = {"gpt2",         "gpt2_untied", "llama", "llama3",
                                           "llama_linear", "mistral",     "qwen2", "qwen3"};

static void check_prompt(struct model_runner *r, const cJSON *prompt, const float *expected)
{
    int32_t tokens[MAX_ROWS], greedy[MAX_ROWS];
    int64_t n_vocab = r->gpt.config.vocab_size;
    int32_t n = read_ids(cJSON_GetObjectItem(prompt, "tokens"), tokens, MAX_ROWS);
    int32_t n_greedy = read_ids(cJSON_GetObjectItem(prompt, "greedy"), greedy, MAX_ROWS);
    assert_true(n_greedy > 0);
    float *logits = malloc((size_t)(n * n_vocab) * sizeof *logits);

    runner_forward(r, tokens, n, 0, logits, NULL);
    int64_t first = (int64_t)cJSON_GetObjectItem(prompt, "logits_first_row")->valuedouble;
    float worst = max_difference(logits, expected + first * n_vocab, n * n_vocab);
    if (!(worst <= 1e-4f)) fail_msg("%s: logits differ by %g", r->gpt.config.arch, (double)worst);

    int32_t next = argmax(logits + (n - 1) * n_vocab, n_vocab);
    for (int32_t i = 0; i < n_greedy; i++) {
        assert_int_equal(next, greedy[i]);
        if (n + i >= r->gpt.config.block_size) break;
        runner_forward(r, &next, 1, n + i, logits, NULL);
        next = argmax(logits, n_vocab);
    }
    free(logits);
}

static void check_golden(const char *name, enum cpu_isa isa)
{
    char dir[128], path[192];
    snprintf(dir, sizeof dir, GOLDEN "%s", name);
    cJSON *golden = golden_read(dir);
    struct error err;
    struct file_map expected;
    snprintf(path, sizeof path, "%s/logits.f32", dir);
    if (!file_map_open(path, &expected, &err)) fail_msg("%s", err.text);

    struct model_runner r;
    runner_open(&r, dir, DTYPE_F32, &(struct cpu_options){.n_threads = 2, .isa = isa}, MAX_ROWS);
    int64_t rows = (int64_t)cJSON_GetObjectItem(golden, "logits_rows")->valuedouble;
    assert_int_equal(expected.size, rows * r.gpt.config.vocab_size * 4);
    const cJSON *prompt;
    int n_prompts = 0;
    cJSON_ArrayForEach(prompt, cJSON_GetObjectItem(golden, "prompts"))
    {
        check_prompt(&r, prompt, (const float *)expected.data);
        n_prompts++;
    }
    assert_true(n_prompts >= 2);
    runner_close(&r);
    file_map_close(&expected);
    cJSON_Delete(golden);
}

static void test_logits_and_greedy_text_equal_transformers(void **state)
{
    for (enum cpu_isa isa = CPU_ISA_REFERENCE; isa <= cpu_isa_best(); isa++) {
        for (size_t i = 0; i < sizeof golden_names / sizeof *golden_names; i++)
            check_golden(golden_names[i], isa);
    }
}

/* ---- nano_sort: every intermediate tensor ---- */

enum { NANO_T = 11, NANO_C = 48, NANO_H = 3, NANO_K = 16, NANO_F = 192, NANO_V = 3 };

struct partials {
    struct safetensors *file;
    struct model_runner *runner;
    int32_t sequence; /* which of the batch */
    int n_checked;
    float before[NANO_T * NANO_C]; /* the residual stream before what is added next */
};

static const struct safetensors_tensor *find_partial(const struct partials *p, const char *name)
{
    for (size_t i = 0; i < p->file->n_tensors; i++)
        if (strcmp(p->file->tensors[i].name, name) == 0) return &p->file->tensors[i];
    fail_msg("no %s in the partials", name);
    return NULL;
}

static void compare(struct partials *p, const char *name, const float *got, int64_t rows,
                    int64_t cols, int64_t stride, int64_t first_row)
{
    const float *want = (const float *)find_partial(p, name)->data;
    for (int64_t i = 0; i < rows; i++) {
        float worst = max_difference(got + i * stride, want + (first_row + i) * cols, cols);
        if (!(worst <= 1e-5f))
            fail_msg("%s row %lld differs by %g", name, (long long)i, (double)worst);
    }
    p->n_checked++;
}

/* q, k, v are [B, H, T, K] there and columns of qkv here. */
static void compare_heads(struct partials *p, const char *name, struct tensor qkv, int64_t column0)
{
    enum { H = 3, K = 16 };
    for (int64_t h = 0; h < H; h++)
        compare(p, name, (const float *)qkv.data + column0 + h * K, qkv.rows, K, qkv.cols,
                (p->sequence * H + h) * qkv.rows);
}

/* Scores and weights never exist as matrices here: from q and k as computed,
 * they must still be theirs. */
static void compare_attention(struct partials *p, struct tensor qkv)
{
    float scores[NANO_T * NANO_T], weights[NANO_T * NANO_T];
    for (int64_t h = 0; h < NANO_H; h++) {
        for (int64_t i = 0; i < NANO_T; i++) {
            const float *q = (const float *)qkv.data + i * qkv.cols + h * NANO_K;
            float sum = 0, *score = scores + i * NANO_T, *weight = weights + i * NANO_T;
            for (int64_t j = 0; j < NANO_T; j++) score[j] = -INFINITY, weight[j] = 0;
            for (int64_t j = 0; j <= i; j++) {
                score[j] = 0;
                const float *k = (const float *)qkv.data + j * qkv.cols + NANO_C + h * NANO_K;
                for (int64_t n = 0; n < NANO_K; n++) score[j] += q[n] * k[n] / 4;
                sum += weight[j] = expf(score[j]);
            }
            for (int64_t j = 0; j <= i; j++) weight[j] /= sum;
            int64_t row = (p->sequence * NANO_H + h) * NANO_T + i;
            compare(p, "att", score, 1, NANO_T, NANO_T, row);
            compare(p, "attSm", weight, 1, NANO_T, NANO_T, row);
        }
    }
}

/* What was added to the residual stream since `before`. */
static void compare_added(struct partials *p, const char *name, struct tensor x)
{
    float added[NANO_T * NANO_C];
    for (int64_t i = 0; i < NANO_T * NANO_C; i++)
        added[i] = ((const float *)x.data)[i] - p->before[i];
    compare(p, name, added, NANO_T, NANO_C, NANO_C, p->sequence * NANO_T);
}

/* gelu is fused into the product; without it, the product is `fc`. */
static void compare_fc(struct partials *p, struct tensor h)
{
    float *out = calloc(NANO_T * NANO_F, sizeof *out);
    struct tensor fc = {out, DTYPE_F32, NANO_T, NANO_F};
    const struct gpt_layer *l = &p->runner->gpt.layers[0];
    p->runner->device->ops->matmul(p->runner->device, fc, h, &l->mlp_up, l->mlp_up_bias,
                                   EPILOGUE_NONE);
    compare(p, "fc", out, NANO_T, NANO_F, NANO_F, p->sequence * NANO_T);
    free(out);
}

static void compare_probabilities(struct partials *p, struct tensor logits)
{
    for (int64_t i = 0; i < NANO_T; i++) {
        const float *x = (const float *)logits.data + i * NANO_V;
        float e[NANO_V] = {expf(x[0]), expf(x[1]), expf(x[2])}, sum = e[0] + e[1] + e[2];
        for (int64_t v = 0; v < NANO_V; v++) e[v] /= sum;
        compare(p, "probs", e, 1, NANO_V, NANO_V, p->sequence * NANO_T + i);
    }
}

/* The tensors of block 0 and of the whole model that are not the very tensors of a pass. */
static void see_derived(struct partials *p, const char *name, int32_t layer, struct tensor t)
{
    if (layer > 0) return;
    if (strcmp(name, "qkv") == 0) compare_attention(p, t);
    if (strcmp(name, "attn_resid") == 0) compare_added(p, "yProj", t);
    if (strcmp(name, "mlp_norm") == 0) compare_fc(p, t);
    if (strcmp(name, "mlp_resid") == 0) compare_added(p, "mlp", t);
    if (strcmp(name, "logits") == 0) compare_probabilities(p, t);
    if (strcmp(name, "embed") == 0 || strcmp(name, "attn_resid") == 0)
        memcpy(p->before, t.data, sizeof p->before);
}

static void see_nano_sort(void *ctx, const char *name, int32_t layer, struct tensor t)
{
    struct partials *p = ctx;
    see_derived(p, name, layer, t);
    static const struct { const char *ours, *theirs; int32_t layer; } map[] = {
        {"embed", "x", -1},          {"attn_norm", "ln1", 0},  {"qkv", "qkv", 0},
        {"attn", "y", 0},            {"attn_resid", "attnResid", 0},
        {"mlp_norm", "ln2", 0},      {"mlp_act", "gelu", 0},   {"mlp_resid", "mlpResid", 0},
        {"mlp_resid", "block0", 0},  {"mlp_resid", "block1", 1}, {"mlp_resid", "block2", 2},
        {"final_norm", "ln_f", -1},  {"logits", "lm_head", -1},
    };
    for (size_t i = 0; i < sizeof map / sizeof *map; i++)
        if (layer == map[i].layer && strcmp(name, map[i].ours) == 0)
            compare(p, map[i].theirs, t.data, t.rows, t.cols, t.cols, p->sequence * t.rows);
    if (layer == 0 && strcmp(name, "qkv") == 0) {
        compare_heads(p, "q", t, 0);
        compare_heads(p, "k", t, 48);
        compare_heads(p, "v", t, 96);
    }
}

static void check_nano_sort(enum cpu_isa isa)
{
    struct error err;
    struct model_runner r;
    char path[PATH_BYTES];
    runner_open(&r, data_path(path, "nano_sort"), DTYPE_F32,
                &(struct cpu_options){.n_threads = 1, .isa = isa}, 11);
    struct partials p = {.runner = &r};
    if (!safetensors_open(data_path(path, "nano_sort/partials.safetensors"), &p.file, &err))
        fail_msg("%s", err.text);
    const int32_t *idx = (const int32_t *)find_partial(&p, "idx")->data;
    float logits[11 * 3];
    for (p.sequence = 0; p.sequence < 3; p.sequence++) {
        int32_t tokens[11];
        for (int i = 0; i < 11; i++)
            tokens[i] = idx[p.sequence * 11 + i];
        struct gpt_observer observer = {.see = see_nano_sort, .ctx = &p};
        runner_forward(&r, tokens, 11, 0, logits, &observer);
    }
    /* A sequence: 13 tensors, 3 x 3 heads of q, k, v, 33 rows of scores and of weights, 3
     * derived, 11 rows of probabilities. */
    assert_int_equal(p.n_checked, 3 * (13 + 9 + 66 + 3 + 11));
    safetensors_close(p.file);
    runner_close(&r);
}

static void test_every_intermediate_of_nano_sort(void **state)
{
    skip_without("nano_sort");
    for (enum cpu_isa isa = CPU_ISA_REFERENCE; isa <= cpu_isa_best(); isa++)
        check_nano_sort(isa);
}

/* ---- stories260K: a trained Llama from GGUF, text to text ---- */

static void check_stories(enum cpu_isa isa)
{
    struct error err;
    struct model_runner r;
    char path[PATH_BYTES];
    runner_open(&r, data_path(path, "stories260K/stories260K.gguf"), DTYPE_F32,
                &(struct cpu_options){.n_threads = 2, .isa = isa}, 1);
    struct tokenizer *t;
    if (!tokenizer_open_gguf(checkpoint_gguf(r.checkpoint), &t, &err)) fail_msg("%s", err.text);
    struct buf expected, text;
    buf_init(&expected, 1 << 16);
    buf_init(&text, 1 << 16);
    if (!file_read(data_path(path, "stories260K/expected-greedy-200.txt"), &expected, &err))
        fail_msg("%s", err.text);

    struct token_decoder decoder = {0};
    float *logits = malloc((size_t)r.gpt.config.vocab_size * sizeof *logits);
    int32_t token = tokenizer_bos(t);
    for (int32_t pos = 0; pos < 200; pos++) {
        runner_forward(&r, &token, 1, pos, logits, NULL);
        token = argmax(logits, r.gpt.config.vocab_size);
        if (token == tokenizer_bos(t) || token == tokenizer_eos(t)) break;
        size_t n;
        const char *bytes = token_decode(t, &decoder, token, &n);
        buf_append(&text, bytes, n);
    }
    /* llama2.c ends its print with a newline. */
    while (expected.len && expected.data[expected.len - 1] == '\n')
        expected.data[--expected.len] = 0;
    assert_true(expected.len > 400);
    assert_true(text.len >= expected.len);
    assert_memory_equal(text.data, expected.data, expected.len);
    assert_true(text.len <= expected.len + 8);

    free(logits);
    buf_free(&expected);
    buf_free(&text);
    tokenizer_free(t);
    runner_close(&r);
}

static void test_stories260k_greedy_text_equals_llama2c(void **state)
{
    skip_without("stories260K");
    for (enum cpu_isa isa = CPU_ISA_REFERENCE; isa <= cpu_isa_best(); isa++)
        check_stories(isa);
}

/* ---- the same bits, however a sequence is cut ---- */

static void check_chunks(enum dtype dtype, enum cpu_isa isa, int32_t n_threads)
{
    struct model_runner r;
    runner_open(&r, "models/shakespeare", dtype,
                &(struct cpu_options){.n_threads = n_threads, .isa = isa}, MAX_ROWS);
    int64_t n_vocab = r.gpt.config.vocab_size;
    int32_t tokens[MAX_ROWS], n = isa == CPU_ISA_AMX ? 20 : MAX_ROWS; /* emulated, rows take time */
    for (int32_t i = 0; i < n; i++) tokens[i] = (int32_t)((i * 37 + 11) % n_vocab);
    size_t bytes = (size_t)(n * n_vocab) * sizeof(float);
    float *whole = malloc(bytes), *cut = malloc(bytes);
    runner_forward(&r, tokens, n, 0, whole, NULL);
    static const int32_t chunks[] = {1, 7, 16, 17};
    for (size_t c = 0; c < sizeof chunks / sizeof *chunks; c++) {
        memset(r.kv.data, 0xFF, (size_t)r.plan.component[MEMORY_KV_CACHE]);
        for (int32_t at = 0; at < n; at += chunks[c])
            runner_forward(&r, tokens + at, (int32_t)min_i64(chunks[c], n - at), at,
                           cut + at * n_vocab, NULL);
        assert_memory_equal(whole, cut, bytes);
    }
    free(whole);
    free(cut);
    runner_close(&r);
}

static void test_chunking_never_changes_a_bit(void **state)
{
    for (enum cpu_isa isa = CPU_ISA_REFERENCE; isa <= cpu_isa_best(); isa++) {
        /* it has bf16 alone */
        if (isa != CPU_ISA_AMX) check_chunks(DTYPE_F32, isa, 1);
        check_chunks(DTYPE_BF16, isa, 2);
    }
}

/* bf16 against f32 on a trained model: rounding noise, not another model. */
static void test_bf16_logits_stay_near_f32(void **state)
{
    struct cpu_options cpu = {.n_threads = 2, .isa = CPU_ISA_BEST};
    struct model_runner a, b;
    runner_open(&a, "models/shakespeare", DTYPE_F32, &cpu, MAX_ROWS);
    runner_open(&b, "models/shakespeare", DTYPE_BF16, &cpu, MAX_ROWS);
    int64_t n = MAX_ROWS * a.gpt.config.vocab_size;
    int32_t tokens[MAX_ROWS];
    for (int32_t i = 0; i < MAX_ROWS; i++) tokens[i] = (i * 37 + 11) % 256;
    float *la = malloc((size_t)n * sizeof *la), *lb = malloc((size_t)n * sizeof *lb);
    runner_forward(&a, tokens, MAX_ROWS, 0, la, NULL);
    runner_forward(&b, tokens, MAX_ROWS, 0, lb, NULL);
    double difference = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        difference += (double)(la[i] - lb[i]) * (la[i] - lb[i]);
        size += (double)la[i] * la[i];
    }
    assert_true(sqrt(difference / size) < 0.02);
    assert_true(difference > 0);
    free(la);
    free(lb);
    runner_close(&a);
    runner_close(&b);
}

/* Tables that do not fit the staging are written in parts. */
static void test_rotation_tables_longer_than_the_staging(void **state)
{
    (void)state;
    struct model_runner r;
    struct cpu_options cpu = {.n_threads = 1, .isa = CPU_ISA_BEST};
    runner_open(&r, "tests/golden/llama", DTYPE_F32, &cpu, 1);
    struct gpt g = r.gpt;
    int64_t k = g.config.head_dim;
    g.max_context = 1 << 17;
    int64_t bytes = gpt_load_staging_bytes(&g);
    assert_true(bytes < g.max_context * k * (int64_t)sizeof(float));
    float *staging = malloc((size_t)bytes);
    g.rope = calloc((size_t)(g.max_context * k), sizeof *g.rope);
    assert_true(staging && g.rope);
    struct error err;
    assert_true(gpt_write_rope(&g, r.device, staging, &err));
    for (int64_t pos = 0; pos < g.max_context; pos++)
        for (int64_t i = 0; i < k / 2; i++) {
            double angle = (double)pos * pow(g.config.rope_theta, -2.0 * (double)i / (double)k);
            const float *at = g.rope + pos * k + 2 * i;
            /* The angle has 24 bits. */
            assert_true(fabs(at[0] - cos(angle)) < 1e-5 + angle * 3e-7);
            assert_true(fabs(at[1] - sin(angle)) < 1e-5 + angle * 3e-7);
        }
    free(staging);
    free(g.rope);
    runner_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_logits_and_greedy_text_equal_transformers),
        cmocka_unit_test(test_every_intermediate_of_nano_sort),
        cmocka_unit_test(test_stories260k_greedy_text_equals_llama2c),
        cmocka_unit_test(test_chunking_never_changes_a_bit),
        cmocka_unit_test(test_bf16_logits_stay_near_f32),
        cmocka_unit_test(test_rotation_tables_longer_than_the_staging),
    };
    amx_emulator_use();
    return cmocka_run_group_tests(tests, NULL, NULL);
}

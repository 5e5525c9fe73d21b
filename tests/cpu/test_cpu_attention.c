/* Keys, values and attention at every instruction set: against softmax in double; and the same bits
 * however a sequence is cut into steps, whoever runs beside it, with any number of threads, and
 * whatever lies in slots that were not written. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/checked.h"
#include "tests/cpu/amx_emulator.h"
#include "tests/cpu/cpu_util.h"

enum { P = KV_PAGE_TOKENS, MAX_PAGES = 64 };

struct heads { int32_t h, g, k; };

static const struct heads head_shapes[] = {
    {4, 4, 8}, {6, 2, 16}, {3, 1, 32}, {5, 5, 48}, {9, 3, 64}, {4, 1, 80}, {8, 2, 96}, {2, 2, 128},
    {40, 2, 16},
};
enum { N_HEADS = sizeof head_shapes / sizeof *head_shapes };

/* Types of the cache; of activations beside a q8_0 one: f32 and bf16 in turn. */
static const enum dtype caches[] = {DTYPE_F32, DTYPE_BF16, DTYPE_Q8_0};
enum { N_CACHES = sizeof caches / sizeof *caches };
/* AMX has a kernel for bf16 alone, and emulated it takes time. */
static bool is_worth_it(enum cpu_isa isa, enum dtype cache)
{
    return isa != CPU_ISA_AMX || cache == DTYPE_BF16;
}

static enum dtype beside(enum dtype cache, int i)
{
    return cache == DTYPE_Q8_0 ? (i % 2 ? DTYPE_BF16 : DTYPE_F32) : cache;
}

/* A device with a cache of two layers; the second is used, the first must stay as it is. */
struct rig {
    struct cpu_fixture f;
    struct attention a;
    struct kv_cache kv;
    int64_t kv_bytes;
    int n_steps;
};

static void rig_open(struct rig *g, enum cpu_isa isa, int32_t n_threads, enum dtype dtype,
                     struct heads s, uint8_t garbage)
{
    struct workspace_shape plan = {.dtype = dtype, .max_rows = 1, .max_logit_rows = 1, .n_embd = 1,
                                   .n_ff = 1, .n_head = s.h, .n_kv_head = s.g, .head_dim = s.k,
                                   .vocab_size = 1, .block_size = MAX_PAGES * P};
    *g = (struct rig){0};
    cpu_fixture_open(&g->f, isa, n_threads, &plan);
    g->a = (struct attention){.n_head = s.h, .n_kv_head = s.g, .head_dim = s.k,
                              .scale = 1 / sqrtf((float)s.k), .qk_norm_eps = 1e-5f};
    g->kv_bytes = 2 * MAX_PAGES * g->f.d->ops->kv_page_bytes(g->f.d, dtype, s.g, s.k);
    g->kv = (struct kv_cache){device_bytes(g->kv_bytes), dtype, 2, MAX_PAGES, s.g, s.k};
    memset(g->kv.data, garbage, (size_t)g->kv_bytes);
}

static void rig_close(struct rig *g)
{
    free(g->kv.data);
    cpu_fixture_close(&g->f);
}

/* One sequence: its qkv rows as the model would hand them, its page table, how far it has come. */
struct sequence {
    int32_t n, done;
    float *qkv;               /* [n, (H + 2G) K] */
    int32_t pages[MAX_PAGES];
    float *out;               /* [n, H K] */
};

static struct sequence sequence_new(struct cpu_rng *rng, struct heads s, int32_t n,
                                    int32_t first_page)
{
    int64_t cols = (s.h + 2 * s.g) * s.k;
    struct sequence q = {.n = n, .qkv = malloc((size_t)(n * cols) * 4),
                         .out = calloc((size_t)n * s.h * s.k, 4)};
    cpu_rng_fill(rng, q.qkv, n * cols);
    /* Queries of some size, so that the softmax is not flat. */
    for (int64_t r = 0; r < n; r++)
        for (int64_t i = 0; i < s.h * s.k; i++) q.qkv[r * cols + i] *= 4;
    for (int32_t i = 0; i < MAX_PAGES; i++) q.pages[i] = (first_page + 29 * i) % MAX_PAGES;
    return q;
}

static void sequence_free(struct sequence *q)
{
    free(q->qkv);
    free(q->out);
}

/* One step with the next counts[i] rows of each sequence; results go to their `out`. */
static void step(struct rig *g, struct sequence *seqs, const int32_t *counts, int32_t n_seqs,
                 enum dtype out_dtype)
{
    int64_t cols = (g->a.n_head + 2 * g->a.n_kv_head) * g->a.head_dim;
    int64_t out_cols = g->a.n_head * g->a.head_dim;
    int32_t rows = 0, n_spans = 0, positions[MAX_PAGES * P], slots[MAX_PAGES * P];
    struct span spans[8];
    int32_t pages[8 * MAX_PAGES];
    for (int32_t i = 0; i < n_seqs; i++) rows += counts[i];
    struct tensor qkv = tensor_blank(DTYPE_F32, rows, cols);
    struct tensor out = tensor_blank(out_dtype, rows, out_cols);
    rows = 0;
    for (int32_t i = 0; i < n_seqs; i++) {
        struct sequence *q = &seqs[i];
        memcpy(pages + i * MAX_PAGES, q->pages, sizeof q->pages);
        if (counts[i] == 0) continue;
        spans[n_spans++] = (struct span){rows, counts[i], q->done, i * MAX_PAGES};
        for (int32_t j = 0; j < counts[i]; j++, rows++) {
            int32_t at = q->done + j;
            memcpy(tensor_row(qkv, rows), q->qkv + at * cols, (size_t)cols * 4);
            positions[rows] = at;
            slots[rows] = q->pages[at / P] * P + at % P;
        }
    }
    struct batch b = {.n_rows = rows, .n_spans = n_spans, .positions = positions, .slots = slots,
                      .spans = spans, .pages = pages};
    if (g->n_steps++ % 2) { /* at once, with the same bits */
        g->f.d->ops->kv_attention(g->f.d, out, qkv, &b, &g->a, &g->kv, 1);
    } else {
        g->f.d->ops->kv_write(g->f.d, qkv, &b, &g->a, &g->kv, 1);
        g->f.d->ops->attention(g->f.d, out, qkv, &b, &g->a, &g->kv, 1);
    }
    for (int32_t i = 0, row = 0; i < n_seqs; i++)
        for (int32_t j = 0; j < counts[i]; j++, row++, seqs[i].done++)
            for (int64_t c = 0; c < out_cols; c++)
                seqs[i].out[seqs[i].done * out_cols + c] = tensor_at(out, row, c);
    free(qkv.data), free(out.data);
}

/* Norm (if any) and rotation (if any) of one head, in double. */
static void turned_head(const struct attention *a, const float *x, const float *weight,
                        int32_t position, double *out)
{
    int32_t n = a->head_dim, half = n / 2;
    double squares = 0;
    for (int32_t i = 0; i < n; i++) squares += (double)x[i] * x[i];
    double scale = 1 / sqrt(squares / n + a->qk_norm_eps);
    for (int32_t i = 0; i < n; i++) out[i] = weight ? x[i] * scale * weight[i] : x[i];
    for (int32_t i = 0; a->rope && i < half; i++) {
        double c = a->rope[(position * half + i) * 2], s = a->rope[(position * half + i) * 2 + 1];
        double even = out[i], odd = out[i + half];
        out[i] = even * c - odd * s;
        out[i + half] = odd * c + even * s;
    }
}

/* n elements as the cache holds them; `block` of them share a scale in q8_0. */
static void round_row(enum dtype dtype, double *x, int32_t n, int32_t block)
{
    for (int32_t begin = 0; begin < n; begin += block) {
        int32_t end = (int32_t)min_i64(n, begin + block);
        float largest = 0;
        for (int32_t i = begin; i < end; i++) largest = fmaxf(largest, fabsf((float)x[i]));
        for (int32_t i = begin; i < end; i++)
            x[i] = dtype == DTYPE_Q8_0 ? nearbyintf((float)x[i] * (127 / largest)) * (largest / 127)
                                       : rounded(dtype, (float)x[i]);
    }
}

/* Compares one row and head of q->out with the definition. */
static void check_head(const struct rig *g, const struct sequence *q, int32_t row, int32_t head,
                       double tolerance)
{
    const struct attention *a = &g->a;
    int32_t n = a->head_dim, kv_head = head / (a->n_head / a->n_kv_head);
    int64_t cols = (a->n_head + 2 * a->n_kv_head) * n;
    double query[128], key[128], p[MAX_PAGES * P], max = -INFINITY, sum = 0, want[128] = {0};
    turned_head(a, q->qkv + row * cols + head * n, a->q_norm, row, query);
    if (g->kv.dtype == DTYPE_BF16) round_row(DTYPE_BF16, query, n, n);
    for (int32_t j = 0; j <= row; j++) {
        const float *k = q->qkv + j * cols + (a->n_head + kv_head) * n;
        turned_head(a, k, a->k_norm, j, key);
        round_row(g->kv.dtype, key, n, 32);
        p[j] = 0;
        for (int32_t i = 0; i < n; i++) p[j] += query[i] * key[i];
        p[j] *= a->scale;
        max = fmax(max, p[j]);
    }
    for (int32_t j = 0; j <= row; j++) sum += p[j] = exp(p[j] - max);
    for (int32_t j = 0; j <= row; j++) {
        double value[128];
        for (int32_t i = 0; i < n; i++)
            value[i] = q->qkv[j * cols + (a->n_head + a->n_kv_head + kv_head) * n + i];
        round_row(g->kv.dtype, value, n, n);
        for (int32_t i = 0; i < n; i++) want[i] += p[j] / sum * value[i];
    }
    for (int32_t i = 0; i < n; i++)
        assert_near(q->out[(row * a->n_head + head) * n + i], want[i], tolerance,
                    g->f.d->ops->description(g->f.d), row, head * n + i);
}

/* bf16: probabilities are rounded to 8 bits, so sums of values below 1 may be 2^-9 off, and as much
 * again where the output is bf16. q8_0: queries and probabilities are rounded to 15 bits, and
 * scores of some size are a few 2^-15 off. */
static double tolerance_of(enum dtype kv, enum dtype out)
{
    double of_cache = kv == DTYPE_F32 ? 3e-6 : kv == DTYPE_BF16 ? 2.5e-3 : 2e-4;
    return of_cache + (out == DTYPE_F32 ? 0 : 2.5e-3);
}

static void attention_is_right(void **state)
{
    struct cpu_rng rng = {11};
    for (int isa = 0; isa <= (int)cpu_isa_best(); isa++)
        for (int s = 0; s < N_HEADS; s++)
            for (int i = 0; i < N_CACHES; i++) {
                struct rig g;
                rig_open(&g, (enum cpu_isa)isa, 2, caches[i], head_shapes[s], 0xFF);
                static const int32_t lengths[] = {1, 15, 16, 17, 127, 129, 300};
                int32_t n = lengths[(s + isa) % 7];
                struct sequence q = sequence_new(&rng, head_shapes[s], n, 3);
                enum dtype out = s % 2 ? beside(caches[i], s / 2) : DTYPE_F32;
                step(&g, &q, &n, 1, out);
                for (int32_t row = 0; row < n; row += row < 20 ? 1 : 13)
                    for (int32_t h = 0; h < head_shapes[s].h; h += h < 6 ? 1 : 7)
                        check_head(&g, &q, row, h, tolerance_of(caches[i], out));
                sequence_free(&q);
                rig_close(&g);
            }
}

static void rotation_and_head_norms_are_right(void **state)
{
    enum { N = 40, K = 64, HALF = K / 2 };
    struct cpu_rng rng = {13};
    float *rope = malloc(N * HALF * 2 * sizeof *rope), q_norm[K], k_norm[K];
    for (int p = 0; p < N; p++)
        for (int i = 0; i < HALF; i++) {
            rope[(p * HALF + i) * 2] = cosf((float)p * powf(10000, -(float)i / HALF));
            rope[(p * HALF + i) * 2 + 1] = sinf((float)p * powf(10000, -(float)i / HALF));
        }
    cpu_rng_fill(&rng, q_norm, K);
    cpu_rng_fill(&rng, k_norm, K);
    for (int isa = 0; isa <= (int)cpu_isa_best(); isa++)
        for (int norms = 0; norms < 2; norms++) {
            struct rig g;
            rig_open(&g, (enum cpu_isa)isa, 2, DTYPE_F32, (struct heads){4, 2, K}, 0xFF);
            g.a.rope = rope;
            if (norms) g.a.q_norm = q_norm, g.a.k_norm = k_norm;
            struct sequence q = sequence_new(&rng, (struct heads){4, 2, K}, N, 0);
            static const int32_t counts[] = {23, 1, 16};
            for (int i = 0; i < 3; i++) step(&g, &q, &counts[i], 1, DTYPE_F32);
            for (int32_t row = 0; row < N; row++)
                for (int32_t h = 0; h < 4; h++) check_head(&g, &q, row, h, 1e-5);
            sequence_free(&q);
            rig_close(&g);
        }
    free(rope);
}

/* The sequence alone, all at once, one thread, a clean cache; then cut at random, beside others, on
 * other pages of a cache full of NaN. */
static void check_company(enum cpu_isa isa, enum dtype dtype, enum dtype out, struct heads s,
                          int32_t n)
{
    struct cpu_rng rng = {17};
    struct rig alone, busy;
    rig_open(&alone, isa, 1, dtype, s, 0);
    rig_open(&busy, isa, 3, dtype, s, 0xFF);
    struct sequence whole = sequence_new(&rng, s, n, 0);
    step(&alone, &whole, &n, 1, out);
    struct sequence seqs[3];
    for (int i = 0; i < 3; i++) {
        seqs[i] = sequence_new(&rng, s, i == 1 ? n : 5 + 60 * i, 0);
        for (int32_t p = 0; p < MAX_PAGES; p++) seqs[i].pages[p] = (i + 3 * p) % MAX_PAGES;
    }
    memcpy(seqs[1].qkv, whole.qkv, (size_t)(n * (s.h + 2 * s.g) * s.k) * 4);
    static const int32_t sizes[] = {1, 1, 17, 2, 40, 1, 7, 130};
    for (int turn = 0; seqs[1].done < n; turn++) {
        int32_t counts[3], size = turn > 200 ? 1 : sizes[cpu_rng_below(&rng, 8)];
        for (int i = 0; i < 3; i++)
            counts[i] = (int32_t)min_i64(size == 1 ? 1 : size + i, seqs[i].n - seqs[i].done);
        if (turn % 3 == 0) counts[0] = counts[2] = 0; /* decoding or a prompt by itself */
        step(&busy, seqs, counts, 3, out);
    }
    assert_memory_equal(seqs[1].out, whole.out, (size_t)n * s.h * s.k * 4);
    for (int64_t i = 0; i < (int64_t)n * s.h * s.k; i++) assert_true(isfinite(whole.out[i]));
    /* The other layer was not touched. */
    for (int64_t i = 0; i < busy.kv_bytes / 2; i++)
        assert_int_equal(((uint8_t *)busy.kv.data)[i], 0xFF);
    for (int i = 0; i < 3; i++) sequence_free(&seqs[i]);
    sequence_free(&whole);
    rig_close(&alone);
    rig_close(&busy);
}

static void cuts_and_company_change_no_bit(void **state)
{
    for (int isa = 0; isa <= (int)cpu_isa_best(); isa++)
        for (int s = 0; s < N_HEADS; s++)
            for (int i = 0; i < N_CACHES; i++)
                if (is_worth_it((enum cpu_isa)isa, caches[i]))
                    check_company((enum cpu_isa)isa, caches[i], beside(caches[i], s),
                                  head_shapes[s], s % 3 ? 150 : 310);
}

/* Every token by itself: the split over key blocks at each length, against the whole. */
static void decoding_equals_the_prompt(void **state)
{
    struct heads s = {9, 3, 64};
    for (int isa = 0; isa <= (int)cpu_isa_best(); isa++)
        for (int threads = 1; threads <= 6; threads++) {
            enum dtype dtype = threads % 2 ? DTYPE_BF16 : DTYPE_Q8_0;
            struct cpu_rng rng = {19};
            struct rig a, b;
            int32_t n = 400, one = 1;
            rig_open(&a, (enum cpu_isa)isa, 2, dtype, s, 0);
            rig_open(&b, (enum cpu_isa)isa, threads, dtype, s, 0x7F);
            struct sequence whole = sequence_new(&rng, s, n, 1);
            struct sequence single = sequence_new(&rng, s, n, 7);
            memcpy(single.qkv, whole.qkv, (size_t)(n * (s.h + 2 * s.g) * s.k) * 4);
            step(&a, &whole, &n, 1, DTYPE_F32);
            for (int32_t i = 0; i < n; i++) step(&b, &single, &one, 1, DTYPE_F32);
            assert_memory_equal(whole.out, single.out, (size_t)n * s.h * s.k * 4);
            sequence_free(&whole), sequence_free(&single);
            rig_close(&a), rig_close(&b);
        }
}

/* Scores far apart and far out: the softmax neither overflows nor divides by zero. */
static void large_scores_are_finite(void **state)
{
    struct heads s = {2, 1, 16};
    for (int isa = 0; isa <= (int)cpu_isa_best(); isa++)
        for (int t = 0; t < N_CACHES; t++) {
            struct cpu_rng rng = {23};
            struct rig g;
            int32_t n = 140;
            rig_open(&g, (enum cpu_isa)isa, 1, caches[t], s, 0xFF);
            struct sequence q = sequence_new(&rng, s, n, 1);
            for (int64_t i = 0; i < n * (s.h + 2 * s.g) * s.k; i++)
                if (i % ((s.h + 2 * s.g) * s.k) < (s.h + s.g) * s.k) q.qkv[i] *= 1000;
            step(&g, &q, &n, 1, DTYPE_F32);
            for (int64_t i = 0; i < n * s.h * s.k; i++) assert_true(fabsf(q.out[i]) <= 1.0001f);
            sequence_free(&q);
            rig_close(&g);
        }
}

int main(void)
{
    amx_emulator_use();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(attention_is_right),
        cmocka_unit_test(rotation_and_head_norms_are_right),
        cmocka_unit_test(cuts_and_company_change_no_bit),
        cmocka_unit_test(decoding_equals_the_prompt),
        cmocka_unit_test(large_scores_are_finite),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

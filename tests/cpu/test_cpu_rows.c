/* Row operations at every instruction set against the same in double; bits alone and in company. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/sampler.h"
#include "tests/cpu/cpu_util.h"

static const int64_t widths[] = {1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100, 576, 1000};
enum { N_WIDTHS = sizeof widths / sizeof *widths, ROWS = 40 };

static void open_at(struct cpu_fixture *f, int isa, int32_t threads)
{
    struct workspace_shape plan = {.max_rows = 1, .max_logit_rows = 1, .n_embd = 1, .n_ff = 1,
                                   .n_head = 1, .n_kv_head = 1, .head_dim = 1, .vocab_size = 1};
    cpu_fixture_open(f, (enum cpu_isa)isa, threads, &plan);
}

/* bf16 outputs are f32 results rounded once: half of 2^-8,
 * and a rounding that f32's error may tip. */
static double tolerance_of(enum dtype out) { return out == DTYPE_F32 ? 3e-6 : 4e-3; }

static void check_norm(struct cpu_fixture *f, int64_t n, bool rms, bool bias, enum dtype out_dtype)
{
    struct cpu_rng rng = {(uint64_t)n};
    float *xv = malloc((size_t)(ROWS * n) * 4), *weight = malloc((size_t)n * 4);
    float *shift = malloc((size_t)n * 4);
    cpu_rng_fill(&rng, xv, ROWS * n), cpu_rng_fill(&rng, weight, n), cpu_rng_fill(&rng, shift, n);
    for (int64_t i = 0; i < ROWS * n; i++) xv[i] = xv[i] * 3 + 1;
    struct norm norm = {weight, bias ? shift : NULL, 1e-5f, rms};
    struct tensor x = tensor_from(DTYPE_F32, ROWS, n, xv), out = tensor_blank(out_dtype, ROWS, n);
    f->d->ops->norm(f->d, out, x, &norm);
    for (int64_t r = 0; r < ROWS; r++) {
        double mean = 0, squares = 0;
        for (int64_t i = 0; i < n && !rms; i++) mean += xv[r * n + i] / (double)n;
        for (int64_t i = 0; i < n; i++) squares += pow(xv[r * n + i] - mean, 2) / (double)n;
        for (int64_t i = 0; i < n; i++) {
            double want = (xv[r * n + i] - mean) / sqrt(squares + 1e-5) * weight[i];
            /* A row of one has nothing but rounding left of x - mean. */
            assert_near(tensor_at(out, r, i), want + (bias ? shift[i] : 0),
                        tolerance_of(out_dtype), f->d->ops->description(f->d), r, i);
        }
    }
    struct tensor one = tensor_blank(out_dtype, 1, n);
    for (int64_t r = 0; r < ROWS; r += 13) {
        f->d->ops->norm(f->d, one, (struct tensor){tensor_row(x, r), DTYPE_F32, 1, n}, &norm);
        assert_memory_equal(one.data, tensor_row(out, r), (size_t)n * element_bytes(out_dtype));
    }
    free(xv), free(weight), free(shift), free(x.data), free(out.data), free(one.data);
}

static void norms_are_right(void **state)
{
    for (int isa = 0; isa <= (int)cpu_isa_best(); isa++) {
        struct cpu_fixture f;
        open_at(&f, isa, 3);
        for (int w = 0; w < N_WIDTHS; w++)
            for (int kind = 0; kind < 4; kind++)
                check_norm(&f, widths[w], kind & 1, kind & 2, w % 2 ? DTYPE_BF16 : DTYPE_F32);
        cpu_fixture_close(&f);
    }
}

/* A large offset: the variance comes from differences to the mean,
 * not from a difference of squares. */
static void layernorm_survives_an_offset(void **state)
{
    enum { N = 576 };
    float x[N], weight[N], out[N];
    for (int i = 0; i < N; i++) x[i] = 4096 + (float)(i % 2), weight[i] = 1;
    struct norm norm = {weight, NULL, 0, false};
    for (int isa = 0; isa <= (int)cpu_isa_best(); isa++) {
        struct cpu_fixture f;
        open_at(&f, isa, 1);
        f.d->ops->norm(f.d, (struct tensor){out, DTYPE_F32, 1, N},
                       (struct tensor){x, DTYPE_F32, 1, N}, &norm);
        for (int i = 0; i < N; i++) assert_near(out[i], i % 2 ? 1 : -1, 2e-3, "offset", 0, i);
        cpu_fixture_close(&f);
    }
}

static void swiglu_is_right(void **state)
{
    for (int isa = 0; isa <= (int)cpu_isa_best(); isa++) {
        struct cpu_fixture f;
        open_at(&f, isa, 2);
        for (int w = 0; w < N_WIDTHS; w++) {
            int64_t n = widths[w];
            struct cpu_rng rng = {5};
            enum dtype out_dtype = w % 2 ? DTYPE_F32 : DTYPE_BF16;
            float *values = malloc((size_t)(ROWS * 2 * n) * sizeof *values);
            for (int64_t i = 0; i < ROWS * 2 * n; i++) values[i] = cpu_rng_float(&rng) * 8;
            values[0] = -200; /* exp(200) overflows; silu is zero */
            struct tensor x = tensor_from(out_dtype, ROWS, 2 * n, values);
            struct tensor out = tensor_blank(out_dtype, ROWS, n);
            free(values);
            f.d->ops->swiglu(f.d, out, x);
            for (int64_t r = 0; r < ROWS; r++)
                for (int64_t i = 0; i < n; i++) {
                    double gate = tensor_at(x, r, i), up = tensor_at(x, r, n + i);
                    assert_near(tensor_at(out, r, i), gate / (1 + exp(-gate)) * up,
                                tolerance_of(out_dtype), f.d->ops->description(f.d), r, i);
                }
            free(x.data), free(out.data);
        }
        cpu_fixture_close(&f);
    }
}

static void gather_copies_rows(void **state)
{
    static const int32_t rows[] = {3, 0, 3, 39, 1};
    struct cpu_fixture f;
    open_at(&f, 0, 1);
    struct cpu_rng rng = {5};
    struct tensor x = tensor_blank(DTYPE_F32, ROWS, 33), out = tensor_blank(DTYPE_F32, 5, 33);
    cpu_rng_fill(&rng, x.data, ROWS * 33);
    f.d->ops->gather(f.d, out, x, rows);
    for (int i = 0; i < 5; i++)
        assert_memory_equal(tensor_row(out, i), tensor_row(x, rows[i]), 33 * 4);
    free(x.data), free(out.data);
    cpu_fixture_close(&f);
}

/* Every bf16 rounding case: ties to even, carries into the exponent, infinities, NaN. */
static void rounding_to_bf16_is_exact(void **state)
{
    static const uint32_t bits[] = {0, 0x80000000, 0x3F800000, 0x3F808000, 0x3F818000, 0x3F808001,
                                    0x3F807FFF, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7F800001,
                                    0x7FFFFFFF,
                                    0xFFFFFFFF, 1, 0x00007FFF, 0x00008001, 0x3FFFFFFF};
    enum { N = sizeof bits / sizeof *bits };
    for (int isa = 0; isa <= (int)cpu_isa_best(); isa++) {
        struct cpu_kernels k;
        uint16_t out[N + 1];
        float x[N];
        memcpy(x, bits, sizeof x);
        cpu_kernels_init(&k, (enum cpu_isa)isa);
        out[N] = 0x1234;
        k.to_bf16(out, x, N);
        for (int i = 0; i < N; i++) {
            float got = bf16_to_f32(out[i]), want = bf16_to_f32(f32_to_bf16(x[i]));
            assert_true(isnan(want) ? isnan(got) : !memcmp(&got, &want, 4));
        }
        assert_int_equal(out[N], 0x1234);
    }
}

/* The bits of Philox, whatever computes them. */
static void dropout_factors_are_the_references(void **state)
{
    static const int64_t lengths[] = {1, 3, 4, 5, 63, 64, 65, 128, 4096};
    struct dropout_row d = {0.3f, {4294967000u - 1024, 7, 4294967295u, 1}, {123456789, 987654321}};
    struct cpu_kernels reference;
    cpu_kernels_init(&reference, (enum cpu_isa)0);
    for (int isa = 0; isa <= (int)cpu_isa_best(); isa++) {
        struct cpu_kernels k;
        cpu_kernels_init(&k, (enum cpu_isa)isa);
        for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++) {
            float want[4097], got[4097];
            uint32_t words[4];
            int64_t n = lengths[l];
            reference.dropout_row(want, &d, n);
            got[n] = -1;
            k.dropout_row(got, &d, n);
            assert_memory_equal(got, want, (size_t)n * 4);
            assert_true(got[n] == -1);
            philox4x32(d.counter, d.key, words);
            for (int64_t i = 0; i < n && i < 4; i++) {
                bool kept = words[i] >= (uint32_t)(0.3f * 4294967296.0);
                assert_true(got[i] == (kept ? 1 / (1 - 0.3f) : 0));
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(norms_are_right),       cmocka_unit_test(layernorm_survives_an_offset),
        cmocka_unit_test(swiglu_is_right),       cmocka_unit_test(gather_copies_rows),
        cmocka_unit_test(rounding_to_bf16_is_exact),
        cmocka_unit_test(dropout_factors_are_the_references),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

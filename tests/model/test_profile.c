/* A profile: the other device's results to the bit, every operation passed on, and counts that
 * follow from the operands. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "cpu/cpu.h"
#include "model/device_train.h"
#include "model/profile.h"

enum { ROWS = 50, N_IN = 40, N_OUT = 96 };

static struct device *open_cpu(void)
{
    struct device *d;
    struct error err;
    if (!cpu_device_open(&(struct cpu_options){.n_threads = 1}, &d, &err)) fail_msg("%s", err.text);
    return d;
}

static struct device *open_profile(FILE *to)
{
    struct device *d;
    struct error err;
    if (!profile_open(open_cpu(), to, &d, &err)) fail_msg("%s", err.text);
    return d;
}

/* One product on the device: y = x W^T. */
static void multiply(struct device *d, float y[ROWS * N_OUT])
{
    static float w_rows[N_OUT * N_IN];
    struct error err;
    struct workspace_shape shape = {.max_rows = ROWS, .max_logit_rows = 1, .n_embd = N_IN,
                                    .n_ff = N_OUT, .n_head = 1, .n_kv_head = 1, .head_dim = 16,
                                    .vocab_size = 32, .block_size = 16};
    int64_t room = d->train->workspace_bytes(d, &shape);
    int64_t matrix = d->ops->matrix_bytes(d, DTYPE_F32, N_OUT, N_IN);
    size_t bytes = (size_t)(room + matrix + ROWS * (N_IN + N_OUT) * 4);
    uint8_t *arena = d->ops->alloc(d, bytes, &err);
    assert_non_null(arena);
    struct matrix w = {.data = arena + room, .n_out = N_OUT, .n_in = N_IN};
    struct tensor x = {(uint8_t *)w.data + matrix, DTYPE_F32, ROWS, N_IN};
    struct tensor out = {(float *)x.data + ROWS * N_IN, DTYPE_F32, ROWS, N_OUT};
    for (int i = 0; i < N_OUT * N_IN; i++) w_rows[i] = (float)(i % 17) * 0.25f - 2;
    d->ops->set_workspace(d, arena, room);
    d->ops->matrix_write(d, &w, 0, N_OUT, w_rows);
    d->ops->upload(d, x.data, w_rows + 3, ROWS * N_IN * 4);
    d->ops->matmul(d, out, x, &w, NULL, EPILOGUE_NONE);
    d->ops->matmul(d, out, x, &w, NULL, EPILOGUE_NONE);
    d->ops->download(d, y, out.data, ROWS * N_OUT * 4);
    assert_true(d->ops->sync(d, &err));
    d->ops->free(d, arena, bytes);
}

/* The columns of the operation's line: 0 when it has none. */
static int find_line(const char *table, const char *name, long long *calls, double *gigabytes,
                     double *gigaflops)
{
    double ms, cpu, percent, limit;
    const char *at = strstr(table, name);
    if (!at) return 0;
    assert_int_equal(sscanf(at + strlen(name), "%lld %lf %lf %lf %lf %lf %lf", calls, &ms, &cpu,
                            &percent, gigabytes, gigaflops, &limit), 7);
    assert_true(ms > 0 && cpu >= 0 && percent > 0 && percent <= 100 && limit >= 0);
    *gigabytes *= ms / 1e3;
    *gigaflops *= ms / 1e3;
    return 1;
}

static void test_same_bits_and_counts(void **state)
{
    float want[ROWS * N_OUT], got[ROWS * N_OUT];
    char *table;
    size_t size;
    FILE *to = open_memstream(&table, &size);
    struct device *plain = open_cpu(), *profile = open_profile(to);
    assert_string_equal(profile->name, "cpu");
    assert_string_equal(profile->ops->description(profile), plain->ops->description(plain));
    multiply(plain, want);
    multiply(profile, got);
    assert_memory_equal(got, want, sizeof want);
    plain->ops->close(plain);
    profile->ops->close(profile);
    fclose(to);

    long long calls;
    double bytes, flops;
    assert_true(find_line(table, "matmul f32 96 x 40", &calls, &bytes, &flops));
    assert_int_equal(calls, 2);
    /* The columns are rounded. */
    double want_flops = 2 * 2e-9 * ROWS * N_OUT * N_IN;
    assert_true(flops > 0.5 * want_flops && flops < 2 * want_flops);
    assert_true(find_line(table, "matrix_write", &calls, &bytes, &flops));
    assert_int_equal(calls, 1);
    assert_true(find_line(table, "download", &calls, &bytes, &flops));
    assert_null(strstr(table, "adamw")); /* of measuring the limits: before the workspace was set */
    assert_non_null(strstr(table, "GB/s read from memory"));
    assert_non_null(strstr(table, "GFLOP/s in f32"));
    assert_non_null(strstr(table, "between operations"));
    free(table);
}

/* An operation that is added to the devices and not here would be called on the wrong struct. */
static void test_every_operation_is_passed_on(void **state)
{
    char *table;
    size_t size;
    FILE *to = open_memstream(&table, &size);
    struct device *plain = open_cpu(), *profile = open_profile(to);
    void *const *mine = (void *const *)profile->ops, *const *theirs = (void *const *)plain->ops;
    for (size_t i = 0; i < sizeof *profile->ops / sizeof *mine; i++) {
        assert_int_equal(mine[i] == NULL, theirs[i] == NULL); /* a GPU's alone, here not */
        assert_true(!mine[i] || mine[i] != theirs[i]);
    }
    mine = (void *const *)profile->train;
    theirs = (void *const *)plain->train;
    assert_int_equal(profile->train->writes_act, plain->train->writes_act);
    size_t first = offsetof(struct device_train_ops, matrix_read) / sizeof *mine;
    for (size_t i = first; i < sizeof *profile->train / sizeof *mine; i++) {
        assert_int_equal(mine[i] == NULL, theirs[i] == NULL);
        assert_true(!mine[i] || mine[i] != theirs[i]);
    }
    plain->ops->close(plain);
    profile->ops->close(profile);
    fclose(to);
    free(table);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bits_and_counts),
        cmocka_unit_test(test_every_operation_is_passed_on),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

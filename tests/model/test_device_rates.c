/* Rates are of the magnitude that any machine has, and taking them leaves nothing behind. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <time.h>

#include <cmocka.h>

#include <string.h>

#include "cpu/cpu.h"
#include "model/device_rates.h"
#include "model/device_train.h"

static struct device *device;

static int set_up(void **state)
{
    struct error err;
    struct cpu_options one = {.n_threads = 1, .isa = CPU_ISA_BEST};
    return cpu_device_open(&one, &device, &err) ? 0 : -1;
}

static int tear_down(void **state)
{
    device->ops->close(device);
    return 0;
}

static void test_magnitudes(void **state)
{
    static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_BF16};
    for (int i = 0; i < 2; i++) {
        struct device_rates r;
        struct error err;
        if (!device_rates_measure(device, dtypes[i], &r, &err)) fail_msg("%s", err.text);
        assert_true(r.flops > 1e7 && r.flops < 1e14);
        assert_true(r.bytes > 1e7 && r.bytes < 1e13);
        assert_string_equal(r.source, "measured now");
    }
}

/* Reading what no cache holds is no faster than what is read and written in a cache, with room for
 * what a busy machine does to either. */
static void test_reading_memory(void **state)
{
    struct device_rates r;
    struct error err;
    double bytes;
    assert_true(device_read_rate_measure(device, &bytes, &err));
    assert_true(device_rates_measure(device, DTYPE_F32, &r, &err));
    assert_true(bytes > 1e7 && bytes < 1e13);
    assert_true(bytes < 10 * r.bytes);
}

/* Slower instructions are measured to be slower. */
static void test_it_measures_this_device(void **state)
{
    struct device *slow;
    struct device_rates a, b;
    struct error err;
    struct cpu_options reference = {.n_threads = 1, .isa = CPU_ISA_REFERENCE};
    assert_true(cpu_device_open(&reference, &slow, &err));
    assert_true(device_rates_measure(device, DTYPE_F32, &a, &err));
    assert_true(device_rates_measure(slow, DTYPE_F32, &b, &err));
    slow->ops->close(slow);
    if (strstr(device->ops->description(device), "AVX")) assert_true(a.flops > b.flops);
}

static const struct device_ops *real;
static int n_slow; /* products that wait, as on a machine that others use */

static void slow_matmul(struct device *d, struct tensor out, struct tensor x,
                        const struct matrix *w, const float *bias, enum epilogue epilogue)
{
    if (n_slow-- > 0) nanosleep(&(struct timespec){.tv_nsec = 60000000}, NULL);
    real->matmul(d, out, x, w, bias, epilogue);
}

static void no_adamw(struct device *d, const struct adamw_tensor *w, const bool *skip, int64_t n,
                     const struct adamw_step *s)
{
    fail_msg("AdamW was called");
}

/* Nothing that nobody asked for is waited for. */
static void test_products_alone(void **state)
{
    const struct device_train_ops *all = device->train;
    struct device_train_ops train = *all;
    struct error err;
    double flops;
    train.adamw = no_adamw;
    device->train = &train;
    bool ok = device_product_rate_measure(device, DTYPE_BF16, &flops, &err);
    device->train = all;
    assert_true(ok);
    assert_true(flops > 1e7 && flops < 1e14);
}

/* A machine that is busy just then has no less of a peak: two rounds that take all the time that
 * was meant for the measurement do not decide it. */
static void test_a_busy_moment_does_not_count(void **state)
{
    struct device_rates r;
    struct error err;
    real = device->ops;
    struct device_ops ops = *real;
    ops.matmul = slow_matmul;
    device->ops = &ops;
    n_slow = 2;
    assert_true(device_rates_measure(device, DTYPE_F32, &r, &err));
    device->ops = real;
    assert_true(n_slow < 0);
    assert_true(r.flops > 2.0 * 64 * 768 * 768 / 0.06); /* neither of the two */
}

static void test_a_device_that_only_serves(void **state)
{
    struct device serves = *device;
    struct device_rates r;
    struct error err;
    double bytes;
    serves.train = NULL;
    assert_false(device_read_rate_measure(&serves, &bytes, &err));
    assert_int_equal(err.code, ERR_UNSUPPORTED);
    assert_false(device_rates_measure(&serves, DTYPE_F32, &r, &err));
    assert_int_equal(err.code, ERR_UNSUPPORTED);
    assert_false(device_product_rate_measure(&serves, DTYPE_F32, &bytes, &err));
    assert_int_equal(err.code, ERR_UNSUPPORTED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_magnitudes),
        cmocka_unit_test(test_reading_memory),
        cmocka_unit_test(test_it_measures_this_device),
        cmocka_unit_test(test_products_alone),
        cmocka_unit_test(test_a_busy_moment_does_not_count),
        cmocka_unit_test(test_a_device_that_only_serves),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}

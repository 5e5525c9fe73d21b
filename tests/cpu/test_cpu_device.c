/* Opening the CPU device, its memory, its sizes; how many threads it takes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/cpu/cpu_util.h"

static void names_of_instruction_sets(void **state)
{
    enum cpu_isa isa;
    assert_true(cpu_isa_parse("reference", &isa) && isa == CPU_ISA_REFERENCE);
    assert_true(cpu_isa_parse("avx512_bf16", &isa) && isa == CPU_ISA_AVX512_BF16);
    assert_true(cpu_isa_parse("amx", &isa) && isa == CPU_ISA_AMX);
    assert_true(cpu_isa_parse("best", &isa) && isa == CPU_ISA_BEST);
    assert_false(cpu_isa_parse("AVX2", &isa));
    assert_false(cpu_isa_parse("", &isa));
    assert_string_equal(cpu_isa_name(CPU_ISA_AVX2), "avx2");
}

static void device_says_what_it_is(void **state)
{
    struct cpu_options o = {.n_threads = 1, .isa = CPU_ISA_REFERENCE};
    struct device *d;
    struct error err;
    assert_true(cpu_device_open(&o, &d, &err));
    assert_string_equal(d->name, "cpu");
    assert_string_equal(d->ops->description(d), "cpu: 1 thread, plain C");
    assert_true(d->ops->sync(d, &err));
    d->ops->close(d);
    o = (struct cpu_options){.n_threads = 0, .isa = CPU_ISA_BEST};
    assert_true(cpu_device_open(&o, &d, &err));
    d->ops->close(d);
    o.n_threads = 1 << 20;
    assert_false(cpu_device_open(&o, &d, &err));
    assert_int_equal(err.code, ERR_INVALID);
}

static void missing_instruction_sets_are_refused(void **state)
{
    enum cpu_isa best = cpu_isa_best();
    if (best == CPU_ISA_AMX) return; /* this machine has them all */
    struct cpu_options o = {.n_threads = 1, .isa = (enum cpu_isa)(best + 1)};
    struct device *d;
    struct error err;
    assert_false(cpu_device_open(&o, &d, &err));
    assert_int_equal(err.code, ERR_UNSUPPORTED);
}

static void arenas_are_zeroed_aligned_and_given_back(void **state)
{
    static const size_t sizes[] = {1, 4096, 100000, (40 << 20) + 5};
    struct cpu_options o = {.n_threads = 2, .isa = CPU_ISA_BEST};
    struct device *d;
    struct error err;
    assert_true(cpu_device_open(&o, &d, &err));
    for (size_t i = 0; i < 4; i++) {
        uint8_t *p = d->ops->alloc(d, sizes[i], &err);
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % DEVICE_ALIGN, 0);
        for (size_t j = 0; j < sizes[i]; j += 1021) assert_int_equal(p[j], 0);
        p[sizes[i] - 1] = 1;
        d->ops->upload(d, p, "x", 1);
        char c;
        d->ops->download(d, &c, p, 1);
        assert_int_equal(c, 'x');
        d->ops->free(d, p, sizes[i]);
    }
    d->ops->free(d, NULL, 5);
    assert_null(d->ops->alloc(d, 0, &err));
    assert_int_equal(err.code, ERR_INVALID);
    assert_null(d->ops->alloc(d, (size_t)1 << 60, &err));
    assert_int_equal(err.code, ERR_MEMORY);
    assert_null(d->ops->alloc(d, SIZE_MAX, &err));
    d->ops->close(d);
}

static void sizes_are_the_layouts(void **state)
{
    struct cpu_options o = {.n_threads = 1, .isa = CPU_ISA_REFERENCE};
    struct device *d;
    assert_true(cpu_device_open(&o, &d, NULL));
    assert_int_equal(d->ops->matrix_bytes(d, DTYPE_F32, 33, 5), 64 * 5 * 4);
    assert_int_equal(d->ops->matrix_bytes(d, DTYPE_BF16, 32, 5), 32 * 6 * 2);
    assert_int_equal(d->ops->matrix_bytes(d, DTYPE_BF16, 1 << 22, 1 << 17), (int64_t)1 << 40);
    assert_int_equal(d->ops->kv_page_bytes(d, DTYPE_BF16, 3, 64), 3 * 2 * 16 * 64 * 2);
    assert_int_equal(d->ops->kv_page_bytes(d, DTYPE_F32, 1, 8), (16 * 8 + 16 * 16) * 4);
    /* Codes, and scales of two blocks of a key and of a value. */
    assert_int_equal(d->ops->kv_page_bytes(d, DTYPE_Q8_0, 3, 64), 3 * 16 * (2 * 64 + 3 * 4));
    d->ops->close(d);
}

/* A file system in a temporary directory: what a container shows. */
struct root { char path[64]; };

static struct root root_new(void)
{
    struct root r = {"/tmp/gptd_cpu_count_XXXXXX"};
    assert_non_null(mkdtemp(r.path));
    return r;
}

static void root_put(const struct root *r, const char *name, const char *text)
{
    char path[512];
    snprintf(path, sizeof path, "%s%s", r->path, name);
    for (char *slash = path + strlen(r->path) + 1; (slash = strchr(slash, '/')); slash++) {
        *slash = 0;
        mkdir(path, 0700);
        *slash = '/';
    }
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static void root_remove(const struct root *r)
{
    char command[128];
    snprintf(command, sizeof command, "rm -r %s", r->path);
    assert_int_equal(system(command), 0);
}

static void quota_of_cgroup_v2(void **state)
{
    struct root r = root_new();
    assert_int_equal(cpu_count(r.path, 7), 7); /* no cgroups at all */
    root_put(&r, "/proc/self/cgroup", "0::/\n");
    root_put(&r, "/sys/fs/cgroup/cpu.max", "250000 100000\n");
    assert_int_equal(cpu_count(r.path, 8), 2);
    assert_int_equal(cpu_count(r.path, 1), 1);
    root_put(&r, "/sys/fs/cgroup/cpu.max", "max 100000\n");
    assert_int_equal(cpu_count(r.path, 8), 8);
    root_put(&r, "/sys/fs/cgroup/cpu.max", "50000 100000\n");
    assert_int_equal(cpu_count(r.path, 8), 1); /* half a processor is still one thread */
    root_put(&r, "/sys/fs/cgroup/cpu.max", "garbage\n");
    assert_int_equal(cpu_count(r.path, 8), 8);
    root_remove(&r);
}

static void quota_of_a_parent_group_counts(void **state)
{
    struct root r = root_new();
    root_put(&r, "/proc/self/cgroup", "0::/a.slice/b\n");
    root_put(&r, "/sys/fs/cgroup/a.slice/b/cpu.max", "max 100000\n");
    root_put(&r, "/sys/fs/cgroup/a.slice/cpu.max", "300000 100000\n");
    assert_int_equal(cpu_count(r.path, 8), 3);
    root_remove(&r);
}

static void quota_of_cgroup_v1(void **state)
{
    struct root r = root_new();
    root_put(&r, "/proc/self/cgroup", "5:cpuset:/x\n4:cpu,cpuacct:/docker/y\n1:name=systemd:/z\n");
    root_put(&r, "/sys/fs/cgroup/cpu/docker/y/cpu.cfs_quota_us", "400000\n");
    root_put(&r, "/sys/fs/cgroup/cpu/docker/y/cpu.cfs_period_us", "100000\n");
    assert_int_equal(cpu_count(r.path, 8), 4);
    root_put(&r, "/sys/fs/cgroup/cpu/docker/y/cpu.cfs_quota_us", "-1\n");
    assert_int_equal(cpu_count(r.path, 8), 8);
    root_remove(&r);
}

static void cores_are_counted_once(void **state)
{
    static const char *const siblings[] = {"0,2\n", "1-1,3\n", "0,2\n", "1,3\n", "4-5\n", "4-5\n"};
    struct root r = root_new();
    cpu_set_t mask;
    CPU_ZERO(&mask);
    for (int i = 0; i < 6; i++) {
        char path[128];
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list",
                 i);
        root_put(&r, path, siblings[i]);
        CPU_SET(i, &mask);
    }
    assert_int_equal(cpu_cores(r.path, &mask), 3);
    CPU_CLR(0, &mask); /* its core's other thread counts for it */
    assert_int_equal(cpu_cores(r.path, &mask), 3);
    CPU_CLR(2, &mask);
    assert_int_equal(cpu_cores(r.path, &mask), 2);
    CPU_SET(9, &mask); /* nothing is known of it */
    assert_int_equal(cpu_cores(r.path, &mask), 3);
    root_put(&r, "/sys/devices/system/cpu/cpu9/topology/thread_siblings_list", "garbage\n");
    assert_int_equal(cpu_cores(r.path, &mask), 3);
    root_remove(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_of_instruction_sets),
        cmocka_unit_test(device_says_what_it_is),
        cmocka_unit_test(missing_instruction_sets_are_refused),
        cmocka_unit_test(arenas_are_zeroed_aligned_and_given_back),
        cmocka_unit_test(sizes_are_the_layouts),
        cmocka_unit_test(quota_of_cgroup_v2),
        cmocka_unit_test(quota_of_a_parent_group_counts),
        cmocka_unit_test(quota_of_cgroup_v1),
        cmocka_unit_test(cores_are_counted_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

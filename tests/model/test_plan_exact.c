/* The plan is the allocation, for every preset, device and combination of formats: the second
 * pass over an arena takes what the first one planned, to the byte. Layouts only hand out
 * addresses, so that the arenas of the large ones are reserved and never touched; a GPU is not
 * needed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/file.h"
#include "cpu/cpu.h"
#include "cuda/cuda_sizes.h"
#include "model/engine_internal.h"
#include "model/trainer_internal.h"

static const char *const presets[] = {
    "tiny_char", "tiny", "small_char", "small", "150M", "200M", "250M", "150M_1024", "200M_1024",
    "250M_1024", "350M_1024", "500M_1024", "750M_1024",
};
enum { N_PRESETS = sizeof presets / sizeof *presets };

/* ---- devices whose arenas are addresses alone ---- */

static int64_t reserved_bytes; /* by the latest allocation on a device */

static void *reserve(struct device *d, size_t bytes, struct error *err)
{
    void *p = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    assert_true(p != MAP_FAILED);
    reserved_bytes = (int64_t)bytes;
    return p;
}

static void unreserve(struct device *d, void *p, size_t bytes) { munmap(p, bytes); }
static void ignore_workspace(struct device *d, void *workspace, int64_t bytes) {}

struct reserving {
    struct device_ops ops;
    struct device device;     /* of CUDA: a copy */
    struct device *cpu;       /* of the CPU: with its ops replaced */
    const struct device_ops *own;
};

static struct device *open_cuda(struct reserving *r, int32_t sm)
{
    *r = (struct reserving){.ops = *cuda_sizes(sm)->ops, .device = *cuda_sizes(sm)};
    r->ops.alloc = reserve;
    r->ops.free = unreserve;
    r->ops.set_workspace = ignore_workspace;
    r->device.ops = &r->ops;
    return &r->device;
}

static struct device *open_cpu(struct reserving *r)
{
    struct cpu_options cpu = {.n_threads = 2, .isa = CPU_ISA_BEST};
    struct error err;
    *r = (struct reserving){0};
    if (!cpu_device_open(&cpu, &r->cpu, &err)) fail_msg("%s", err.text);
    r->own = r->cpu->ops;
    r->ops = *r->own;
    r->ops.alloc = reserve;
    r->ops.free = unreserve;
    r->cpu->ops = &r->ops;
    return r->cpu;
}

static void close_cpu(struct reserving *r)
{
    r->cpu->ops = r->own;
    r->own->close(r->cpu);
}

/* ---- what is planned is what is taken ---- */

/* Pieces as the first pass names them: all of both arenas, component by component. */
struct sum { int64_t bytes; int n; };

static void add_piece(void *ctx, const struct plan_item *item)
{
    struct sum *s = ctx;
    assert_true(item->bytes > 0 && item->bytes % DEVICE_ALIGN == 0 && item->offset >= 0);
    assert_non_null(item->name);
    s->bytes += item->bytes;
    s->n++;
}

static void check_sums(const struct memory_plan *m, const struct sum *s)
{
    int64_t sum = 0;
    for (int i = 0; i < N_MEMORY_COMPONENTS; i++) {
        assert_true(m->component[i] >= 0);
        sum += m->component[i];
    }
    assert_int_equal(sum, m->total_bytes);
    assert_int_equal(m->device_bytes + m->host_bytes, m->total_bytes);
    assert_true(s->bytes >= m->total_bytes && s->n > 20); /* shared bytes are listed once a piece */
}

static void check_training(const struct trainer_options *o, struct device *d)
{
    struct trainer draft = {.options = *o, .device = d};
    struct memory_plan planned;
    struct sum pieces = {0};
    struct error err;
    if (!trainer_plan(o, d, add_piece, &pieces, &planned, &err)) fail_msg("%s", err.text);
    check_sums(&planned, &pieces);
    struct trainer *t = trainer_allocate(&draft, &err);
    if (!t) fail_msg("%s", err.text);
    struct memory_plan taken = trainer_memory(t);
    assert_int_equal(reserved_bytes, planned.device_bytes);
    assert_true(plan_matches(&t->device_plan) && plan_matches(&t->host_plan));
    assert_memory_equal(&taken, &planned, sizeof taken);
    trainer_release(t);
}

static void check_generation(const struct gpt_config *c, const struct engine_options *o,
                             struct device *d)
{
    struct engine draft = {.device = d, .options = *o, .gpt.config = *c};
    struct engine_need need;
    struct sum pieces = {0};
    struct error err;
    if (!engine_plan(c, o, d, add_piece, &pieces, &need, &err)) fail_msg("%s", err.text);
    check_sums(&need.memory, &pieces);
    struct engine *e = engine_allocate(&draft, &err);
    if (!e) fail_msg("%s", err.text);
    assert_int_equal(reserved_bytes, need.memory.device_bytes);
    assert_true(plan_matches(&e->device_plan) && plan_matches(&e->host_plan));
    assert_int_equal(e->device_plan.total + e->host_plan.total, need.memory.total_bytes);
    assert_memory_equal(e->live.memory.planned, need.memory.component,
                        sizeof need.memory.component);
    assert_memory_equal(e->live.memory.allocated, need.memory.component,
                        sizeof need.memory.component);
    engine_release(e);
}

static void read_preset(const char *name, struct trainer_options *o)
{
    char path[64];
    struct buf text;
    struct error err;
    snprintf(path, sizeof path, "configs/%s.json", name);
    buf_init(&text, 1 << 20);
    *o = (struct trainer_options){0};
    train_config_init(&o->config);
    if (!file_read(path, &text, &err)
        || !gpt_config_from_preset(text.data, text.len, path, &o->model, &err)
        || !train_config_from_json(text.data, text.len, path, &o->config, &err))
        fail_msg("%s", err.text);
    buf_free(&text);
    if (o->model.vocab_size == 0) o->model.vocab_size = 96;
}

/* Every combination of formats; the sizes are the trainer's own. */
static void check_formats(const struct trainer_options *preset, struct device *d)
{
    static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16};
    struct trainer_options o = *preset;
    train_config_resolve(&o.config, o.model.block_size, o.model.vocab_size);
    for (int i = 0; i < 3 * 3 * 3 * 2 * 2; i++) {
        o.config.dtype = dtypes[i % 3];
        o.config.recompute = (enum recompute)(i / 3 % 3);
        o.config.moments = (enum moment_format)(i / 9 % 3);
        o.config.master = i / 27 % 2 ? MASTER_F32 : MASTER_REMAINDER;
        o.config.gradients = i / 54 ? DTYPE_BF16 : DTYPE_F32;
        if (d->ops->computes_in(d, o.config.dtype)) check_training(&o, d);
    }
}

static void check_served(const struct gpt_config *c, struct device *d)
{
    static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_BF16, DTYPE_Q8_0, DTYPE_Q4_0};
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++) {
        struct engine_options o;
        engine_options_init(&o);
        o.dtype = dtypes[i];
        check_generation(c, &o, d);
        o.max_seqs = 1;
        o.max_batch_tokens = 4;
        check_generation(c, &o, d);
        o.kv_dtype = DTYPE_Q8_0;
        if (d->ops->keeps_kv_in(d, DTYPE_Q8_0, DTYPE_BF16)) check_generation(c, &o, d);
    }
}

/* As a file might have it: queries and keys in one type, values in another,
 * every other layer in a third. */
static void check_kept(const struct gpt_config *c, struct device *d)
{
    struct weight_formats *formats = calloc((size_t)(1 + c->n_layer), sizeof *formats);
    struct engine_options o;
    engine_options_init(&o);
    formats[0].n_parts[WEIGHT_TOKEN_EMBEDDING] = 1;
    formats[0].parts[WEIGHT_TOKEN_EMBEDDING][0] = DTYPE_Q6_K;
    for (int64_t i = 1; i <= c->n_layer; i += 2) {
        formats[i].n_parts[WEIGHT_QKV] = 3;
        memcpy(formats[i].parts[WEIGHT_QKV], (uint8_t[]){DTYPE_Q4_K, DTYPE_Q4_K, DTYPE_Q6_K}, 3);
        formats[i].n_parts[WEIGHT_MLP_DOWN] = 1;
        formats[i].parts[WEIGHT_MLP_DOWN][0] = DTYPE_Q5_0;
    }
    o.formats = formats;
    check_generation(c, &o, d);
    struct engine_need plain, kept;
    struct error err;
    if (!engine_plan(c, &o, d, NULL, NULL, &kept, &err)) fail_msg("%s", err.text);
    o.formats = NULL;
    if (!engine_plan(c, &o, d, NULL, NULL, &plain, &err)) fail_msg("%s", err.text);
    int64_t less = plain.memory.component[MEMORY_WEIGHTS] - kept.memory.component[MEMORY_WEIGHTS];
    assert_int_equal(less > 0, gpt_keeps_formats(d));
    o.formats = formats;
    o.dtype = DTYPE_F32;
    if (gpt_keeps_formats(d)) {
        assert_false(engine_plan(c, &o, d, NULL, NULL, &plain, &err));
        assert_string_equal(err.param, "dtype");
    }
    free(formats);
}

static void check_device(struct device *d)
{
    for (int i = 0; i < N_PRESETS; i++) {
        struct trainer_options o;
        read_preset(presets[i], &o);
        /* Every other one with dropout, which has buffers of its own, and its whole batch. */
        if (i % 2) o.config.dropout = 0.1;
        if (i % 2) o.config.micro_batch_size = o.config.batch_size;
        check_formats(&o, d);
        check_served(&o.model, d);
        check_kept(&o.model, d);
    }
}

static void test_cpu(void **state)
{
    struct reserving r;
    check_device(open_cpu(&r));
    close_cpu(&r);
}

static void test_cuda_before_hopper(void **state)
{
    struct reserving r;
    check_device(open_cuda(&r, 86));
}

static void test_cuda_since_hopper(void **state)
{
    struct reserving r;
    check_device(open_cuda(&r, 90));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cpu),
        cmocka_unit_test(test_cuda_before_hopper),
        cmocka_unit_test(test_cuda_since_hopper),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

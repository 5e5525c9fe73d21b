/* The CPU as a device: opening, memory, and the table of operations. Nothing here runs behind the
 * caller's back: an operation is done when it returns,
 * so copies are plain and sync has nothing to wait for. */
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/checked.h"
#include "cpu/cpu_train.h"

enum {
    HUGE_PAGE = 2 << 20,
    POPULATE_BYTES = 32 << 20, /* of memory, at a time */
};

static void cpu_close(struct device *d)
{
    struct cpu_device *c = cpu_of(d);
    pool_close(c->pool);
    free(c);
}

static const char *cpu_description(const struct device *d) { return cpu_of_const(d)->description; }

struct populate {
    uint8_t *memory;
    size_t bytes;
    _Atomic int failed; /* errno */
};

/* Older kernels (before 5.14) know no MADV_POPULATE_WRITE; there the first touch populates. */
static void populate_range(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    struct populate *job = ctx;
    size_t from = (size_t)begin * POPULATE_BYTES, to = (size_t)end * POPULATE_BYTES;
    if (to > job->bytes) to = job->bytes;
    if (madvise(job->memory + from, to - from, MADV_POPULATE_WRITE) != 0 && errno != EINVAL)
        job->failed = errno;
}

/* One mapping an arena, on huge pages where the system gives them, and all of it really there: what
 * the plan promises must not fail at the first touch. */
static void *cpu_alloc(struct device *d, size_t bytes, struct error *err)
{
    if (bytes == 0 || bytes > (size_t)INT64_MAX - 2 * HUGE_PAGE) {
        error_set(err, ERR_INVALID, NULL, "cpu: cannot allocate an arena of %zu bytes", bytes);
        return NULL;
    }
    size_t mapped = bytes + HUGE_PAGE;
    uint8_t *p = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        error_errno(err, "cpu: allocating %zu bytes", bytes);
        return NULL;
    }
    /* Keep the aligned part: whole 4 KiB pages from a 2 MiB boundary. */
    size_t head = (HUGE_PAGE - (uintptr_t)p % HUGE_PAGE) % HUGE_PAGE;
    size_t size = (size_t)round_up((int64_t)bytes, 4096);
    if (head) munmap(p, head);
    p += head;
    if (mapped - head > size) munmap(p + size, mapped - head - size);
    madvise(p, size, MADV_HUGEPAGE);
    struct populate job = {.memory = p, .bytes = size};
    pool_for(cpu_of(d)->pool, ceil_div((int64_t)size, POPULATE_BYTES), 1, populate_range, &job);
    if (job.failed) {
        munmap(p, size);
        errno = job.failed;
        error_errno(err, "cpu: populating %zu bytes", bytes);
        return NULL;
    }
    return p;
}

static void cpu_free(struct device *d, void *p, size_t bytes)
{
    if (p) munmap(p, (size_t)round_up((int64_t)bytes, 4096));
}

static void cpu_copy(struct device *d, void *dst, const void *src, size_t bytes)
{
    if (bytes) memcpy(dst, src, bytes);
}

static bool cpu_sync(struct device *d, struct error *err) { return true; }

static int64_t cpu_workspace_bytes(const struct device *d, const struct workspace_shape *s)
{
    const struct cpu_device *c = cpu_of_const(d);
    int64_t rows = max_i64(s->max_rows, s->max_logit_rows);
    int64_t n_in = max_i64(max_i64(s->n_embd, s->n_ff), s->n_head * s->head_dim);
    int64_t bytes = max_i64(cpu_matmul_workspace(c, rows, n_in), cpu_attention_workspace(c));
    return round_up(max_i64(bytes, cpu_sample_workspace(c, s->vocab_size)), DEVICE_ALIGN);
}

static void cpu_set_workspace(struct device *d, void *workspace, int64_t bytes)
{
    cpu_of(d)->workspace = workspace;
    cpu_of(d)->workspace_bytes = bytes;
}

static bool cpu_computes_in(const struct device *d, enum dtype dtype)
{
    return dtype == DTYPE_F32 || dtype == DTYPE_BF16;
}

static bool cpu_keeps_kv_in(const struct device *d, enum dtype kv, enum dtype activations)
{
    return kv == DTYPE_F32 || kv == DTYPE_BF16 || kv == DTYPE_Q8_0;
}

static const struct device_ops ops = {
    .close = cpu_close,
    .description = cpu_description,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .upload = cpu_copy,
    .download = cpu_copy,
    .sync = cpu_sync,
    .computes_in = cpu_computes_in,
    .keeps_kv_in = cpu_keeps_kv_in,
    .matrix_bytes = cpu_matrix_bytes,
    .kv_page_bytes = cpu_kv_page_bytes,
    .workspace_bytes = cpu_workspace_bytes,
    .set_workspace = cpu_set_workspace,
    .matrix_write = cpu_matrix_write,
    .matrix_write_blocks = cpu_matrix_write_blocks,
    .embed = cpu_embed,
    .norm = cpu_norm,
    .matmul = cpu_matmul,
    .norm_matmul = cpu_norm_matmul,
    .swiglu = cpu_swiglu,
    .kv_write = cpu_kv_write,
    .attention = cpu_attention,
    .kv_attention = cpu_kv_attention,
    .gather = cpu_gather,
    .sample = cpu_sample,
};

static int32_t default_threads(void)
{
    cpu_set_t mask;
    bool known = sched_getaffinity(0, sizeof mask, &mask) == 0;
    return cpu_count("", known ? cpu_cores("", &mask) : (int32_t)sysconf(_SC_NPROCESSORS_ONLN));
}

bool cpu_device_open(const struct cpu_options *o, struct device **out, struct error *err)
{
    enum cpu_isa best = cpu_isa_best(), isa = o->isa == CPU_ISA_BEST ? best : o->isa;
    if (isa > best)
        return error_set(err, ERR_UNSUPPORTED, "isa",
                         "cpu: this processor has no %s; its best is %s", cpu_isa_name(isa),
                         cpu_isa_name(best));
    struct cpu_device *c = calloc(1, sizeof *c);
    if (!c) return error_set(err, ERR_MEMORY, NULL, "cpu: no memory for the device");
    if (!pool_open(o->n_threads > 0 ? o->n_threads : default_threads(), &c->pool, err)) {
        free(c);
        return false;
    }
    cpu_kernels_init(&c->kernels, isa);
    int32_t n = pool_n_threads(c->pool);
    c->base.ops = &ops;
    c->base.train = &cpu_train_ops;
    snprintf(c->base.name, sizeof c->base.name, "cpu");
    snprintf(c->description, sizeof c->description, "cpu: %d thread%s, %s", n, n == 1 ? "" : "s",
             c->kernels.name);
    *out = &c->base;
    return true;
}

/* libFuzzer: any bytes as a GGUF file. What opens must be readable through every accessor; what
 * then opens as a checkpoint must give all its weights, and its quantized ones must come back from
 * the CPU's packed layout as the file has them. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cpu/cpu.h"
#include "model/checkpoint.h"
#include "model/device_train.h"
#include "model/gguf.h"

enum { MAX_ELEMENTS = 1 << 16 };

static void read_values(const struct gguf *g)
{
    for (size_t i = 0; i < g->n_values; i++) {
        const struct gguf_value *v = &g->values[i];
        struct gguf_string s;
        int64_t integer;
        double number;
        bool flag;
        (void)(gguf_get_i64(v, &integer) || gguf_get_f64(v, &number) || gguf_get_bool(v, &flag));
        if (gguf_get_string(v, &s) && s.len > 0 && s.data[s.len - 1] == 0) integer = 0;
        for (size_t cursor = 0; gguf_next_string(v, &cursor, &s);)
            if (s.len > 0 && s.data[s.len - 1] == 0) integer = 0;
        for (uint64_t k = 0; k < v->count && gguf_item_f64(v, k, &number); k++)
            (void)gguf_item_i64(v, k, &integer);
    }
}

static void read_tensors(const struct gguf *g)
{
    float *out = malloc(MAX_ELEMENTS * sizeof *out);
    for (size_t i = 0; out && i < g->n_tensors; i++) {
        const struct gguf_tensor *t = &g->tensors[i];
        const struct dtype_info *info = dtype_info(t->dtype);
        int64_t n = t->size / info->block_bytes * info->block;
        if (n <= MAX_ELEMENTS) dtype_to_f32(t->dtype, t->data, n, out);
    }
    free(out);
}

/* ---- Packing ---- */

/* Lives as long as the process. */
static struct device *packer(void)
{
    static struct device *d;
    struct cpu_options one_thread = {.n_threads = 1, .isa = CPU_ISA_REFERENCE};
    struct error err;
    if (!d) ASSERT(cpu_device_open(&one_thread, &d, &err));
    return d;
}

/* What a file's scales make of its codes may be no number. */
static bool same_numbers(const float *a, const float *b, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (memcmp(&a[i], &b[i], sizeof *a) != 0 && !(isnan(a[i]) && isnan(b[i]))) return false;
    return true;
}

/* Rows [row0, row0 + run.n_rows) of a weight: packed and read back they are what reading them
 * gives. Every buffer has exactly the size that its contract says. */
static void pack_run(const struct checkpoint *ck, enum weight_role role, int64_t layer,
                     int64_t row0, struct weight_rows run, int64_t n_in)
{
    struct device *d = packer();
    int64_t n = run.n_rows * n_in;
    struct matrix w = {.dtype = run.dtype, .n_out = run.n_rows, .n_in = n_in};
    if (n > 4 * MAX_ELEMENTS) return;
    uint8_t *blocks = malloc((size_t)dtype_bytes(run.dtype, n));
    float *want = malloc((size_t)n * sizeof *want), *got = malloc((size_t)n * sizeof *got);
    w.data = calloc(1, (size_t)device_matrix_bytes(d, &w));
    ASSERT(blocks && want && got && w.data);
    checkpoint_read_blocks(ck, role, layer, row0, run.n_rows, blocks);
    d->ops->matrix_write_blocks(d, &w, 0, run.n_rows, blocks);
    d->train->matrix_read(d, &w, 0, run.n_rows, got);
    checkpoint_read_rows(ck, role, layer, row0, run.n_rows, want);
    if (!same_numbers(got, want, n)) abort();
    free(blocks), free(want), free(got), free(w.data);
}

static void pack_weight(const struct checkpoint *ck, enum weight_role role, int64_t layer)
{
    const struct gpt_config *c = checkpoint_config(ck);
    struct weight_rows runs[CHECKPOINT_MAX_PARTS];
    int64_t n_out, n_in, row = 0;
    if (!checkpoint_formats(ck) || !weight_role_shape(c, role, &n_out, &n_in)) return;
    int32_t n = weight_formats_rows(checkpoint_formats(ck), c, role, layer, runs);
    for (int32_t i = 0; i < n; row += runs[i++].n_rows)
        pack_run(ck, role, layer, row, runs[i], n_in);
    if (n > 0 && row != n_out) abort();
}

static void read_checkpoint(const char *path)
{
    struct checkpoint *ck;
    struct error err;
    if (!checkpoint_open(path, &ck, &err)) return;
    const struct gpt_config *c = checkpoint_config(ck);
    char fingerprint[17];
    if (!checkpoint_fingerprint(ck, fingerprint, &err)) abort();
    for (int role = 0; role < N_WEIGHT_ROLES; role++) {
        int64_t n_out, n_in;
        if (!weight_role_shape(c, role, &n_out, &n_in)) continue;
        int64_t layer = weight_role_is_layer(role) ? c->n_layer - 1 : 0;
        float *row = malloc((size_t)n_in * sizeof *row);
        for (int64_t r = 0; row && r < n_out; r++) checkpoint_read_rows(ck, role, layer, r, 1, row);
        free(row);
        pack_weight(ck, role, layer);
    }
    checkpoint_close(ck);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct gguf *g;
    struct error err;
    if (!gguf_open_bytes(data, size, "fuzz", &g, &err)) return 0;
    read_values(g);
    read_tensors(g);
    gguf_close(g);
    int fd = memfd_create("fuzz.gguf", 0);
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (fd >= 0 && write(fd, data, size) == (ssize_t)size) read_checkpoint(path);
    if (fd >= 0) close(fd);
    return 0;
}

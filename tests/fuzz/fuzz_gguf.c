/* libFuzzer: any bytes as a GGUF file. What opens must be readable through every accessor; what
 * then opens as a checkpoint must give all its weights. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "model/checkpoint.h"
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
        float *row = malloc((size_t)n_in * sizeof *row);
        for (int64_t r = 0; row && r < n_out; r++)
            checkpoint_read_rows(ck, role, weight_role_is_layer(role) ? c->n_layer - 1 : 0, r, 1,
                                 row);
        free(row);
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

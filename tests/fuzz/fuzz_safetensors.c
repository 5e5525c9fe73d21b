/* libFuzzer: any bytes as a safetensors file. Every tensor of one that opens must be readable. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "model/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct safetensors *s;
    struct error err;
    if (!safetensors_open_bytes(data, size, "fuzz", &s, &err)) return 0;
    for (size_t i = 0; i < s->n_tensors; i++) {
        const struct safetensors_tensor *t = &s->tensors[i];
        uint8_t *copy = malloc((size_t)t->size + strlen(t->name) + 1);
        if (copy) memcpy(copy, t->data, (size_t)t->size);
        if (t->usable && copy) {
            int64_t n = t->size / dtype_info(t->dtype)->block_bytes;
            float *out = malloc((size_t)n * sizeof *out + 1);
            if (out) dtype_to_f32(t->dtype, t->data, n, out);
            free(out);
        }
        free(copy);
    }
    safetensors_close(s);
    return 0;
}

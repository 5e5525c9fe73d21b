/* libFuzzer: any two texts as config.json and model.safetensors of a Hugging Face directory. The
 * input is the config's length (u32), the config, then the weights. What opens must give all its
 * weights. */
#include "model/checkpoint.h"
#include "tests/fuzz/scratch.h"

static void read_weights(const struct checkpoint *ck)
{
    const struct gpt_config *c = checkpoint_config(ck);
    for (int role = 0; role < N_WEIGHT_ROLES; role++) {
        int64_t n_out, n_in;
        if (!weight_role_shape(c, role, &n_out, &n_in)) continue;
        float *row = malloc((size_t)n_in * sizeof *row);
        for (int64_t r = 0; row && r < n_out; r++)
            checkpoint_read_rows(ck, role, weight_role_is_layer(role) ? c->n_layer - 1 : 0, r, 1,
                                 row);
        free(row);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint32_t n_config;
    if (size < sizeof n_config) return 0;
    memcpy(&n_config, data, sizeof n_config);
    data += sizeof n_config;
    size -= sizeof n_config;
    if (n_config > size) return 0;
    if (!scratch[0]) scratch_make();
    scratch_write("config.json", data, n_config);
    scratch_write("model.safetensors", data + n_config, size - n_config);
    struct checkpoint *ck;
    struct error err;
    if (!checkpoint_open(scratch, &ck, &err)) return 0;
    read_weights(ck);
    checkpoint_close(ck);
    return 0;
}

/* libFuzzer: any two texts as config.json and model.safetensors of a Hugging Face directory. The
 * input is the config's length (u32), the config, then the weights. What opens must give all its
 * weights. */
#include <ftw.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/checkpoint.h"

static char dir[32]; /* made by the first input, removed at exit */

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    return remove(path);
}

static void remove_dir(void) { nftw(dir, remove_one, 8, FTW_DEPTH | FTW_PHYS); }

/* In memory where there is such a place: a disk takes milliseconds an input. */
static void make_dir(void)
{
    strcpy(dir, "/dev/shm/gptd-fuzz-XXXXXX");
    if (!mkdtemp(dir)) {
        strcpy(dir, "/tmp/gptd-fuzz-XXXXXX");
        ASSERT(mkdtemp(dir));
    }
    ASSERT(atexit(remove_dir) == 0);
}

static void write_in_dir(const char *name, const uint8_t *data, size_t size)
{
    char path[64];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    ASSERT(f && fwrite(data, 1, size, f) == size && fclose(f) == 0);
}

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
    if (!dir[0]) make_dir();
    write_in_dir("config.json", data, n_config);
    write_in_dir("model.safetensors", data + n_config, size - n_config);
    struct checkpoint *ck;
    struct error err;
    if (!checkpoint_open(dir, &ck, &err)) return 0;
    read_weights(ck);
    checkpoint_close(ck);
    return 0;
}

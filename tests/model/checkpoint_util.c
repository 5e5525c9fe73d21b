#include "tests/model/checkpoint_util.h"

#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/model/gguf_writer.h"

/* ---- The directory ---- */

static char dir[64];

int set_up_dir(void **state)
{
    strcpy(dir, "/tmp/gptd-test-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    return remove(path);
}

int tear_down_dir(void **state) { return nftw(dir, remove_one, 8, FTW_DEPTH | FTW_PHYS); }

const char *test_dir(void) { return dir; }

const char *in_test_dir(const char *name)
{
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

struct checkpoint *open_good(const char *path)
{
    struct checkpoint *ck;
    struct error err;
    if (!checkpoint_open(path, &ck, &err)) fail_msg("%s", err.text);
    return ck;
}

void refuse(const char *path, const char *why)
{
    struct checkpoint *ck;
    struct error err = {0};
    if (checkpoint_open(path, &ck, &err)) fail_msg("opened, expected: %s", why);
    if (!strstr(err.text, why)) fail_msg("expected \"%s\" in \"%s\"", why, err.text);
}

float *read_all(const struct checkpoint *ck, enum weight_role role, int64_t layer, int64_t *n)
{
    int64_t n_out, n_in;
    assert_true(weight_role_shape(checkpoint_config(ck), role, &n_out, &n_in));
    float *rows = malloc((size_t)(n_out * n_in) * sizeof *rows);
    assert_non_null(rows);
    checkpoint_read_rows(ck, role, layer, 0, n_out, rows);
    *n = n_out * n_in;
    return rows;
}

void check_weight(const struct checkpoint *ck, enum weight_role role, int64_t layer,
                  const char *const *names, const int64_t *counts)
{
    int64_t n, at = 0;
    float *rows = read_all(ck, role, layer, &n);
    for (; *names; names++, counts++)
        for (int64_t i = 0; i < *counts; i++, at++)
            if (rows[at] != fake_value(*names, i))
                fail_msg("%s[%d] is not %s[%d]", weight_role_name(role), (int)at, *names, (int)i);
    assert_int_equal(at, n);
    free(rows);
}

void check_one(const struct checkpoint *ck, enum weight_role role, int64_t layer,
                      const char *name)
{
    int64_t n_out, n_in;
    assert_true(weight_role_shape(checkpoint_config(ck), role, &n_out, &n_in));
    check_weight(ck, role, layer, (const char *[]){name, NULL}, (int64_t[]){n_out * n_in});
}

/* ---- Models ---- */

const char gpt2_config[] =
    "{\"model_type\":\"gpt2\",\"n_layer\":2,\"n_head\":2,\"n_embd\":16,\"n_positions\":12,"
    "\"vocab_size\":40,\"n_inner\":24}";

struct fake_model fake_gpt2(const char *prefix, bool biases)
{
    struct fake_model m;
    char name[96];
    fake_model_init(&m, false);
    snprintf(name, sizeof name, "%swte.weight", prefix);
    fake_model_add(&m, name, V, C);
    snprintf(name, sizeof name, "%swpe.weight", prefix);
    fake_model_add(&m, name, T, C);
    snprintf(name, sizeof name, "%sln_f.weight", prefix);
    fake_model_add(&m, name, C, 0);
    static const struct { const char *name; int64_t rows, cols; } tensors[] = {
        {"ln_1", C, 0}, {"ln_2", C, 0}, {"attn.c_attn", C, 3 * C}, {"attn.c_proj", C, C},
        {"mlp.c_fc", C, F}, {"mlp.c_proj", F, C},
    };
    for (int layer = 0; layer < L; layer++) {
        for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) {
            snprintf(name, sizeof name, "%sh.LAYER.%s.weight", prefix, tensors[i].name);
            fake_model_add_layer(&m, name, layer, tensors[i].rows, tensors[i].cols);
            if (!biases) continue;
            snprintf(name, sizeof name, "%sh.LAYER.%s.bias", prefix, tensors[i].name);
            int64_t n = tensors[i].cols ? tensors[i].cols : tensors[i].rows;
            fake_model_add_layer(&m, name, layer, n, 0);
        }
    }
    snprintf(name, sizeof name, "%sln_f.bias", prefix);
    if (biases) fake_model_add(&m, name, C, 0);
    return m;
}

void save_hf(struct fake_model *m, const char *config)
{
    write_text(dir, "config.json", config);
    fake_model_write(m, in_test_dir("model.safetensors"));
    fake_model_free(m);
}

struct fake_model fake_gguf(const char *arch)
{
    struct fake_model m;
    char key[64];
    static const struct { const char *key; uint32_t value; } sizes[] = {
        {"block_count", L}, {"embedding_length", C}, {"feed_forward_length", 32},
        {"attention.head_count", 2}, {"attention.head_count_kv", 1}, {"context_length", T},
    };
    fake_model_init(&m, true);
    gguf_write_key_string(&m.keys, "general.architecture", arch);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        snprintf(key, sizeof key, "%s.%s", arch, sizes[i].key);
        gguf_write_key_u32(&m.keys, key, sizes[i].value);
    }
    snprintf(key, sizeof key, "%s.attention.layer_norm_rms_epsilon", arch);
    gguf_write_key_f32(&m.keys, key, 1e-5f);
    m.n_keys = 8;
    fake_model_add(&m, "token_embd.weight", V, C);
    fake_model_add(&m, "output_norm.weight", C, 0);
    for (int layer = 0; layer < L; layer++) {
        fake_model_add_layer(&m, "blk.LAYER.attn_norm.weight", layer, C, 0);
        fake_model_add_layer(&m, "blk.LAYER.ffn_norm.weight", layer, C, 0);
        fake_model_add_layer(&m, "blk.LAYER.attn_q.weight", layer, C, C);
        fake_model_add_layer(&m, "blk.LAYER.attn_k.weight", layer, C / 2, C);
        fake_model_add_layer(&m, "blk.LAYER.attn_v.weight", layer, C / 2, C);
        fake_model_add_layer(&m, "blk.LAYER.attn_output.weight", layer, C, C);
        fake_model_add_layer(&m, "blk.LAYER.ffn_gate.weight", layer, 32, C);
        fake_model_add_layer(&m, "blk.LAYER.ffn_up.weight", layer, 32, C);
        fake_model_add_layer(&m, "blk.LAYER.ffn_down.weight", layer, C, 32);
    }
    return m;
}

const char *save_gguf(struct fake_model *m)
{
    fake_model_write(m, in_test_dir("model.gguf"));
    fake_model_free(m);
    return in_test_dir("model.gguf");
}

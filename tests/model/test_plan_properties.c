/* What must hold of any plan: over random configs, and at absurd sizes. Seeded: a failure names the
 * case and repeats. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "cpu/cpu.h"
#include "cuda/cuda_sizes.h"
#include "model/serve_search.h"
#include "model/trainer.h"

enum { N_CASES = 40, N_DEVICES = 3 };

static struct device *cpu;

static int open_devices(void **state)
{
    struct cpu_options o = {.n_threads = 2, .isa = CPU_ISA_BEST};
    return cpu_device_open(&o, &cpu, NULL) ? 0 : -1;
}

static int close_devices(void **state)
{
    cpu->ops->close(cpu);
    return 0;
}

static const struct device *device_of(int i)
{
    return i == 0 ? cpu : cuda_sizes(i == 1 ? 86 : 90);
}

/* ---- random configs ---- */

static uint64_t seed;

static int64_t draw(int64_t least, int64_t most)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return least + (int64_t)((seed >> 33) % (uint64_t)(most - least + 1));
}

static const int64_t head_dims[] = {16, 32, 48, 64, 80, 96, 128};
enum { N_HEAD_DIMS = sizeof head_dims / sizeof *head_dims };

static void set_width(struct gpt_config *c, int head_dim)
{
    c->head_dim = head_dims[head_dim];
    c->n_embd = c->n_head * c->head_dim;
    c->n_ff = 4 * c->n_embd;
}

static void random_model(struct gpt_config *c, int head_dim)
{
    bool rope = draw(0, 1);
    *c = (struct gpt_config){
        .n_layer = draw(1, 12), .n_kv_head = draw(1, 4), .vocab_size = draw(50, 60000),
        .block_size = draw(16, 2048), .norm_eps = 1e-5f, .rope_theta = 10000,
        .pos_encoding = rope ? POS_ROPE : POS_LEARNED,
        .norm_type = draw(0, 1) ? NORM_RMSNORM : NORM_LAYERNORM,
        .mlp_type = draw(0, 1) ? MLP_SWIGLU : MLP_GELU_TANH,
        .bias_qkv = draw(0, 1), .bias_attn_out = draw(0, 1), .bias_mlp = draw(0, 1),
        .qk_norm = rope && draw(0, 1), .tie_weights = draw(0, 1),
    };
    strcpy(c->arch, rope ? "llama" : "gpt2");
    c->n_head = c->n_kv_head * draw(1, 4);
    set_width(c, head_dim);
    struct error err;
    if (!gpt_config_check(c, "random", &err)) fail_msg("%s", err.text);
}

static void random_training(struct trainer_options *o)
{
    struct train_config *c = &o->config;
    train_config_init(c);
    c->batch_size = 64;
    c->micro_batch_size = draw(1, 32);
    c->sequence_length = draw(1, o->model.block_size);
    c->loss_rows = draw(1, 4096);
    c->dropout = draw(0, 1) ? 0.1 : 0;
    c->freeze_layers = draw(0, 3) ? 0 : draw(0, o->model.n_layer);
    c->freeze_embeddings = draw(0, 3) == 0;
    train_config_resolve(c, o->model.block_size, o->model.vocab_size);
}

/* ---- training ---- */

static void check_sums(const struct memory_plan *m)
{
    int64_t sum = 0;
    for (int i = 0; i < N_MEMORY_COMPONENTS; i++) {
        assert_true(m->component[i] >= 0);
        sum += m->component[i];
    }
    assert_int_equal(sum, m->total_bytes);
    assert_true(m->device_bytes > 0 && m->host_bytes > 0);
}

static int64_t trained(const struct trainer_options *o, const struct device *d)
{
    struct memory_plan m;
    struct error err;
    if (!trainer_plan(o, d, NULL, NULL, &m, &err)) fail_msg("%s", err.text);
    check_sums(&m);
    return m.total_bytes;
}

/* More of anything never takes less. */
static void check_growth(const struct trainer_options *o, int head_dim, const struct device *d)
{
    int64_t bytes = trained(o, d);
    struct trainer_options more = *o;
    more.config.micro_batch_size++;
    if (trained(&more, d) < bytes) fail_msg("a larger batch takes less");
    more = *o;
    more.config.sequence_length++;
    more.model.block_size++;
    if (trained(&more, d) < bytes) fail_msg("a longer block takes less");
    more = *o;
    more.model.n_layer++;
    if (trained(&more, d) <= bytes) fail_msg("another layer takes nothing");
    more = *o;
    if (head_dim + 1 < N_HEAD_DIMS) {
        set_width(&more.model, head_dim + 1);
        if (trained(&more, d) <= bytes) fail_msg("a wider model takes no more");
    }
    more = *o;
    more.config.loss_rows += 64;
    if (trained(&more, d) < bytes) fail_msg("more logits take less");
}

static void test_training(void **state)
{
    static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16};
    for (int n = 0; n < N_CASES; n++) {
        seed = (uint64_t)n;
        int head_dim = (int)draw(0, N_HEAD_DIMS - 1);
        struct trainer_options o = {0};
        random_model(&o.model, head_dim);
        random_training(&o);
        for (int i = 0; i < 3 * 3 * 3 * 2 * 2 * N_DEVICES; i++) {
            const struct device *d = device_of(i / 108);
            o.config.dtype = dtypes[i % 3];
            o.config.recompute = (enum recompute)(i / 3 % 3);
            o.config.moments = (enum moment_format)(i / 9 % 3);
            o.config.master = i / 27 % 2 ? MASTER_F32 : MASTER_REMAINDER;
            o.config.gradients = i / 54 % 2 ? DTYPE_BF16 : DTYPE_F32;
            if (d->ops->computes_in(d, o.config.dtype)) check_growth(&o, head_dim, d);
        }
    }
}

/* Formats and levels are worth their names: none takes more than what it saves on. */
static void test_savings(void **state)
{
    for (int n = 0; n < N_CASES; n++) {
        seed = 1000 + (uint64_t)n;
        struct trainer_options o = {0};
        random_model(&o.model, (int)draw(0, N_HEAD_DIMS - 1));
        random_training(&o);
        o.config.dtype = DTYPE_BF16;
        for (int i = 0; i < N_DEVICES; i++) {
            const struct device *d = device_of(i);
            int64_t whole = trained(&o, d);
            struct trainer_options less = o;
            less.config.recompute = RECOMPUTE_SELECTIVE;
            int64_t selective = trained(&less, d);
            less.config.recompute = RECOMPUTE_BLOCK;
            /* One layer has nothing to share its work with: it may take a little more. */
            if (o.model.n_layer > 2)
                assert_true(selective <= whole && trained(&less, d) <= selective);
            less = o;
            less.config.moments = MOMENT_BF16;
            assert_true(trained(&less, d) <= whole);
            less.config.moments = MOMENT_Q8; /* embeddings keep bf16, small ones f32 */
            assert_true(trained(&less, d) <= whole);
            less = o;
            less.config.master = MASTER_F32;
            assert_true(trained(&less, d) >= whole);
            less = o;
            less.config.gradients = DTYPE_BF16;
            assert_true(trained(&less, d) <= whole);
        }
    }
}

/* ---- generation ---- */

static int64_t served(const struct gpt_config *c, const struct engine_options *o,
                      const struct device *d)
{
    struct engine_need need;
    struct error err;
    if (!serve_plan_full(c, o, d, NULL, NULL, &need, &err)) fail_msg("%s", err.text);
    check_sums(&need.memory);
    return need.memory.total_bytes;
}

static void check_serving_growth(const struct gpt_config *c, const struct engine_options *o,
                                 int head_dim, const struct device *d)
{
    int64_t bytes = served(c, o, d);
    struct engine_options more = *o;
    more.max_seqs++;
    assert_true(served(c, &more, d) > bytes);
    more = *o;
    more.max_batch_tokens++;
    assert_true(served(c, &more, d) >= bytes);
    struct gpt_config larger = *c;
    larger.block_size += KV_PAGE_TOKENS;
    assert_true(served(&larger, o, d) > bytes);
    larger = *c;
    larger.n_layer++;
    assert_true(served(&larger, o, d) > bytes);
    larger = *c;
    if (head_dim + 1 == N_HEAD_DIMS) return;
    set_width(&larger, head_dim + 1);
    assert_true(served(&larger, o, d) > bytes);
}

static void test_generation(void **state)
{
    static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_BF16, DTYPE_Q8_0, DTYPE_Q4_0};
    for (int n = 0; n < N_CASES; n++) {
        seed = 2000 + (uint64_t)n;
        int head_dim = (int)draw(0, N_HEAD_DIMS - 1);
        struct gpt_config c;
        struct engine_options o;
        random_model(&c, head_dim);
        engine_options_init(&o);
        o.max_seqs = (int32_t)draw(1, 64);
        o.max_batch_tokens = (int32_t)draw(1, 1024);
        for (int i = 0; i < 4 * N_DEVICES; i++) {
            o.dtype = dtypes[i % 4];
            check_serving_growth(&c, &o, head_dim, device_of(i / 4));
        }
    }
}

/* ---- absurd sizes ---- */

static struct gpt_config largest_model(void)
{
    struct gpt_config c = {
        .arch = "gpt2", .n_layer = CONFIG_MAX_LAYER, .n_head = CONFIG_MAX_WIDTH / 128,
        .n_kv_head = CONFIG_MAX_WIDTH / 128, .head_dim = 128, .n_embd = CONFIG_MAX_WIDTH,
        .n_ff = CONFIG_MAX_WIDTH, .vocab_size = CONFIG_MAX_VOCAB,
        .block_size = CONFIG_MAX_CONTEXT, .norm_eps = 1e-5f, .mlp_type = MLP_SWIGLU,
        .bias_qkv = true, .bias_attn_out = true, .bias_mlp = true, .bias_norm = true,
    };
    struct error err;
    if (!gpt_config_check(&c, "largest", &err)) fail_msg("%s", err.text);
    return c;
}

/* Either numbers that add up, or an error that says what is too large. */
static void check_or_refused(bool ok, const struct memory_plan *m, const struct error *err)
{
    if (ok) {
        check_sums(m);
        assert_true(m->total_bytes > (int64_t)1 << 40);
    } else {
        assert_true(err->code == ERR_NO_FIT || err->code == ERR_INVALID);
        assert_true(strlen(err->text) > 20);
    }
}

static void test_absurd_training(void **state)
{
    static const int64_t batches[] = {1, 4, 100, 65536}, lengths[] = {1, 1000, 67108, 1 << 24};
    for (int i = 0; i < 4 * 4 * 2 * N_DEVICES; i++) {
        struct trainer_options o = {.model = largest_model()};
        struct memory_plan m;
        struct error err = {0};
        train_config_init(&o.config);
        o.config.batch_size = 65536;
        o.config.micro_batch_size = batches[i % 4];
        o.config.sequence_length = lengths[i / 4 % 4];
        o.config.loss_rows = 1 << 20;
        o.config.dtype = i / 16 % 2 ? DTYPE_BF16 : DTYPE_F32;
        train_config_resolve(&o.config, o.model.block_size, o.model.vocab_size);
        bool ok = trainer_plan(&o, device_of(i / 32), NULL, NULL, &m, &err);
        check_or_refused(ok, &m, &err);
        if (batches[i % 4] == 65536 && lengths[i / 4 % 4] > 1000) assert_false(ok);
    }
}

static void test_absurd_generation(void **state)
{
    struct gpt_config c = largest_model();
    for (int i = 0; i < 2 * N_DEVICES; i++) {
        const struct device *d = device_of(i / 2);
        struct engine_need need;
        struct serve_limits limits;
        struct error err = {0};
        struct engine_options o;
        engine_options_init(&o);
        o.max_seqs = i % 2 ? ENGINE_MAX_SEQS : 1;
        o.max_batch_tokens = ENGINE_MAX_BATCH_TOKENS;
        bool ok = serve_plan_full(&c, &o, d, NULL, NULL, &need, &err);
        /* 4,096 such sequences have more pages than there are numbers for. */
        assert_int_equal(ok, i % 2 == 0);
        check_or_refused(ok, &need.memory, &err);
        assert_true(serve_search(&c, &o, d, (int64_t)1 << 40, &limits, &err));
        assert_int_equal(limits.max_context, 0);
        assert_true(serve_search(&c, &o, d, INT64_MAX, &limits, &err));
        assert_int_equal(limits.max_context, c.block_size);
        assert_int_equal(limits.max_seqs, INT32_MAX / KV_PAGE_TOKENS / (c.block_size / 16));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_training),
        cmocka_unit_test(test_savings),
        cmocka_unit_test(test_generation),
        cmocka_unit_test(test_absurd_training),
        cmocka_unit_test(test_absurd_generation),
    };
    return cmocka_run_group_tests(tests, open_devices, close_devices);
}

/* Options, results, random models: see bench.h. */
#include "scripts/gpu/bench.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/checked.h"
#include "base/file.h"
#include "cpu/cpu.h"
#include "cuda/cuda.h"
#include "model/dataset.h"
#include "model/profile.h"

enum { CONFIG_LIMIT = 1 << 20, CHARACTERS = 65, MAX_BATCHES = 8 };

void bench_report(const char *section, const char *name, double value, const char *unit,
                  const char *format, ...)
{
    va_list args;
    va_start(args, format);
    printf("RESULT\t%s\t%s\t%.6g\t%s\t", section, name, value, unit);
    vprintf(format, args);
    printf("\n");
    fflush(stdout);
    va_end(args);
}

void bench_must(bool ok, const struct error *err)
{
    if (ok) return;
    fflush(stdout);
    fprintf(stderr, "bench_gpu: %s\n", err->text);
    exit(1);
}

void *bench_alloc(struct device *d, int64_t bytes)
{
    struct error err;
    void *p = d->ops->alloc(d, (size_t)bytes, &err);
    bench_must(p != NULL, &err);
    return p;
}

int64_t bench_driver_free(const struct bench *b)
{
    struct device_memory m;
    return b->d->ops->memory && b->d->ops->memory(b->d, &m) ? m.free_bytes : 0;
}

const char *bench_preset_name(const char *path)
{
    static char name[64];
    const char *slash = strrchr(path, '/');
    snprintf(name, sizeof name, "%s", slash ? slash + 1 : path);
    char *dot = strrchr(name, '.');
    if (dot) *dot = 0;
    return name;
}

void bench_read_preset(const struct bench *b, const char *path, struct gpt_config *model,
                       struct train_config *training)
{
    struct error err;
    struct buf text;
    buf_init(&text, CONFIG_LIMIT);
    bench_must(file_read(path, &text, &err), &err);
    bench_must(gpt_config_from_preset(text.data, text.len, path, model, &err), &err);
    train_config_init(training);
    bench_must(train_config_from_json(text.data, text.len, path, training, &err), &err);
    buf_free(&text);
    if (model->vocab_size == 0) model->vocab_size = CHARACTERS;
    if (!b->small) return;
    model->n_layer = 2;
    model->n_head = model->n_kv_head = 2;
    model->head_dim = 32;
    model->n_embd = 64;
    model->n_ff = 128;
    model->vocab_size = min_i64(model->vocab_size, 500);
    model->block_size = 64;
    training->batch_size = 2;
}

/* ---- random models ---- */

static uint32_t noise(uint32_t *state)
{
    *state ^= *state << 13; /* Marsaglia 2003 */
    *state ^= *state >> 17;
    *state ^= *state << 5;
    return *state;
}

int32_t bench_random_token(uint32_t *state, int64_t vocab_size)
{
    return (int32_t)((int64_t)noise(state) * vocab_size >> 32);
}

static void fill(float *x, int64_t n, const char *role, uint32_t *state)
{
    bool is_scale = strstr(role, "norm") && !strstr(role, "bias");
    /* Uniform with a standard deviation of 0.02. */
    for (int64_t i = 0; i < n; i++)
        x[i] = ((float)(noise(state) >> 8) * 0x1p-24f - 0.5f) * 0.0692820323f +
               (is_scale ? 1.0f : 0.0f);
}

void bench_fill_weights(struct gpt *g, struct device *d, float *staging, uint32_t seed)
{
    enum { UNIT = 64 /* rows that matrix_write takes */ };
    struct gpt_roles roles = gpt_roles(&g->config);
    int64_t floats = gpt_load_staging_bytes(g) / (int64_t)sizeof *staging, n = gpt_n_params(g);
    struct error err;
    for (int64_t i = 0; i < n; i++) {
        struct gpt_param p = gpt_param_of(g, &roles, i);
        uint32_t state = seed + 1 + (uint32_t)i * 2654435761u;
        int64_t room = floats / p.n_in, step = room >= p.n_out ? p.n_out : room / UNIT * UNIT;
        for (int64_t row = 0; row < p.n_out; row += step) {
            int64_t rows = min_i64(step, p.n_out - row);
            fill(staging, rows * p.n_in, weight_role_name(p.role), &state);
            if (p.matrix) d->ops->matrix_write(d, p.matrix, row, rows, staging);
            else d->ops->upload(d, p.vector + row * p.n_in, staging, (size_t)(rows * p.n_in) * 4);
            bench_must(d->ops->sync(d, &err), &err);
        }
    }
    bench_must(gpt_write_rope(g, d, staging, &err), &err);
    bench_must(d->ops->sync(d, &err), &err);
}

static const struct gpt_config *random_model;
static int64_t random_sequence_length;

void bench_random_begin(const struct gpt_config *model, int64_t sequence_length)
{
    random_model = model;
    random_sequence_length = sequence_length;
}

void bench_random_end(void) { random_model = NULL; }

/* The linker's --wrap: calls of NAME come to __wrap_NAME, and __real_NAME is NAME. */
const struct gpt_config *__real_checkpoint_config(const struct checkpoint *ck);
const struct gpt_config *__wrap_checkpoint_config(const struct checkpoint *ck);
bool __real_gpt_load(struct gpt *g, struct device *d, const struct checkpoint *ck, float *staging,
                     struct error *err);
bool __wrap_gpt_load(struct gpt *g, struct device *d, const struct checkpoint *ck, float *staging,
                     struct error *err);
int64_t __wrap_dataset_add(const struct dataset *ds, enum dataset_split split, int64_t index,
                           struct gpt_rows *rows, const struct gpt_train_options *o);

const struct gpt_config *__wrap_checkpoint_config(const struct checkpoint *ck)
{
    return random_model ? random_model : __real_checkpoint_config(ck);
}

bool __wrap_gpt_load(struct gpt *g, struct device *d, const struct checkpoint *ck, float *staging,
                     struct error *err)
{
    if (!random_model) return __real_gpt_load(g, d, ck, staging, err);
    bench_fill_weights(g, d, staging, 1);
    return true;
}

/* Sequence `index` of random tokens. */
int64_t __wrap_dataset_add(const struct dataset *ds, enum dataset_split split, int64_t index,
                           struct gpt_rows *rows, const struct gpt_train_options *o)
{
    int32_t n = (int32_t)random_sequence_length, *tokens = malloc((size_t)(n + 1) * sizeof *tokens);
    uint32_t state = (uint32_t)index * 2654435761u + 7;
    ASSERT(tokens && random_model);
    for (int32_t i = 0; i <= n; i++)
        tokens[i] = bench_random_token(&state, random_model->vocab_size);
    bool room = gpt_rows_add(rows, o, tokens, tokens + 1, n);
    free(tokens);
    return room ? n : DATASET_NO_ROOM;
}

/* ---- commands ---- */

static int usage(void)
{
    fprintf(stderr, "usage: bench_gpu DEVICE [--small] [--profile] COMMAND\n"
                    "  DEVICE   cpu, cuda:N\n"
                    "  info                      what the device is, and its memory\n"
                    "  rates                     bandwidth and products\n"
                    "  decode PRESET BATCH...    tokens a second of the engine\n"
                    "  prefill PRESET\n"
                    "  train PRESET [STEPS]\n"
                    "  parity DIR                against the CPU; leaves DIR for bench_torch.py\n");
    return 2;
}

static void open_device(struct bench *b, const char *name)
{
    struct error err;
    struct cpu_options cpu = {.isa = CPU_ISA_BEST};
    bool ok = strncmp(name, "cuda:", 5) == 0 ? cuda_device_open(atoi(name + 5), &b->d, &err)
                                             : cpu_device_open(&cpu, &b->d, &err);
    bench_must(ok, &err);
    const char *what = b->d->ops->description(b->d);
    /* Dense bf16 products of the SXM parts, by the data sheets. */
    b->peak = strstr(what, "H100") || strstr(what, "H200") ? 989.4e12
              : strstr(what, "A100")                       ? 312e12
                                                           : 0;
}

static void info(const struct bench *b)
{
    bench_report("info", "device", 0, "", "%s", b->d->ops->description(b->d));
    struct device_memory m;
    if (!b->d->ops->memory || !b->d->ops->memory(b->d, &m)) return;
    bench_report("info", "memory", (double)m.total_bytes * 1e-9, "GB", "free %.3f GB",
                 (double)m.free_bytes * 1e-9);
    bench_report("info", "context and modules", (double)m.start_bytes * 1e-6, "MB",
                 "of the whole GPU when the device is open: other processes' too");
}

static int run(struct bench *b, int argc, char **argv)
{
    const char *command = argv[0];
    if (strcmp(command, "info") == 0) info(b);
    else if (strcmp(command, "rates") == 0) bench_rates(b);
    else if (strcmp(command, "prefill") == 0 && argc == 2) bench_prefill(b, argv[1]);
    else if (strcmp(command, "train") == 0 && argc >= 2)
        bench_train(b, argv[1], argc > 2 ? atoi(argv[2]) : 8);
    else if (strcmp(command, "parity") == 0 && argc == 2) return bench_parity(b, argv[1]) > 0;
    else if (strcmp(command, "decode") == 0 && argc > 2) {
        int32_t batches[MAX_BATCHES], n = 0;
        for (int i = 2; i < argc && n < MAX_BATCHES; i++) batches[n++] = atoi(argv[i]);
        bench_decode(b, argv[1], batches, n);
    } else return usage();
    return 0;
}

int main(int argc, char **argv)
{
    struct bench b = {0};
    struct error err;
    bool profile = false;
    int at = 2;
    for (; at < argc && argv[at][0] == '-'; at++) {
        if (strcmp(argv[at], "--small") == 0) b.small = true;
        else if (strcmp(argv[at], "--profile") == 0) profile = true;
        else return usage();
    }
    if (at >= argc) return usage();
    /* What trains, or stands for it, does so as `gptd train` does. */
    bool serves = strcmp(argv[at], "decode") == 0 || strcmp(argv[at], "prefill") == 0 ||
                  strcmp(argv[at], "info") == 0;
    if (!serves) cuda_device_will_train();
    open_device(&b, argv[1]);
    if (profile) bench_must(profile_open(b.d, stdout, &b.d, &err), &err);
    int code = run(&b, argc - at, argv + at);
    b.d->ops->close(b.d);
    return code;
}

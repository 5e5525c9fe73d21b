/* A device against the CPU, on small models of both families: logits of a forward pass and
 * gradients of every weight. See bench.h.
 *
 * What torch needs to do the same is left in DIR/NAME/: config.json, index.txt (a tensor's name,
 * rows and columns a line), and each tensor's f32 values in NAME.f32: weights ("w.qkv.0"), tokens,
 * targets, and this device's logits and gradients ("g.qkv.0"). */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cpu/cpu.h"
#include "model/trainer_internal.h"
#include "scripts/gpu/bench.h"

enum { T = 48, SEQUENCES = 2, ROWS = T * SEQUENCES };

static const struct { const char *name, *config; } models[] = {
    {"gpt2", "{\"n_layer\":2,\"n_head\":4,\"n_embd\":128,\"block_size\":64,\"vocab_size\":500,"
             "\"bias\":true}"},
    {"llama", "{\"n_layer\":2,\"n_head\":4,\"n_kv_head\":2,\"n_embd\":192,\"n_ff\":320,"
              "\"block_size\":64,\"vocab_size\":501,\"bias\":false,\"pos_encoding\":\"rope\","
              "\"norm_type\":\"rmsnorm\",\"mlp_type\":\"swiglu\",\"qk_norm\":true,"
              "\"tie_weights\":false}"},
};
enum { N_MODELS = sizeof models / sizeof *models };

struct one_side {
    struct device *d;
    struct trainer *t;
};

static void open_side(struct one_side *s, struct device *d, const char *json, enum dtype dtype)
{
    struct trainer draft = {.device = d, .metrics = {.fd = -1}};
    struct train_config *c = &draft.options.config;
    struct error err;
    bench_must(gpt_config_from_preset(json, strlen(json), "parity", &draft.options.model, &err),
               &err);
    train_config_init(c);
    c->dtype = dtype;
    c->batch_size = SEQUENCES;
    c->sequence_length = T;
    c->loss_rows = ROWS;
    train_config_resolve(c, draft.options.model.block_size, draft.options.model.vocab_size);
    s->d = d;
    s->t = trainer_allocate(&draft, &err);
    bench_must(s->t != NULL, &err);
    bench_fill_weights(&s->t->gpt, d, s->t->load_staging, 5);
}

/* Evaluates, for the logits [ROWS, V]; then forward and backward. */
static void compute(struct one_side *s, float *logits)
{
    struct trainer *t = s->t;
    struct error err;
    int64_t V = t->gpt.config.vocab_size;
    uint32_t state = 99;
    int32_t tokens[T + 1];
    gpt_rows_clear(t->host_rows);
    for (int k = 0; k < SEQUENCES; k++) {
        for (int i = 0; i <= T; i++) tokens[i] = bench_random_token(&state, V);
        bool room = gpt_rows_add(t->host_rows, &t->train.options, tokens, tokens + 1, T);
        ASSERT(room);
    }
    t->host_rows->scalars->grad_scale = 1.0f / ROWS;
    struct gpt_micro_batch m = gpt_rows_upload(t->host_rows, &t->device_rows, s->d);
    gpt_train_evaluate(&t->train, s->d, &m);
    s->d->ops->download(s->d, logits, t->train.logits.data, (size_t)(ROWS * V) * sizeof *logits);
    bench_must(s->d->ops->sync(s->d, &err), &err);
    gpt_train_zero_grads(&t->train, s->d);
    gpt_train_micro_step(&t->train, s->d, &m);
    bench_must(s->d->ops->sync(s->d, &err), &err);
}

/* A weight, or its gradient, as f32 [n_out, n_in]; malloc'd. */
static float *read_param(struct device *d, const struct gpt_param *p)
{
    float *x = malloc((size_t)(p->n_out * p->n_in) * sizeof *x);
    struct error err;
    if (!x) abort();
    if (p->matrix) d->train->matrix_read(d, p->matrix, 0, p->n_out, x);
    else d->ops->download(d, x, p->vector, (size_t)(p->n_out * p->n_in) * sizeof *x);
    bench_must(d->ops->sync(d, &err), &err);
    return x;
}

/* |got - want| / |want|, of the vectors as a whole. */
static double distance(const float *got, const float *want, int64_t n)
{
    double difference = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        double e = (double)got[i] - want[i];
        difference += e * e;
        size += (double)want[i] * want[i];
    }
    return size > 0 ? sqrt(difference / size) : sqrt(difference);
}

/* ---- for torch ---- */

static void dump(const char *dir, FILE *index, const char *name, const float *x, int64_t rows,
                 int64_t cols)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s.f32", dir, name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(x, sizeof *x, (size_t)(rows * cols), f) != (size_t)(rows * cols) ||
        fclose(f)) {
        fprintf(stderr, "bench_gpu: cannot write %s\n", path);
        exit(1);
    }
    fprintf(index, "%s %lld %lld\n", name, (long long)rows, (long long)cols);
}

static void dump_ids(const char *dir, FILE *index, const char *name, const int32_t *ids)
{
    float x[ROWS];
    for (int i = 0; i < ROWS; i++) x[i] = (float)ids[i];
    dump(dir, index, name, x, SEQUENCES, T);
}

static void dump_params(const char *dir, FILE *index, const char *kind, struct gpt *g,
                        struct device *d)
{
    struct gpt_roles roles = gpt_roles(&g->config);
    for (int64_t i = 0; i < gpt_n_params(g); i++) {
        struct gpt_param p = gpt_param_of(g, &roles, i);
        char name[128];
        float *x = read_param(d, &p);
        snprintf(name, sizeof name, "%s.%s.%lld", kind, weight_role_name(p.role),
                 (long long)p.layer);
        dump(dir, index, name, x, p.n_out, p.n_in);
        free(x);
    }
}

static void dump_side(struct one_side *s, const char *root, int model, const float *logits)
{
    char dir[256], path[512];
    snprintf(dir, sizeof dir, "%s/%s", root, models[model].name);
    mkdir(root, 0777);
    mkdir(dir, 0777);
    snprintf(path, sizeof path, "%s/config.json", dir);
    FILE *config = fopen(path, "w");
    snprintf(path, sizeof path, "%s/index.txt", dir);
    FILE *index = fopen(path, "w");
    if (!config || !index) {
        fprintf(stderr, "bench_gpu: cannot write into %s\n", dir);
        exit(1);
    }
    fprintf(config, "%s\n", models[model].config);
    fclose(config);
    dump_ids(dir, index, "tokens", s->t->host_rows->tokens);
    dump_ids(dir, index, "targets", s->t->host_rows->targets);
    dump(dir, index, "logits", logits, ROWS, s->t->gpt.config.vocab_size);
    dump_params(dir, index, "w", &s->t->gpt, s->d);
    dump_params(dir, index, "g", &s->t->train.grads, s->d);
    fclose(index);
}

/* ---- the comparison ---- */

static int report(const char *model, enum dtype dtype, const char *what, double worst,
                  const char *where, double tolerance)
{
    char name[128];
    bool ok = worst <= tolerance; /* not for NaN */
    snprintf(name, sizeof name, "%s %s %s against the CPU", model, dtype_info(dtype)->name, what);
    bench_report("parity", name, worst, ok ? "ok" : "FAILED", "relative distance%s%s, allowed %.1g",
                 *where ? ", most in " : "", where, tolerance);
    return !ok;
}

static int compare(const struct bench *b, int model, enum dtype dtype, const char *dir)
{
    struct cpu_options cpu = {.n_threads = 1, .isa = CPU_ISA_REFERENCE};
    struct one_side sides[2];
    struct error err;
    struct device *reference;
    bench_must(cpu_device_open(&cpu, &reference, &err), &err);
    open_side(&sides[0], reference, models[model].config, dtype);
    open_side(&sides[1], b->d, models[model].config, dtype);
    struct gpt *grads = &sides[0].t->train.grads;
    int64_t V = grads->config.vocab_size;
    float *logits[2];
    for (int i = 0; i < 2; i++) {
        logits[i] = malloc((size_t)(ROWS * V) * sizeof(float));
        if (!logits[i]) abort();
        compute(&sides[i], logits[i]);
    }
    double tolerance = dtype == DTYPE_F32 ? 2e-5 : 2e-2;
    int bad = report(models[model].name, dtype, "logits", distance(logits[1], logits[0], ROWS * V),
                     "", tolerance);
    double worst = 0;
    char where[96] = "";
    struct gpt_roles roles = gpt_roles(&grads->config);
    for (int64_t i = 0; i < gpt_n_params(grads); i++) {
        struct gpt_param want = gpt_param_of(grads, &roles, i);
        struct gpt_param got = gpt_param_of(&sides[1].t->train.grads, &roles, i);
        float *x = read_param(sides[1].d, &got), *y = read_param(sides[0].d, &want);
        double e = distance(x, y, want.n_out * want.n_in);
        if (!(e <= worst)) {
            worst = e;
            snprintf(where, sizeof where, "%s of layer %lld", weight_role_name(want.role),
                     (long long)want.layer);
        }
        free(x);
        free(y);
    }
    bad += report(models[model].name, dtype, "gradients", worst, where, 2 * tolerance);
    if (dtype == DTYPE_F32) dump_side(&sides[1], dir, model, logits[1]);
    for (int i = 0; i < 2; i++) {
        trainer_release(sides[i].t);
        free(logits[i]);
    }
    reference->ops->close(reference);
    return bad;
}

int bench_parity(const struct bench *b, const char *dir)
{
    int bad = 0;
    for (int m = 0; m < N_MODELS; m++) {
        bad += compare(b, m, DTYPE_F32, dir);
        bad += compare(b, m, DTYPE_BF16, dir);
    }
    return bad;
}

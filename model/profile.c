/* A device that times another one: see profile.h. Each operation is begun, passed on and ended; its
 * costs follow from its operands. */
#include "model/profile.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/checked.h"
#include "base/clock.h"
#include "model/device_rates.h"
#include "model/device_train.h"

enum { MAX_ENTRIES = 96, SPANS_AT_ONCE = 64 };

/* What an operation is counted under, and what it costs. */
struct cost {
    const char *name;
    int64_t n_out, n_in; /* of a product; 0: none */
    enum dtype dtype;    /* of its arithmetic */
    double flops, bytes;
};

struct entry {
    struct cost sum; /* flops and bytes of all calls */
    int64_t calls, ns, cpu_ns;
};

struct profile {
    struct device base; /* first: a struct device * is a struct profile * */
    struct device *inner;
    struct device_ops ops; /* without what the inner device lacks */
    struct device_train_ops train;
    FILE *to;
    struct error error; /* of a wait, until the caller asks */
    double bytes_per_s; /* read from memory */
    double flops_per_s[2]; /* of f32, of half precision */
    struct entry entries[MAX_ENTRIES];
    int32_t n;
    int64_t begun_ns, ended_ns; /* the first operation, the last */
};

static struct profile *profile_of(struct device *d) { return (struct profile *)d; }
static struct device *inner_of(const struct device *d)
{
    return ((const struct profile *)d)->inner;
}

static int64_t cpu_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* ---- counting ---- */

struct moment { int64_t ns, cpu_ns; };

static struct moment begin(struct device *d)
{
    struct profile *p = profile_of(d);
    struct moment now = {clock_ns(), cpu_ns()};
    if (p->begun_ns == 0) p->begun_ns = now.ns;
    return now;
}

/* The last entry takes in what finds no room. */
static struct entry *find(struct profile *p, const struct cost *c)
{
    for (int32_t i = 0; i < p->n; i++) {
        const struct cost *e = &p->entries[i].sum;
        if (strcmp(e->name, c->name) == 0 && e->n_out == c->n_out && e->n_in == c->n_in
            && e->dtype == c->dtype)
            return &p->entries[i];
    }
    if (p->n == MAX_ENTRIES) {
        p->entries[MAX_ENTRIES - 1].sum.name = "others";
        return &p->entries[MAX_ENTRIES - 1];
    }
    p->entries[p->n] = (struct entry){.sum = {.name = c->name, .n_out = c->n_out, .n_in = c->n_in,
                                              .dtype = c->dtype}};
    return &p->entries[p->n++];
}

static void wait(struct profile *p)
{
    struct error err = {0};
    if (!p->inner->ops->sync(p->inner, &err) && p->error.code == ERR_NONE) p->error = err;
}

static void end(struct device *d, struct moment since, struct cost c)
{
    struct profile *p = profile_of(d);
    wait(p);
    struct entry *e = find(p, &c);
    p->ended_ns = clock_ns();
    e->calls++;
    e->ns += p->ended_ns - since.ns;
    e->cpu_ns += cpu_ns() - since.cpu_ns;
    e->sum.flops += c.flops;
    e->sum.bytes += c.bytes;
}

static double bytes_of(enum dtype dtype, int64_t n)
{
    const struct dtype_info *info = dtype_info(dtype);
    return (double)n * info->block_bytes / info->block;
}

static double tensor_bytes(struct tensor t)
{
    return t.data ? bytes_of(t.dtype, t.rows * t.cols) : 0;
}

static double matrix_bytes(const struct device *d, const struct matrix *w)
{
    return (double)device_matrix_bytes(inner_of(d), w);
}

/* Of rows by a matrix, whichever of the three is the result. */
static struct cost product(const char *name, const struct device *d, const struct matrix *w,
                           enum dtype dtype, struct tensor a, struct tensor b)
{
    return (struct cost){name, w->n_out, w->n_in, dtype,
                         2.0 * (double)a.rows * (double)w->n_out * (double)w->n_in,
                         matrix_bytes(d, w) + tensor_bytes(a) + tensor_bytes(b)};
}

/* Pairs of a query and a key that it sees, and keys and values of all spans together. */
static void count_keys(struct device *d, const struct batch *b, double *pairs, double *keys)
{
    struct span spans[SPANS_AT_ONCE];
    *pairs = *keys = 0;
    for (int32_t i = 0; i < b->n_spans; i += SPANS_AT_ONCE) {
        int32_t n = (int32_t)min_i64(SPANS_AT_ONCE, b->n_spans - i);
        inner_of(d)->ops->download(inner_of(d), spans, b->spans + i, (size_t)n * sizeof *spans);
        wait(profile_of(d));
        for (int32_t k = 0; k < n; k++) {
            double rows = spans[k].n_rows, start = spans[k].start;
            *pairs += rows * start + 0.5 * rows * (rows + 1);
            *keys += start + rows;
        }
    }
}

/* ---- the operations of model/device.h ---- */

static const char *description(const struct device *d)
{
    return inner_of(d)->ops->description(inner_of(d));
}

static void *device_alloc(struct device *d, size_t bytes, struct error *err)
{
    return inner_of(d)->ops->alloc(inner_of(d), bytes, err);
}

static void device_free(struct device *d, void *p, size_t bytes)
{
    inner_of(d)->ops->free(inner_of(d), p, bytes);
}

static void *alloc_host(struct device *d, size_t bytes, struct error *err)
{
    return inner_of(d)->ops->alloc_host(inner_of(d), bytes, err);
}

static void free_host(struct device *d, void *p) { inner_of(d)->ops->free_host(inner_of(d), p); }

static void upload(struct device *d, void *dst, const void *src, size_t bytes)
{
    struct moment t = begin(d);
    inner_of(d)->ops->upload(inner_of(d), dst, src, bytes);
    end(d, t, (struct cost){.name = "upload", .bytes = 2 * (double)bytes});
}

static void download(struct device *d, void *dst, const void *src, size_t bytes)
{
    struct moment t = begin(d);
    inner_of(d)->ops->download(inner_of(d), dst, src, bytes);
    end(d, t, (struct cost){.name = "download", .bytes = 2 * (double)bytes});
}

static bool driver_memory(const struct device *d, struct device_memory *out)
{
    return inner_of(d)->ops->memory(inner_of(d), out);
}

static bool sync_device(struct device *d, struct error *err)
{
    struct profile *p = profile_of(d);
    if (!p->inner->ops->sync(p->inner, err)) return false;
    if (p->error.code == ERR_NONE) return true;
    *err = p->error;
    return false;
}

static bool computes_in(const struct device *d, enum dtype dtype)
{
    return inner_of(d)->ops->computes_in(inner_of(d), dtype);
}

static bool keeps_kv_in(const struct device *d, enum dtype kv, enum dtype activations)
{
    return inner_of(d)->ops->keeps_kv_in(inner_of(d), kv, activations);
}

static int64_t size_of_matrix(const struct device *d, enum dtype dtype, int64_t n_out, int64_t n_in)
{
    return inner_of(d)->ops->matrix_bytes(inner_of(d), dtype, n_out, n_in);
}

static int64_t kv_page_bytes(const struct device *d, enum dtype dtype, int32_t n_kv_head,
                             int32_t head_dim)
{
    return inner_of(d)->ops->kv_page_bytes(inner_of(d), dtype, n_kv_head, head_dim);
}

static int64_t workspace_bytes(const struct device *d, const struct workspace_shape *shape)
{
    return inner_of(d)->ops->workspace_bytes(inner_of(d), shape);
}

static void set_workspace(struct device *d, void *workspace, int64_t bytes)
{
    struct profile *p = profile_of(d);
    inner_of(d)->ops->set_workspace(inner_of(d), workspace, bytes);
    p->n = 0;
    p->begun_ns = p->ended_ns = 0;
}

static void matrix_write(struct device *d, struct matrix *w, int64_t row0, int64_t n_rows,
                         const float *rows)
{
    struct moment t = begin(d);
    inner_of(d)->ops->matrix_write(inner_of(d), w, row0, n_rows, rows);
    double elements = (double)n_rows * (double)w->n_in;
    end(d, t, (struct cost){.name = "matrix_write",
                            .bytes = 4 * elements + bytes_of(w->dtype, n_rows * w->n_in)});
}

static void matrix_write_blocks(struct device *d, struct matrix *w, int64_t row0, int64_t n_rows,
                                const uint8_t *blocks)
{
    struct moment t = begin(d);
    inner_of(d)->ops->matrix_write_blocks(inner_of(d), w, row0, n_rows, blocks);
    end(d, t, (struct cost){.name = "matrix_write_blocks", .dtype = w->dtype,
                            .bytes = 2 * bytes_of(w->dtype, n_rows * w->n_in)});
}

static void embed(struct device *d, struct tensor out, const struct batch *b,
                  const struct matrix *wte, const float *wpe)
{
    struct moment t = begin(d);
    inner_of(d)->ops->embed(inner_of(d), out, b, wte, wpe);
    double row = bytes_of(wte->dtype, out.cols) + (wpe ? 4.0 * (double)out.cols : 0);
    end(d, t, (struct cost){.name = "embed", .bytes = tensor_bytes(out) + (double)out.rows * row});
}

static void norm(struct device *d, struct tensor out, struct tensor x, const struct norm *n)
{
    struct moment t = begin(d);
    inner_of(d)->ops->norm(inner_of(d), out, x, n);
    end(d, t, (struct cost){.name = "norm", .bytes = tensor_bytes(out) + tensor_bytes(x)});
}

static void matmul(struct device *d, struct tensor out, struct tensor x, const struct matrix *w,
                   const float *bias, enum epilogue epilogue)
{
    struct moment t = begin(d);
    inner_of(d)->ops->matmul(inner_of(d), out, x, w, bias, epilogue);
    struct cost c = product("matmul", d, w, w->dtype, x, out);
    if (epilogue == EPILOGUE_ADD) c.bytes += tensor_bytes(out);
    end(d, t, c);
}

static void norm_matmul(struct device *d, struct tensor out, const struct norm_matmul *m)
{
    struct moment t = begin(d);
    inner_of(d)->ops->norm_matmul(inner_of(d), out, m);
    end(d, t, product(m->gate_up.data ? "norm_matmul_swiglu" : "norm_matmul", d, m->w, m->w->dtype,
                      m->x, out));
}

static void swiglu(struct device *d, struct tensor out, struct tensor gate_up)
{
    struct moment t = begin(d);
    inner_of(d)->ops->swiglu(inner_of(d), out, gate_up);
    end(d, t, (struct cost){.name = "swiglu", .bytes = tensor_bytes(out) + tensor_bytes(gate_up)});
}

static void kv_write(struct device *d, struct tensor qkv, const struct batch *b,
                     const struct attention *a, const struct kv_cache *kv, int32_t layer)
{
    struct moment t = begin(d);
    inner_of(d)->ops->kv_write(inner_of(d), qkv, b, a, kv, layer);
    double written = bytes_of(kv->dtype, qkv.rows * 2 * a->n_kv_head * a->head_dim);
    end(d, t, (struct cost){.name = "kv_write", .bytes = tensor_bytes(qkv) + written});
}

/* Forward attention's cost over the cache; the operation itself is run by who calls. */
static struct cost attention_cost(const char *name, struct device *d, struct tensor out,
                                  const struct batch *b, const struct attention *a,
                                  enum dtype cache)
{
    double pairs, keys, heads = (double)a->n_head * a->head_dim;
    count_keys(d, b, &pairs, &keys);
    double read = keys * bytes_of(cache, 2 * a->n_kv_head * a->head_dim);
    return (struct cost){.name = name, .dtype = cache, .flops = 4 * pairs * heads,
                         .bytes = read + 4 * (double)out.rows * heads + tensor_bytes(out)};
}

static void attention(struct device *d, struct tensor out, struct tensor qkv, const struct batch *b,
                      const struct attention *a, const struct kv_cache *kv, int32_t layer)
{
    struct cost c = attention_cost("attention", d, out, b, a, kv->dtype);
    struct moment t = begin(d);
    inner_of(d)->ops->attention(inner_of(d), out, qkv, b, a, kv, layer);
    end(d, t, c);
}

static void kv_attention(struct device *d, struct tensor out, struct tensor qkv,
                         const struct batch *b, const struct attention *a,
                         const struct kv_cache *kv, int32_t layer)
{
    struct cost c = attention_cost("kv_attention", d, out, b, a, kv->dtype);
    struct moment t = begin(d);
    inner_of(d)->ops->kv_attention(inner_of(d), out, qkv, b, a, kv, layer);
    int64_t new = qkv.rows * 2 * a->n_kv_head * a->head_dim;
    c.bytes += 4 * (double)new + bytes_of(kv->dtype, new);
    end(d, t, c);
}

static void gather(struct device *d, struct tensor out, struct tensor x, const int32_t *rows)
{
    struct moment t = begin(d);
    inner_of(d)->ops->gather(inner_of(d), out, x, rows);
    end(d, t, (struct cost){.name = "gather", .bytes = 2 * tensor_bytes(out)});
}

static void sample(struct device *d, struct tensor logits, const struct sample_request *requests,
                   int32_t *words, struct sample_out *out)
{
    struct moment t = begin(d);
    inner_of(d)->ops->sample(inner_of(d), logits, requests, words, out);
    end(d, t, (struct cost){.name = "sample", .bytes = tensor_bytes(logits)});
}

/* ---- those of model/device_train.h ---- */

static void matrix_read(struct device *d, const struct matrix *w, int64_t row0, int64_t n_rows,
                        float *rows)
{
    struct moment t = begin(d);
    inner_of(d)->train->matrix_read(inner_of(d), w, row0, n_rows, rows);
    double elements = (double)n_rows * (double)w->n_in;
    end(d, t, (struct cost){.name = "matrix_read",
                            .bytes = 4 * elements + bytes_of(w->dtype, n_rows * w->n_in)});
}

static void zero(struct device *d, void *p, int64_t bytes)
{
    struct moment t = begin(d);
    inner_of(d)->train->zero(inner_of(d), p, bytes);
    end(d, t, (struct cost){.name = "zero", .bytes = (double)bytes});
}

static void normal(struct device *d, float *out, int64_t n, const uint32_t key[2], int64_t first,
                   float std)
{
    struct moment t = begin(d);
    inner_of(d)->train->normal(inner_of(d), out, n, key, first, std);
    end(d, t, (struct cost){.name = "normal", .bytes = bytes_of(DTYPE_F32, n)});
}

static void dropout(struct device *d, struct tensor out, struct tensor in, struct dropout drop)
{
    struct moment t = begin(d);
    inner_of(d)->train->dropout(inner_of(d), out, in, drop);
    end(d, t, (struct cost){.name = drop.p > 0 ? "dropout" : "convert",
                            .bytes = tensor_bytes(out) + tensor_bytes(in)});
}

static void add_dropout(struct device *d, struct tensor x, struct tensor y, struct dropout drop)
{
    struct moment t = begin(d);
    inner_of(d)->train->add_dropout(inner_of(d), x, y, drop);
    end(d, t, (struct cost){.name = "add_dropout", .bytes = 2 * tensor_bytes(x) + tensor_bytes(y)});
}

static void gelu(struct device *d, struct tensor out, struct tensor in, bool exact)
{
    struct moment t = begin(d);
    inner_of(d)->train->gelu(inner_of(d), out, in, exact);
    end(d, t, (struct cost){.name = "gelu", .bytes = tensor_bytes(out) + tensor_bytes(in)});
}

static void matmul_backward_x(struct device *d, struct tensor dx, struct tensor dy,
                              const struct matrix *w)
{
    struct moment t = begin(d);
    inner_of(d)->train->matmul_backward_x(inner_of(d), dx, dy, w);
    end(d, t, product("matmul_backward_x", d, w, w->dtype, dx, dy));
}

static void matmul_gelu_backward(struct device *d, struct tensor dpre, struct tensor dy,
                                 const struct matrix *w, struct tensor pre, bool exact)
{
    struct moment t = begin(d);
    inner_of(d)->train->matmul_gelu_backward(inner_of(d), dpre, dy, w, pre, exact);
    struct cost c = product("matmul_gelu_backward", d, w, w->dtype, dpre, dy);
    c.bytes += tensor_bytes(pre);
    end(d, t, c);
}

static void matmul_backward_w(struct device *d, struct matrix *dw, float *dbias, struct tensor dy,
                              struct tensor x, struct random_key rounding)
{
    struct moment t = begin(d);
    inner_of(d)->train->matmul_backward_w(inner_of(d), dw, dbias, dy, x, rounding);
    struct cost c = product("matmul_backward_w", d, dw, x.dtype, dy, x);
    c.bytes += matrix_bytes(d, dw); /* read and written */
    end(d, t, c);
}

static void norm_backward(struct device *d, struct tensor dx, float *dweight, float *dbias,
                          struct tensor dy, struct tensor x, const struct norm *n,
                          const struct branch_gradient *next)
{
    double bytes = 2 * tensor_bytes(dx) + tensor_bytes(dy) + tensor_bytes(x);
    struct moment t = begin(d);
    inner_of(d)->train->norm_backward(inner_of(d), dx, dweight, dbias, dy, x, n, next);
    end(d, t, (struct cost){.name = "norm_backward",
                            .bytes = bytes + (next ? tensor_bytes(next->dy) : 0)});
}

static void gelu_backward(struct device *d, struct tensor dx, struct tensor dy, struct tensor pre,
                          bool exact)
{
    struct moment t = begin(d);
    inner_of(d)->train->gelu_backward(inner_of(d), dx, dy, pre, exact);
    end(d, t, (struct cost){.name = "gelu_backward", .bytes = tensor_bytes(dx) + tensor_bytes(dy)
                                                              + tensor_bytes(pre)});
}

static void swiglu_backward(struct device *d, struct tensor dgate_up, struct tensor dmlp,
                            struct tensor gate_up)
{
    struct moment t = begin(d);
    inner_of(d)->train->swiglu_backward(inner_of(d), dgate_up, dmlp, gate_up);
    end(d, t, (struct cost){.name = "swiglu_backward", .bytes = 2 * tensor_bytes(gate_up)
                                                                + tensor_bytes(dmlp)});
}

static void attention_backward(struct device *d, struct tensor dqkv, struct tensor dout,
                               struct tensor qkv, struct tensor out, const float *lse,
                               const struct batch *b, const struct attention *a)
{
    double pairs, keys;
    count_keys(d, b, &pairs, &keys);
    struct moment t = begin(d);
    inner_of(d)->train->attention_backward(inner_of(d), dqkv, dout, qkv, out, lse, b, a);
    end(d, t, (struct cost){.name = "attention_backward", .dtype = qkv.dtype,
                            .flops = 10 * pairs * (double)a->n_head * a->head_dim,
                            .bytes = tensor_bytes(dqkv) + tensor_bytes(dout) + tensor_bytes(qkv)
                                     + tensor_bytes(out)});
}

static void rope_backward(struct device *d, struct tensor out, struct tensor dqkv,
                          struct tensor qkv_pre, float *dq_norm, float *dk_norm,
                          const struct batch *b, const struct attention *a)
{
    bool works = a->rope || a->q_norm || out.data != dqkv.data;
    struct moment t = begin(d);
    inner_of(d)->train->rope_backward(inner_of(d), out, dqkv, qkv_pre, dq_norm, dk_norm, b, a);
    end(d, t, (struct cost){.name = "rope_backward",
                            .bytes = works ? tensor_bytes(dqkv) + tensor_bytes(out) : 0});
}

static void embed_backward(struct device *d, struct matrix *dwte, float *dwpe, struct tensor dx,
                           const struct batch *b)
{
    struct moment t = begin(d);
    inner_of(d)->train->embed_backward(inner_of(d), dwte, dwpe, dx, b);
    end(d, t, (struct cost){.name = "embed_backward",
                            .bytes = tensor_bytes(dx) * (dwpe ? 5 : 3)});
}

static void cross_entropy(struct device *d, struct tensor dlogits, struct tensor logits,
                          const int32_t *targets, const struct loss_options *o,
                          struct loss_row *rows)
{
    struct moment t = begin(d);
    inner_of(d)->train->cross_entropy(inner_of(d), dlogits, logits, targets, o, rows);
    end(d, t, (struct cost){.name = "cross_entropy",
                            .bytes = tensor_bytes(logits) + tensor_bytes(dlogits)});
}

static void grad_squares(struct device *d, const struct adamw_tensor *w, const bool *skip,
                         int64_t n, double *sum)
{
    struct moment t = begin(d);
    inner_of(d)->train->grad_squares(inner_of(d), w, skip, n, sum);
    double bytes = 0;
    for (int64_t i = 0; i < n; i++)
        if (!skip[i]) bytes += bytes_of(w[i].grad_dtype, w[i].n_out * w[i].n_in);
    end(d, t, (struct cost){.name = "grad_squares", .bytes = bytes});
}

static void master_init(struct device *d, const struct adamw_tensor *w)
{
    struct moment t = begin(d);
    inner_of(d)->train->master_init(inner_of(d), w);
    end(d, t, (struct cost){.name = "master_init"});
}

static int64_t moment_bytes(const struct device *d, enum moment_format format, int64_t n)
{
    return inner_of(d)->train->moment_bytes(inner_of(d), format, n);
}

/* In and out, of one tensor. */
static double adamw_bytes(const struct device *d, const struct adamw_tensor *w)
{
    static const int master_bytes[] = {[MASTER_F32] = 4, [MASTER_REMAINDER] = 2};
    int64_t n = w->n_out * w->n_in;
    double kept = (double)(moment_bytes(d, w->m_format, n) + moment_bytes(d, w->v_format, n)
                           + master_bytes[w->master_format] * n) + bytes_of(w->dtype, n);
    return 2 * kept + bytes_of(w->grad_dtype, n);
}

static void adamw(struct device *d, const struct adamw_tensor *w, const bool *skip, int64_t n,
                  const struct adamw_step *s)
{
    struct moment t = begin(d);
    inner_of(d)->train->adamw(inner_of(d), w, skip, n, s);
    double bytes = 0;
    for (int64_t i = 0; i < n; i++)
        if (!skip[i]) bytes += adamw_bytes(d, &w[i]);
    end(d, t, (struct cost){.name = "adamw", .bytes = bytes});
}

static int64_t train_workspace_bytes(const struct device *d, const struct workspace_shape *shape)
{
    return inner_of(d)->train->workspace_bytes(inner_of(d), shape);
}

/* ---- the table ---- */

static int by_time(const void *a, const void *b)
{
    int64_t x = ((const struct entry *)a)->ns, y = ((const struct entry *)b)->ns;
    return x < y ? 1 : x > y ? -1 : 0;
}

/* The least seconds that the entry's work takes at the device's rates. Quantized products have no
 * rate of their own to be held to: their bytes count. */
static double least_seconds(const struct profile *p, const struct cost *c)
{
    double moving = c->bytes / p->bytes_per_s;
    bool half = c->dtype == DTYPE_BF16 || c->dtype == DTYPE_F16;
    double rate = half || c->dtype == DTYPE_F32 ? p->flops_per_s[half] : 0;
    double computing = rate > 0 ? c->flops / rate : 0;
    return computing > moving ? computing : moving;
}

static void print_entry(const struct profile *p, const struct entry *e, double total, FILE *to)
{
    const struct cost *c = &e->sum;
    char name[64];
    double s = (double)(e->ns > 0 ? e->ns : 1) / 1e9;
    if (c->n_out > 0)
        snprintf(name, sizeof name, "%s %s %lld x %lld", c->name, dtype_info(c->dtype)->name,
                 (long long)c->n_out, (long long)c->n_in);
    else
        snprintf(name, sizeof name, "%s", c->name);
    fprintf(to, "%-36s %8lld %12.3f %12.3f %6.1f %8.2f %9.1f %6.0f\n", name, (long long)e->calls,
            s * 1e3, (double)e->cpu_ns / 1e6, 100 * s / total, c->bytes / s / 1e9,
            c->flops / s / 1e9, 100 * least_seconds(p, c) / s);
}

/* The dearest operations first. Of the limit: the least time that an operation's products and bytes
 * would take at the measured rates, the longer of the two, over what it took. Bytes are held to
 * reading memory that no cache holds; what lies in a cache moves faster, so small models may pass
 * 100 %. */
static void print_table(const struct device *profile, FILE *to)
{
    const struct profile *p = (const struct profile *)profile;
    struct entry sorted[MAX_ENTRIES];
    double total = (double)max_i64(1, p->ended_ns - p->begun_ns) / 1e9, inside = 0;
    memcpy(sorted, p->entries, (size_t)p->n * sizeof *sorted);
    qsort(sorted, (size_t)p->n, sizeof *sorted, by_time);
    fprintf(to,
            "%s; limits measured at start: %.1f GB/s read from memory, %.1f GFLOP/s in f32, "
            "%.1f in 16 bits\n",
            description(profile), p->bytes_per_s / 1e9, p->flops_per_s[0] / 1e9,
            p->flops_per_s[1] / 1e9);
    fprintf(to, "%-36s %8s %12s %12s %6s %8s %9s %6s\n", "operation", "calls", "ms", "CPU ms",
            "%", "GB/s", "GFLOP/s", "% lim");
    for (int32_t i = 0; i < p->n; i++) {
        print_entry(p, &sorted[i], total, to);
        inside += (double)sorted[i].ns / 1e9;
    }
    fprintf(to, "%-36s %8s %12.3f %12s %6.1f\n", "between operations", "", (total - inside) * 1e3,
            "", 100 * (1 - inside / total));
    fflush(to);
}

/* ---- opening and closing ---- */

static void close_profile(struct device *d)
{
    struct profile *p = profile_of(d);
    print_table(d, p->to);
    p->inner->ops->close(p->inner);
    free(p);
}

static const struct device_ops ops = {
    .close = close_profile,
    .description = description,
    .alloc = device_alloc,
    .free = device_free,
    .alloc_host = alloc_host,
    .free_host = free_host,
    .upload = upload,
    .download = download,
    .sync = sync_device,
    .memory = driver_memory,
    .computes_in = computes_in,
    .keeps_kv_in = keeps_kv_in,
    .matrix_bytes = size_of_matrix,
    .kv_page_bytes = kv_page_bytes,
    .workspace_bytes = workspace_bytes,
    .set_workspace = set_workspace,
    .matrix_write = matrix_write,
    .matrix_write_blocks = matrix_write_blocks,
    .embed = embed,
    .norm = norm,
    .matmul = matmul,
    .norm_matmul = norm_matmul,
    .swiglu = swiglu,
    .kv_write = kv_write,
    .attention = attention,
    .kv_attention = kv_attention,
    .gather = gather,
    .sample = sample,
};

static const struct device_train_ops train_ops = {
    .matrix_read = matrix_read,
    .zero = zero,
    .normal = normal,
    .dropout = dropout,
    .add_dropout = add_dropout,
    .gelu = gelu,
    .matmul_backward_x = matmul_backward_x,
    .matmul_gelu_backward = matmul_gelu_backward,
    .matmul_backward_w = matmul_backward_w,
    .norm_backward = norm_backward,
    .gelu_backward = gelu_backward,
    .swiglu_backward = swiglu_backward,
    .attention_backward = attention_backward,
    .rope_backward = rope_backward,
    .embed_backward = embed_backward,
    .cross_entropy = cross_entropy,
    .grad_squares = grad_squares,
    .master_init = master_init,
    .moment_bytes = moment_bytes,
    .adamw = adamw,
    .workspace_bytes = train_workspace_bytes,
};

bool profile_open(struct device *inner, FILE *to, struct device **out, struct error *err)
{
    static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16};
    struct profile *p = calloc(1, sizeof *p);
    if (!p) return error_set(err, ERR_MEMORY, NULL, "no memory for the profile");
    p->inner = inner;
    p->to = to;
    if (!device_read_rate_measure(inner, &p->bytes_per_s, err)) {
        free(p);
        return false;
    }
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++) {
        /* A type that the device does not compute in is never asked for. */
        if (!inner->ops->computes_in(inner, dtypes[i])) continue;
        double *rate = &p->flops_per_s[dtypes[i] != DTYPE_F32];
        if (!device_product_rate_measure(inner, dtypes[i], rate, err)) {
            free(p);
            return false;
        }
    }
    memcpy(p->base.name, inner->name, sizeof p->base.name);
    p->ops = ops;
    if (!inner->ops->matrix_write_blocks) p->ops.matrix_write_blocks = NULL;
    if (!inner->ops->norm_matmul) p->ops.norm_matmul = NULL;
    if (!inner->ops->kv_attention) p->ops.kv_attention = NULL;
    if (!inner->ops->memory) p->ops.memory = NULL;
    if (!inner->ops->alloc_host) p->ops.alloc_host = NULL, p->ops.free_host = NULL;
    p->base.ops = &p->ops;
    if (inner->train) {
        p->train = train_ops;
        p->train.writes_act = inner->train->writes_act;
        if (!inner->train->normal) p->train.normal = NULL;
        if (!inner->train->matmul_gelu_backward) p->train.matmul_gelu_backward = NULL;
        p->base.train = &p->train;
    }
    *out = &p->base;
    return true;
}

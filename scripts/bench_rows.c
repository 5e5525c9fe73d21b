/* The operations that do little arithmetic on much memory: of serving, of training, and the
 * optimizer. Each is timed in turn with a plain pass that reads and writes as many bytes on the
 * same threads (memcpy, words turned where they lie, a sum of words, memset), so that a line says
 * what its arithmetic costs beyond moving the bytes. Times are the best of many rounds, since
 * others may use the machine. Part of bench_kernels. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "model/sampler.h"
#include "scripts/bench_kernels.h"

enum {
    R = 512, C = 768, F = 2048, H = 12, G = 4, K = 64, V = 50304,
    LOGIT_ROWS = 16, LOSS_ROWS = 64, WEIGHTS_OUT = 2048, WEIGHTS_IN = 4096,
    POSITIONS = 1024, ROUNDS = 30, PIECE = 1 << 14,
    BUFFER_BYTES = WEIGHTS_OUT * WEIGHTS_IN * 4, /* of each operand: the largest
                                                    is a weight in f32 */
    PLAIN_BYTES = 4 * BUFFER_BYTES,
};

/* Operands: every operation takes what it needs, in whatever type. */
struct rows_bench {
    struct cpu_device *c;
    struct device *d;
    void *a, *b, *e, *f, *g; /* BUFFER_BYTES each */
    void *half;              /* as many, of bf16 values */
    float *logits;           /* [LOSS_ROWS, V] */
    float *vector;           /* norm weights, [F] */
    struct matrix wte;       /* bf16 [V, C] */
    struct kv_cache kv;
    struct batch batch;
    struct attention attention;
    uint8_t *from, *to;      /* of the plain pass */
    uint64_t sums[1024];
};

static struct tensor view(void *p, enum dtype dtype, int64_t rows, int64_t cols)
{
    return (struct tensor){p, dtype, rows, cols};
}

static struct tensor f32(void *p, int64_t rows, int64_t cols)
{
    return view(p, DTYPE_F32, rows, cols);
}
static struct tensor b16(void *p, int64_t rows, int64_t cols)
{
    return view(p, DTYPE_BF16, rows, cols);
}

/* ---- the plain pass ---- */

/* Pieces that are both read and written, and those that are only the one or the other. */
struct plain { struct rows_bench *b; int64_t both, reads, writes; bool in_place; };

/* Eight chains of additions hide their latency. */
typedef uint64_t words __attribute__((vector_size(16)));

static uint64_t sum_piece(const uint8_t *from)
{
    const words *p = (const words *)from;
    words a = {0}, b = a, c = a, d = a, e = a, f = a, g = a, h = a;
    for (int64_t k = 0; k < PIECE / 16; k += 8) {
        a += p[k], b += p[k + 1], c += p[k + 2], d += p[k + 3];
        e += p[k + 4], f += p[k + 5], g += p[k + 6], h += p[k + 7];
    }
    a += b + c + d + (e + f + g + h);
    return a[0] + a[1];
}

static void turn_piece(uint8_t *at)
{
    words *p = (words *)at;
    for (int64_t k = 0; k < PIECE / 16; k++) p[k] = ~p[k];
}

static void plain_pieces(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    const struct plain *p = ctx;
    uint64_t sum = 0;
    for (int64_t i = begin; i < end; i++) {
        uint8_t *from = p->b->from + i * PIECE, *to = p->b->to + i * PIECE;
        if (i < p->both && p->in_place) turn_piece(to);
        else if (i < p->both) memcpy(to, from, PIECE);
        else if (p->writes) memset(to, (int)i, PIECE);
        else sum += sum_piece(from);
    }
    p->b->sums[thread] += sum;
}

static int64_t time_plain(struct rows_bench *b, int64_t reads, int64_t writes, bool in_place)
{
    struct plain p = {b, min_i64(reads, writes) / PIECE, 0, 0, in_place};
    p.reads = ceil_div(max_i64(reads - writes, 0), PIECE);
    p.writes = ceil_div(max_i64(writes - reads, 0), PIECE);
    int64_t t = bench_ns(b->c);
    pool_for(b->c->pool, p.both + p.reads + p.writes, 1, plain_pieces, &p);
    return bench_ns(b->c) - t;
}

/* ---- lines ---- */

typedef void (*run_fn)(struct rows_bench *b);

/* in_place: what is written is what was read. */
static void compare(struct rows_bench *b, const char *name, run_fn run, int64_t reads,
                    int64_t writes, bool in_place)
{
    int64_t best = INT64_MAX, plain = INT64_MAX;
    for (int i = 0; i < ROUNDS; i++) {
        run(b); /* what fits into a cache is there */
        int64_t t = bench_ns(b->c);
        run(b);
        best = min_i64(best, bench_ns(b->c) - t);
        time_plain(b, reads, writes, in_place);
        plain = min_i64(plain, time_plain(b, reads, writes, in_place));
    }
    double bytes = (double)(reads + writes);
    printf("%-44s %8.2f %9.1f %8.1f %8.1f %6.0f %%\n", name, bytes * 1e-6, (double)best * 1e-3,
           bytes / (double)best, bytes / (double)plain, 100 * (double)plain / (double)best);
}

static void line(struct rows_bench *b, const char *name, run_fn run, int64_t reads, int64_t writes)
{
    compare(b, name, run, reads, writes, false);
}

static void line_in_place(struct rows_bench *b, const char *name, run_fn run, int64_t reads,
                          int64_t writes)
{
    compare(b, name, run, reads, writes, true);
}

/* ---- serving ---- */

static struct norm norm_of(struct rows_bench *b, bool rms)
{
    return (struct norm){b->vector, rms ? NULL : b->vector, 1e-5f, rms};
}

static void run_rmsnorm(struct rows_bench *b)
{
    struct norm n = norm_of(b, true);
    b->d->ops->norm(b->d, b16(b->b, R, C), f32(b->a, R, C), &n);
}

static void run_layernorm(struct rows_bench *b)
{
    struct norm n = norm_of(b, false);
    b->d->ops->norm(b->d, b16(b->b, R, C), f32(b->a, R, C), &n);
}

static void run_swiglu(struct rows_bench *b)
{
    b->d->ops->swiglu(b->d, b16(b->b, R, F), b16(b->half, R, 2 * F));
}

static void run_embed(struct rows_bench *b)
{
    b->d->ops->embed(b->d, f32(b->a, R, C), &b->batch, &b->wte, NULL);
}

static void run_gather(struct rows_bench *b)
{
    b->d->ops->gather(b->d, f32(b->a, R, C), f32(b->b, R, C), b->batch.positions);
}

static void run_kv_write(struct rows_bench *b)
{
    b->d->ops->kv_write(b->d, f32(b->a, R, (H + 2 * G) * K), &b->batch, &b->attention, &b->kv, 0);
}

static void run_kv_write_f32(struct rows_bench *b)
{
    struct kv_cache kv = b->kv;
    kv.dtype = DTYPE_F32;
    b->d->ops->kv_write(b->d, f32(b->a, R, (H + 2 * G) * K), &b->batch, &b->attention, &kv, 0);
}

static void sample(struct rows_bench *b, float temperature, int32_t top_k, float top_p,
                   int32_t n_top)
{
    struct sample_request requests[LOGIT_ROWS];
    struct sample_out out[LOGIT_ROWS];
    struct sample_params p;
    sample_params_init(&p);
    p.temperature = temperature;
    p.top_k = top_k;
    p.top_p = top_p;
    for (int i = 0; i < LOGIT_ROWS; i++) {
        struct sample_row row = {.params = &p, .choice = i, .forced = -1, .n_top = n_top};
        (void)sample_request_write(&row, V, NULL, NULL, 0, &requests[i]);
    }
    b->d->ops->sample(b->d, f32(b->logits, LOGIT_ROWS, V), requests, NULL, out);
}

static void run_greedy(struct rows_bench *b) { sample(b, 0, 0, 1, 0); }
static void run_temperature(struct rows_bench *b) { sample(b, 1, 0, 1, 0); }
static void run_top_p(struct rows_bench *b) { sample(b, 0.8f, 0, 0.95f, 0); }
static void run_top_k(struct rows_bench *b) { sample(b, 0.8f, 50, 0.95f, 0); }
static void run_top_logprobs(struct rows_bench *b) { sample(b, 0, 0, 1, 5); }

static void bench_serving(struct rows_bench *b)
{
    int64_t x = R * C * 4, qkv = R * (H + 2 * G) * K * 4, turned = R * (H + G) * K * 4;
    int64_t kv = R * 2 * G * K * 2, logits = (int64_t)LOGIT_ROWS * V * 4;
    line(b, "RMSNorm to bf16, 512 x 768", run_rmsnorm, x, x / 2);
    line(b, "LayerNorm to bf16", run_layernorm, x, x / 2);
    line(b, "SwiGLU bf16, 512 x 2,048", run_swiglu, R * F * 4, R * F * 2);
    /* An embedding's row lies across the panels' rows:
     * each pair of values is read with its line. */
    line(b, "embedding, bf16 50,304 x 768", run_embed, R * C / 2 * 64, x);
    line(b, "gather", run_gather, x, x);
    line_in_place(b, "RoPE and KV write, bf16, 12 + 2 x 4 heads", run_kv_write, qkv, turned + kv);
    line_in_place(b, "RoPE and KV write, f32", run_kv_write_f32, qkv, turned + 2 * kv);
    line(b, "sample greedy, 16 x 50,304", run_greedy, logits, 0);
    line(b, "  temperature 1", run_temperature, logits, 0);
    line(b, "  temperature, top_p", run_top_p, logits, 0);
    line(b, "  temperature, top_k 50, top_p", run_top_k, logits, 0);
    line(b, "  greedy, 5 top_logprobs", run_top_logprobs, logits, 0);
}

/* ---- training ---- */

static void run_dropout(struct rows_bench *b)
{
    const uint64_t key = 42 << 4;
    b->d->train->dropout(b->d, b16(b->b, R, C), f32(b->a, R, C),
                         (struct dropout){0.1f, {.base = &key}});
}

static void run_convert(struct rows_bench *b)
{
    b->d->train->dropout(b->d, b16(b->b, R, C), f32(b->a, R, C), (struct dropout){0});
}

static void run_add(struct rows_bench *b)
{
    b->d->train->add_dropout(b->d, f32(b->b, R, C), f32(b->a, R, C), (struct dropout){0});
}

static void run_gelu(struct rows_bench *b)
{
    b->d->train->gelu(b->d, b16(b->b, R, F), b16(b->half, R, F), false);
}

static void run_gelu_backward(struct rows_bench *b)
{
    b->d->train->gelu_backward(b->d, b16(b->b, R, F), f32(b->e, R, F), b16(b->half, R, F), false);
}

static void run_gelu_exact_backward(struct rows_bench *b)
{
    b->d->train->gelu_backward(b->d, b16(b->b, R, F), f32(b->e, R, F), b16(b->half, R, F), true);
}

static void run_swiglu_backward(struct rows_bench *b)
{
    b->d->train->swiglu_backward(b->d, b16(b->b, R, 2 * F), f32(b->e, R, F),
                                 b16(b->half, R, 2 * F));
}

static void run_norm_backward(struct rows_bench *b)
{
    struct norm n = norm_of(b, false);
    b->d->train->norm_backward(b->d, f32(b->b, R, C), b->f, b->g, f32(b->e, R, C), f32(b->a, R, C),
                               &n, NULL);
}

static void run_rope_backward(struct rows_bench *b)
{
    struct tensor none = {0};
    struct tensor dqkv = f32(b->a, R, (H + 2 * G) * K);
    b->d->train->rope_backward(b->d, dqkv, dqkv, none, NULL, NULL, &b->batch, &b->attention);
}

static void run_embed_backward(struct rows_bench *b)
{
    /* the plain pass has that much room */
    struct matrix dwte = {.data = b->from, .n_out = V / 2, .n_in = C};
    b->d->train->embed_backward(b->d, &dwte, b->b, f32(b->a, R, C), &b->batch);
}

static void run_loss(struct rows_bench *b)
{
    const float scale = 1e-3f;
    struct loss_options o = {.scale = &scale};
    struct loss_row rows[LOSS_ROWS];
    b->d->train->cross_entropy(b->d, b16(b->b, LOSS_ROWS, V), f32(b->logits, LOSS_ROWS, V),
                               b->batch.tokens, &o, rows);
}

static void run_loss_f32(struct rows_bench *b)
{
    const float scale = 1e-3f;
    struct loss_options o = {.scale = &scale};
    struct loss_row rows[LOSS_ROWS];
    b->d->train->cross_entropy(b->d, f32(b->b, LOSS_ROWS, V), f32(b->logits, LOSS_ROWS, V),
                               b->batch.tokens, &o, rows);
}

static void grad_squares(struct rows_bench *b, const void *grad, enum dtype dtype)
{
    struct adamw_tensor t = {.n_out = WEIGHTS_OUT, .n_in = WEIGHTS_IN, .packed = true, .grad = grad,
                             .grad_dtype = dtype};
    bool skip = false;
    double sum;
    b->d->train->grad_squares(b->d, &t, &skip, 1, &sum);
}

static void run_sum_squares(struct rows_bench *b) { grad_squares(b, b->a, DTYPE_F32); }
static void run_sum_squares_bf16(struct rows_bench *b) { grad_squares(b, b->half, DTYPE_BF16); }

static void run_zero(struct rows_bench *b) { b->d->train->zero(b->d, b->g, BUFFER_BYTES); }

static void bench_training(struct rows_bench *b)
{
    int64_t x = R * C * 4, f = R * F * 2, qk = R * (H + G) * K * 4, w = BUFFER_BYTES;
    int64_t logits = (int64_t)LOSS_ROWS * V * 4;
    line(b, "to bf16, 512 x 768", run_convert, x, x / 2);
    line(b, "dropout to bf16", run_dropout, x, x / 2);
    line_in_place(b, "residual add", run_add, 2 * x, x);
    line(b, "GELU bf16, 512 x 2,048", run_gelu, f, f);
    line(b, "GELU backward", run_gelu_backward, 3 * f, f);
    line(b, "GELU backward, exact form", run_gelu_exact_backward, 3 * f, f);
    line(b, "SwiGLU backward", run_swiglu_backward, 4 * f, 2 * f);
    line_in_place(b, "LayerNorm backward, 512 x 768", run_norm_backward, 3 * x, x);
    line_in_place(b, "RoPE backward, 16 heads", run_rope_backward, qk, qk);
    /* Of its gradient each value has a line of its own. */
    line_in_place(b, "embedding backward, with positions", run_embed_backward, 2 * x + R * C * 64,
         x + R * C * 64);
    line(b, "cross-entropy to bf16, 64 x 50,304", run_loss, logits, logits / 2);
    line(b, "cross-entropy to f32", run_loss_f32, logits, logits);
    line(b, "sum of squares f32, 8.4 M", run_sum_squares, w, 0);
    line(b, "sum of squares bf16", run_sum_squares_bf16, w / 2, 0);
    line(b, "zero", run_zero, 0, w);
}

/* ---- AdamW: the formats that plans combine ---- */

static void adamw(struct rows_bench *b, enum dtype dtype, enum master_format master,
                  enum moment_format moments)
{
    struct adamw_tensor t = {
        .weight = dtype == DTYPE_F32 ? b->a : b->half, .dtype = dtype,
        .n_out = WEIGHTS_OUT, .n_in = WEIGHTS_IN, .packed = true,
        .grad = dtype == DTYPE_F32 ? b->b : b->half, .grad_dtype = dtype,
        .master_format = master, .master = b->e,
        .m_format = moments, .v_format = moments, .m = b->f, .v = b->g,
        .weight_decay = 0.1f,
    };
    struct adamw_step s = {1e-4f, 0.9f, 0.99f, 1e-8f, 10, 1};
    b->d->train->adamw(b->d, &t, &(bool){false}, 1, &s);
}

static void run_adamw_f32(struct rows_bench *b) { adamw(b, DTYPE_F32, MASTER_NONE, MOMENT_F32); }
static void run_adamw_master(struct rows_bench *b) { adamw(b, DTYPE_BF16, MASTER_F32, MOMENT_F32); }
static void run_adamw_rest(struct rows_bench *b)
{
    adamw(b, DTYPE_BF16, MASTER_REMAINDER, MOMENT_F32);
}
static void run_adamw_bf16(struct rows_bench *b)
{
    adamw(b, DTYPE_BF16, MASTER_REMAINDER, MOMENT_BF16);
}
static void run_adamw_q8(struct rows_bench *b)
{
    adamw(b, DTYPE_BF16, MASTER_REMAINDER, MOMENT_Q8);
}

static void bench_adamw(struct rows_bench *b)
{
    int64_t n = WEIGHTS_OUT * WEIGHTS_IN, q8 = n + n / ADAMW_BLOCK * 4;
    memset(b->g, 0, BUFFER_BYTES); /* second moments are no less than zero */
    line_in_place(b, "AdamW f32, 8.4 M weights", run_adamw_f32, 16 * n, 12 * n);
    line_in_place(b, "AdamW bf16, f32 masters and moments", run_adamw_master, 14 * n, 14 * n);
    line_in_place(b, "AdamW bf16, remainders, f32 moments", run_adamw_rest, 14 * n, 12 * n);
    memset(b->f, 0, BUFFER_BYTES);
    memset(b->g, 0, BUFFER_BYTES);
    line_in_place(b, "AdamW bf16, remainders, bf16 moments", run_adamw_bf16, 10 * n, 8 * n);
    memset(b->f, 0, BUFFER_BYTES);
    memset(b->g, 0, BUFFER_BYTES);
    line_in_place(b, "AdamW bf16, remainders, 8-bit moments", run_adamw_q8, 6 * n + 2 * q8,
                  4 * n + 2 * q8);
}

/* ---- all ---- */

/* Logits whose probabilities fall off as words' do: the i-th likeliest has about 1/i of the
 * first's. */
static void fill_logits(float *x, int64_t n)
{
    bench_fill(DTYPE_F32, x, n * 4);
    for (int64_t i = 0; i < n; i++) x[i] = -logf(x[i] + 0.5f + 1e-5f);
}

static void make_batch(struct rows_bench *b)
{
    static int32_t tokens[R], positions[R], slots[R];
    static struct span span = {0, R, 0, 0};
    static int32_t pages[R / KV_PAGE_TOKENS];
    for (int i = 0; i < R; i++) {
        tokens[i] = (int)((unsigned)i * 2654435761u % (V / 2));
        positions[i] = i;
        slots[i] = i;
    }
    for (int i = 0; i < R / KV_PAGE_TOKENS; i++) pages[i] = i;
    b->batch = (struct batch){.n_rows = R, .n_spans = 1, .max_keys = R, .tokens = tokens,
                              .positions = positions, .slots = slots, .spans = &span,
                              .pages = pages};
    float *rope = bench_take(b->d, POSITIONS * K * 4);
    for (int p = 0; p < POSITIONS; p++)
        for (int i = 0; i < K / 2; i++) {
            rope[p * K + 2 * i] = cosf((float)p / (float)(i + 1));
            rope[p * K + 2 * i + 1] = sinf((float)p / (float)(i + 1));
        }
    b->attention = (struct attention){.n_head = H, .n_kv_head = G, .head_dim = K, .scale = 0.125f,
                                      .rope = rope};
    b->kv = (struct kv_cache){NULL, DTYPE_BF16, 1, R / KV_PAGE_TOKENS, G, K};
    b->kv.data = bench_take(b->d, b->kv.n_pages * b->d->ops->kv_page_bytes(b->d, DTYPE_F32, G, K));
}

void bench_rows(struct cpu_device *c)
{
    static struct rows_bench b;
    struct device *d = &c->base;
    b.c = c;
    b.d = d;
    void **operands[] = {&b.a, &b.b, &b.e, &b.f, &b.g};
    for (size_t i = 0; i < sizeof operands / sizeof *operands; i++) {
        *operands[i] = bench_take(d, BUFFER_BYTES);
        bench_fill(DTYPE_F32, *operands[i], BUFFER_BYTES);
    }
    b.half = bench_take(d, BUFFER_BYTES);
    bench_fill(DTYPE_BF16, b.half, BUFFER_BYTES);
    b.logits = bench_take(d, (int64_t)LOSS_ROWS * V * 4);
    fill_logits(b.logits, (int64_t)LOSS_ROWS * V);
    b.vector = bench_take(d, F * 4);
    bench_fill(DTYPE_F32, b.vector, F * 4);
    int64_t bytes = d->ops->matrix_bytes(d, DTYPE_BF16, V, C);
    b.wte = (struct matrix){.data = bench_take(d, bytes), .dtype = DTYPE_BF16, .n_out = V,
                            .n_in = C};
    bench_fill(DTYPE_BF16, b.wte.data, bytes);
    b.from = bench_take(d, PLAIN_BYTES);
    b.to = bench_take(d, PLAIN_BYTES);
    bench_fill(DTYPE_F32, b.from, PLAIN_BYTES);
    make_batch(&b);
    printf("%-44s %8s %9s %8s %8s %8s\n", "", "MB", "us", "GB/s", "plain", "share");
    bench_serving(&b);
    bench_training(&b);
    bench_adamw(&b);
}

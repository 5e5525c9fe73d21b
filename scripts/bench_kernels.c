/* How near the CPU's kernels come to what the machine can do: reading memory for one row,
 * multiplying for many, attention at several contexts, and everything else (bench_rows.c). Prints
 * tables; not a test. Build and run:
 *
 *     make build/bench_kernels
 *     build/bench_kernels [--threads N] [--isa reference|avx2|avx512|...]
 *                         [products|quantized|attention|rows]...
 *
 * Products and attention take SmolLM2-135M's shapes: C 576, F 1536, H 9, G 3, K 64, V 49152,
 * 30 layers. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/checked.h"
#include "base/clock.h"
#include "scripts/bench_kernels.h"

enum {
    C = 576, F = 1536, H = 9, G = 3, K = 64, V = 49152, L = 30, MAX_ROWS = 512, MAX_KEYS = 2048,
};

void *bench_take(struct device *d, int64_t bytes)
{
    struct error err;
    void *p = d->ops->alloc(d, (size_t)bytes, &err);
    if (p) return p;
    fprintf(stderr, "%s\n", err.text);
    exit(1);
}

static void fill_bf16(void *p, int64_t n)
{
    uint16_t *x = p;
    uint32_t s = 1;
    for (int64_t i = 0; i < n; i++)
        x[i] = f32_to_bf16((float)((s = s * 1664525 + 1) >> 8) * 0x1p-24f - 0.5f);
}

static void fill_f32(void *p, int64_t n)
{
    float *x = p;
    uint32_t s = 1;
    for (int64_t i = 0; i < n; i++) x[i] = (float)((s = s * 1664525 + 1) >> 8) * 0x1p-24f - 0.5f;
}

void bench_fill(enum dtype dtype, void *p, int64_t bytes)
{
    if (dtype == DTYPE_F32)
        fill_f32(p, bytes / 4);
    else
        fill_bf16(p, bytes / 2);
}

int64_t bench_ns(const struct cpu_device *c)
{
    struct timespec t;
    if (pool_n_threads(c->pool) > 1) return clock_ns();
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec * 1000000000 + t.tv_nsec;
}

/* The machine: reading memory with every thread. */
enum { STREAM_MIB = 512, PIECE_MIB = 4, CHUNK_BYTES = 1 << 16, MAX_THREADS = 1024 };

struct stream {
    const uint8_t *p;
    int64_t bytes;
    uint64_t sums[MAX_THREADS];
};

/* In the order of the lines and without calls of its own:
 * the processor's prefetching does best by itself. */
static void read_chunks(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    struct stream *s = ctx;
    const uint64_t *p = (const uint64_t *)(s->p + begin * CHUNK_BYTES);
    const uint64_t *stop = (const uint64_t *)(s->p +
                                              min_i64(end * CHUNK_BYTES, s->bytes / 256 * 256));
    uint64_t a = 0, b = 0, c = 0, e = 0;
    for (; p < stop; p += 32)
        for (int i = 0; i < 32; i += 4) a += p[i], b += p[i + 1], c += p[i + 2], e += p[i + 3];
    s->sums[thread] += a + b + c + e;
}

uint64_t bench_read(struct cpu_device *c, const void *p, int64_t bytes)
{
    struct stream s = {.p = p, .bytes = bytes};
    pool_for(c->pool, ceil_div(bytes, CHUNK_BYTES), 1, read_chunks, &s);
    for (int32_t i = 1; i < MAX_THREADS; i++) s.sums[0] += s.sums[i];
    return s.sums[0];
}

static void bench_stream(struct cpu_device *c)
{
    uint8_t *p = bench_take(&c->base, (int64_t)STREAM_MIB << 20);
    int64_t best = INT64_MAX;
    uint64_t sum = 0;
    fill_bf16(p, (int64_t)STREAM_MIB << 19);
    for (int i = 0; i < 8 * STREAM_MIB / PIECE_MIB; i++) {
        int64_t t = bench_ns(c);
        sum += bench_read(c, p + (int64_t)i * PIECE_MIB % STREAM_MIB * (1 << 20), PIECE_MIB << 20);
        best = min_i64(best, bench_ns(c) - t);
    }
    printf("read bandwidth, %d threads: %.1f GB/s (%d)\n", pool_n_threads(c->pool),
           (double)(PIECE_MIB << 20) / (double)best, (int)(sum & 1));
    c->base.ops->free(&c->base, p, (size_t)STREAM_MIB << 20);
}

static struct matrix make_matrix(struct device *d, enum dtype dtype, int64_t n_out, int64_t n_in)
{
    int64_t bytes = d->ops->matrix_bytes(d, dtype, n_out, n_in);
    struct matrix w = {.data = bench_take(d, bytes), .dtype = dtype, .n_out = n_out, .n_in = n_in};
    bench_fill(dtype, w.data, bytes);
    return w;
}

enum { QKV, OUT, UP, DOWN, N_KINDS };

static int64_t time_product(struct device *d, const struct matrix *w, void *x, float *y, int64_t r,
                            enum epilogue epilogue)
{
    int64_t t = bench_ns(cpu_of(d));
    d->ops->matmul(d, (struct tensor){y, DTYPE_F32, r, w->n_out},
                   (struct tensor){x, w->dtype, r, w->n_in}, w, NULL, epilogue);
    return bench_ns(cpu_of(d)) - t;
}

/* All products of a forward pass, in the order of decoding or of a prompt, so that weights come
 * from memory. The machine may be shared: what is summed is each kind of product's best time. */
static void bench_matmul(struct cpu_device *c, enum dtype dtype)
{
    struct device *d = &c->base;
    static const int n_out[N_KINDS] = {(H + 2 * G) * K, C, 2 * F, C}, n_in[N_KINDS] = {C, C, C, F};
    static struct matrix layers[L][N_KINDS];
    double products = 0;
    for (int i = 0; i < L * N_KINDS; i++) {
        layers[i / N_KINDS][i % N_KINDS] = make_matrix(d, dtype, n_out[i % N_KINDS],
                                                       n_in[i % N_KINDS]);
        products += (double)n_out[i % N_KINDS] * n_in[i % N_KINDS];
    }
    struct matrix head = make_matrix(d, dtype, V, C);
    double bytes = products * (double)element_bytes(dtype);
    void *x = bench_take(d, MAX_ROWS * F * 4);
    float *y = bench_take(d, MAX_ROWS * 2 * F * 4), *logits = bench_take(d, 64 * (int64_t)V * 4);
    bench_fill(dtype, x, MAX_ROWS * F * 4);
    static const int rows[] = {1, 2, 4, 8, 16, 32, 64, 128, 512};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        int64_t r = rows[i], best[N_KINDS] = {INT64_MAX, INT64_MAX, INT64_MAX, INT64_MAX};
        int64_t best_head = INT64_MAX;
        for (int round = 0; round < (r > 32 ? 2 : 8); round++) {
            for (int l = 0; l < L * N_KINDS; l++)
                best[l % N_KINDS] = min_i64(best[l % N_KINDS],
                                            time_product(d, &layers[l / N_KINDS][l % N_KINDS], x, y,
                                                         r, l % 2 ? EPILOGUE_ADD : EPILOGUE_NONE));
            if (r <= 64)
                best_head = min_i64(best_head, time_product(d, &head, x, logits, r, EPILOGUE_NONE));
        }
        double sum = (double)L * (double)(best[QKV] + best[OUT] + best[UP] + best[DOWN]);
        printf("%-4s %4d rows: qkv %8.1f us out %8.1f up %8.1f down %8.1f; layers %7.2f ms %5.1f "
               "GB/s %6.1f GFLOP/s",
               dtype ? "bf16" : "f32", (int)r, (double)best[0] * 1e-3, (double)best[1] * 1e-3,
               (double)best[2] * 1e-3, (double)best[3] * 1e-3, sum * 1e-6, bytes / sum,
               2 * products * (double)r / sum);
        if (r <= 64)
            printf("; head %6.2f ms %5.1f GB/s", (double)best_head * 1e-6,
                   (double)V * C * (double)element_bytes(dtype) / (double)best_head);
        printf("\n");
    }
}

static void bench_attention(struct cpu_device *c, enum dtype dtype)
{
    struct device *d = &c->base;
    int32_t n_pages = MAX_KEYS / KV_PAGE_TOKENS;
    struct kv_cache kv = {NULL, dtype, 1, n_pages, G, K};
    int64_t bytes = n_pages * d->ops->kv_page_bytes(d, dtype, G, K);
    kv.data = bench_take(d, bytes);
    bench_fill(dtype, kv.data, bytes);
    struct attention a = {.n_head = H, .n_kv_head = G, .head_dim = K, .scale = 0.125f};
    float *qkv = bench_take(d, MAX_ROWS * (H + 2 * G) * K * 4);
    float *out = bench_take(d, MAX_ROWS * H * K * 4);
    fill_f32(qkv, MAX_ROWS * (H + 2 * G) * K);
    int32_t pages[MAX_KEYS / KV_PAGE_TOKENS];
    for (int32_t i = 0; i < n_pages; i++) pages[i] = (i * 37 + 5) % n_pages;
    static const struct { int rows, start; } cases[] = {{1, 100}, {1, 500}, {1, 2000}, {512, 0},
                                                        {512, 1500}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int r = cases[i].rows, start = cases[i].start;
        struct span span = {0, r, start, 0};
        struct batch b = {.n_rows = r, .n_spans = 1, .spans = &span, .pages = pages};
        int64_t best = INT64_MAX;
        for (int round = 0; round < 20; round++) {
            int64_t t = bench_ns(c);
            d->ops->attention(d, (struct tensor){out, dtype, r, H * K},
                              (struct tensor){qkv, DTYPE_F32, r, (H + 2 * G) * K}, &b, &a, &kv, 0);
            best = min_i64(best, bench_ns(c) - t);
        }
        double keys = (double)r * start + 0.5 * r * (r + 1);
        printf("%-4s attention %3d rows after %4d keys: %8.1f us %6.1f GFLOP/s\n",
               dtype ? "bf16" : "f32", r, start, (double)best * 1e-3,
               4 * keys * H * K / (double)best);
    }
}

static bool is_wanted(char **parts, const char *part)
{
    for (char **p = parts; *p; p++)
        if (!strcmp(*p, part)) return true;
    return !*parts;
}

static bool are_benches(char **names)
{
    static const char *const known[] = {"products", "quantized", "attention", "rows"};
    for (; *names; names++) {
        size_t i = 0;
        while (i < 4 && strcmp(*names, known[i]) != 0) i++;
        if (i == 4) return false;
    }
    return true;
}

int main(int argc, char **argv)
{
    struct cpu_options o = {.isa = CPU_ISA_BEST};
    struct device *d;
    struct error err;
    bool ok = true;
    for (argv++; ok && *argv && !strncmp(*argv, "--", 2); argv += 2) {
        if (!strcmp(*argv, "--threads") && argv[1]) o.n_threads = atoi(argv[1]);
        else ok = !strcmp(*argv, "--isa") && argv[1] && cpu_isa_parse(argv[1], &o.isa);
        if (!argv[1]) break;
    }
    ok = ok && are_benches(argv);
    if (!ok || !cpu_device_open(&o, &d, &err)) {
        fprintf(stderr,
                "%s\nusage: bench_kernels [--threads N] [--isa ISA] "
                "[products|quantized|attention|rows]...\n",
                ok ? err.text : "no such option, instruction set or bench");
        return 2;
    }
    struct workspace_shape shape = {DTYPE_F32, MAX_ROWS, 64, C, F, H, G, K, V, MAX_KEYS, DTYPE_F32};
    int64_t bytes = d->train->workspace_bytes(d, &shape);
    d->ops->set_workspace(d, bench_take(d, bytes), bytes);
    printf("%s\n", d->ops->description(d));
    bench_stream(cpu_of(d));
    for (enum dtype dtype = DTYPE_F32; dtype <= DTYPE_BF16; dtype++) {
        if (is_wanted(argv, "products")) bench_matmul(cpu_of(d), dtype);
        if (is_wanted(argv, "attention")) bench_attention(cpu_of(d), dtype);
    }
    if (is_wanted(argv, "quantized")) bench_quantized(cpu_of(d));
    if (is_wanted(argv, "rows")) bench_rows(cpu_of(d));
    d->ops->close(d);
    return 0;
}

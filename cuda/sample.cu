/* From a row of logits to a token: model/sampler.h says what, this says how, without sorting a vocabulary.
 *
 * Candidates have a total order: value downwards, then id upwards. A set of the best ends at a cut, a value and an
 * id, found by bisection: 32 steps over the bits of the value, then as few over the ids as ties need, each a count (top_k)
 * or a sum of probabilities (top_p) over the row, which stays in the second-level cache. Few logits are changed by
 * penalties, bias and bans: they are changed in place and put back, so that log-probabilities and ranks
 * see the raw ones.
 *
 * Grid: a block a row, 32 rows a launch. Bytes: 4 V, some fifty times from cache; greedy: five times. To the device go
 * only the lists of rows that have penalties, bias or bans; back come the answers of all rows at once. CPU twin:
 * cpu_sample; draws may differ where rounding decides. */
#include "cuda/cuda_internal.h"
#include "cuda/logits.cuh"
#include "cuda/philox.cuh"

struct bias_pair { int32_t id; float bias; };

/* A row's request as the device sees it: offsets count int32_t words in `words`. */
struct row_request {
    float temperature, top_p, min_p, repetition, presence, frequency;
    int32_t top_k, n_prompt, n_history, choice, forced, n_top;
    int32_t history, bias, n_bias, stops, n_stops; /* offsets; n_history and n_stops 0: unused */
    uint32_t uniform;                              /* 24 bits */
    int32_t saved;                                 /* offset of room for what is changed */
    int32_t n_changes;                             /* how many entries that room has */
};

/* ---- sums of the whole row ---- */

/* Requests travel as the kernel's arguments, which have 4 KiB: no copy, and so none that would wait for the step. */
static constexpr int SAMPLE_ROWS = 32;
struct request_table { row_request at[SAMPLE_ROWS]; };
static_assert(sizeof(request_table) <= 4096 - 64);

struct cut { float value; int32_t id; }; /* kept: value above, or equal and id at most */

__device__ __forceinline__ bool keeps(cut c, float x, int32_t id)
{
    return x > c.value || (x == c.value && id <= c.id);
}

/* Floats in order as unsigned numbers in order. */
__device__ __forceinline__ uint32_t ordered(float x)
{
    uint32_t u = __float_as_uint(x);
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}

__device__ __forceinline__ float from_ordered(uint32_t u)
{
    return __uint_as_float(u & 0x80000000u ? u & 0x7FFFFFFFu : ~u);
}

struct row_view {
    float *x;
    int32_t n;
    float highest, scale; /* probability, times a constant: exp((x - highest) scale) */
    float *room;
};

__device__ __forceinline__ float weight(const row_view &r, float x)
{
    return expf((clean_logit(x) - r.highest) * r.scale);
}

/* The weight (or, with `counting`, number) of what c keeps, of those that `within` keeps. */
__device__ float mass(const row_view &r, cut c, cut within, bool counting)
{
    float sum = 0;
    for (int32_t i = threadIdx.x; i < r.n; i += LOGITS_THREADS) {
        float x = clean_logit(r.x[i]);
        if (keeps(c, x, i) && keeps(within, x, i)) sum += counting ? 1 : weight(r, x);
    }
    return block_sum(sum, r.room);
}

/* The least set of the best within `within` whose mass reaches `target`. */
__device__ cut find_cut(const row_view &r, cut within, float target, bool counting)
{
    uint32_t low = ordered(-CUDART_INF_F), high = ordered(CUDART_MAX_NORMAL_F); /* low: reaches */
    while (low < high) {
        uint32_t middle = low + (high - low + 1) / 2;
        if (mass(r, {from_ordered(middle), INT32_MAX}, within, counting) >= target) low = middle;
        else high = middle - 1;
    }
    float value = from_ordered(low);
    int32_t first = 0, last = r.n - 1; /* the least id that reaches */
    while (first < last) {
        int32_t middle = first + (last - first) / 2;
        if (mass(r, {value, middle}, within, counting) >= target) last = middle;
        else first = middle + 1;
    }
    return {value, first};
}

/* The best candidate after `before` in the order: its id, and its value to *value. -1: none. */
__device__ int32_t best_after(const row_view &r, float before_value, int32_t before_id, bool any,
                              float *value)
{
    __shared__ float values[LOGITS_THREADS];
    __shared__ int32_t ids[LOGITS_THREADS];
    float best = -CUDART_INF_F;
    int32_t id = -1;
    for (int32_t i = threadIdx.x; i < r.n; i += LOGITS_THREADS) {
        float x = clean_logit(r.x[i]);
        bool later = any || x < before_value || (x == before_value && i > before_id);
        if (later && (id < 0 || x > best)) {
            best = x;
            id = i;
        }
    }
    __syncthreads();
    values[threadIdx.x] = best;
    ids[threadIdx.x] = id;
    __syncthreads();
    for (int half = LOGITS_THREADS / 2; half > 0; half /= 2) {
        if ((int)threadIdx.x < half) {
            int o = threadIdx.x + half, a = ids[threadIdx.x], b = ids[o];
            float va = values[threadIdx.x], vb = values[o];
            if (b >= 0 && (a < 0 || vb > va || (vb == va && b < a))) {
                values[threadIdx.x] = vb;
                ids[threadIdx.x] = b;
            }
        }
        __syncthreads();
    }
    *value = values[0];
    return ids[0];
}

/* ---- changes ---- */

/* Logits that are changed, in the order of the contract. Each id is changed by one thread: that of its first
 * entry in a list. What was there goes to `saved`, list by list. */
__device__ void change(float *x, int32_t n, const row_request &q, const int32_t *words, float *saved)
{
    const int32_t *history = words + q.history;
    for (int32_t i = threadIdx.x; i < q.n_history; i += LOGITS_THREADS) {
        int32_t id = history[i], count = 0;
        bool first = true;
        for (int32_t j = 0; j < q.n_history; j++) {
            if (history[j] != id) continue;
            if (j < i) first = false;
            if (j >= q.n_prompt) count++;
        }
        if (!first) continue;
        saved[i] = x[id];
        float y = x[id] > 0 ? x[id] / q.repetition : x[id] * q.repetition;
        if (count > 0) y -= q.presence + (float)count * q.frequency;
        x[id] = y;
    }
    __syncthreads();
    const bias_pair *bias = (const bias_pair *)(words + q.bias);
    for (int32_t i = threadIdx.x; i < q.n_bias; i += LOGITS_THREADS) {
        saved[q.n_history + i] = x[bias[i].id];
        x[bias[i].id] += bias[i].bias;
    }
    __syncthreads();
    const int32_t *stops = words + q.stops;
    for (int32_t i = threadIdx.x; i < q.n_stops; i += LOGITS_THREADS) {
        bool first = stops[i] >= 0 && stops[i] < n;
        for (int32_t j = 0; j < i; j++) first &= stops[j] != stops[i];
        if (!first) continue;
        saved[q.n_history + q.n_bias + i] = x[stops[i]];
        x[stops[i]] = -CUDART_INF_F;
    }
    __syncthreads();
}

/* Puts back what change() took, last list first. */
__device__ void put_back(float *x, int32_t n, const row_request &q, const int32_t *words,
                         const float *saved)
{
    const int32_t *history = words + q.history, *stops = words + q.stops;
    const bias_pair *bias = (const bias_pair *)(words + q.bias);
    __syncthreads();
    for (int32_t i = threadIdx.x; i < q.n_stops; i += LOGITS_THREADS) {
        bool first = stops[i] >= 0 && stops[i] < n;
        for (int32_t j = 0; j < i; j++) first &= stops[j] != stops[i];
        if (first) x[stops[i]] = saved[q.n_history + q.n_bias + i];
    }
    __syncthreads();
    for (int32_t i = threadIdx.x; i < q.n_bias; i += LOGITS_THREADS)
        x[bias[i].id] = saved[q.n_history + i];
    __syncthreads();
    for (int32_t i = threadIdx.x; i < q.n_history; i += LOGITS_THREADS) {
        bool first = true;
        for (int32_t j = 0; j < i; j++) first &= history[j] != history[i];
        if (first) x[history[i]] = saved[i];
    }
    __syncthreads();
}

/* ---- the draw ---- */

/* Ids upwards, the first whose cumulative weight exceeds u times the whole. Each thread sums a run of ids. */
__device__ int32_t draw(const row_view &r, cut kept, float min_weight, float u)
{
    __shared__ float sums[LOGITS_THREADS];
    __shared__ int32_t drawn;
    int32_t run = (r.n + LOGITS_THREADS - 1) / LOGITS_THREADS;
    int32_t first = min((int32_t)threadIdx.x * run, r.n), last = min(first + run, r.n);
    float sum = 0;
    for (int32_t i = first; i < last; i++) {
        float x = clean_logit(r.x[i]), w = keeps(kept, x, i) ? weight(r, x) : 0;
        if (w >= min_weight) sum += w;
    }
    __syncthreads();
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        double total = 0, before = 0;
        for (int i = 0; i < LOGITS_THREADS; i++) total += sums[i];
        double wanted = u * total;
        int at = 0, last_with = 0;
        for (; at < LOGITS_THREADS; at++) {
            if (sums[at] > 0) last_with = at;
            if (before + sums[at] > wanted) break;
            before += sums[at];
        }
        if (at == LOGITS_THREADS) { /* rounding left it short: the last that counts */
            at = last_with;
            before -= sums[at];
        }
        drawn = -1;
        int32_t end = min((at + 1) * run, r.n);
        for (int32_t i = at * run; i < end; i++) {
            float x = clean_logit(r.x[i]), w = keeps(kept, x, i) ? weight(r, x) : 0;
            if (w < min_weight || w == 0) continue;
            drawn = i;
            before += w;
            if (before > wanted) break;
        }
    }
    __syncthreads();
    return drawn;
}

__device__ int32_t choose(row_view r, const row_request &q)
{
    float best;
    int32_t id = best_after(r, 0, 0, true, &best);
    if (q.temperature == 0 || best == -CUDART_INF_F) return best == -CUDART_INF_F ? 0 : id;
    cut all = {-CUDART_INF_F, INT32_MAX}, kept = all;
    r.highest = best;
    r.scale = fminf(1 / q.temperature, CUDART_MAX_NORMAL_F);
    if (q.top_k > 0 && q.top_k < r.n) kept = find_cut(r, all, (float)q.top_k, true);
    float total = mass(r, kept, all, false);
    if (q.top_p < 1) {
        /* What min_p drops is dropped from the set that top_p takes, not from the sum that it is a share of. */
        cut probable = find_cut(r, kept, q.top_p * total, false);
        if (keeps(kept, probable.value, probable.id)) kept = probable;
    }
    int32_t drawn = draw(r, kept, q.min_p, (float)q.uniform * 0x1p-24f);
    return drawn < 0 ? id : drawn;
}

/* ---- the row ---- */

__global__ void __launch_bounds__(LOGITS_THREADS)
sample_kernel(sample_out *out, float *logits, const request_table requests, int32_t *words, int32_t n)
{
    __shared__ float room[WARP];
    row_request q = requests.at[blockIdx.x];
    row_view r = {logits + (int64_t)blockIdx.x * n, n, 0, 0, room};
    sample_out *o = &out[blockIdx.x];
    logsumexp z = row_logsumexp(r.x, n, room);
    int32_t id = q.forced;
    if (id < 0) {
        if (q.n_changes > 0) change(r.x, n, q, words, (float *)(words + q.saved));
        id = choose(r, q);
        if (q.n_changes > 0) put_back(r.x, n, q, words, (const float *)(words + q.saved));
    }
    float value = clean_logit(r.x[id]);
    if (threadIdx.x == 0) {
        o->id = id;
        o->logprob = logprob_of(z, value);
        o->rank = 0;
    }
    int32_t n_top = 0;
    if (q.n_top > 0) {
        float rank = mass(r, {value, id}, {-CUDART_INF_F, INT32_MAX}, true);
        if (threadIdx.x == 0) o->rank = (int32_t)rank;
    }
    float v = 0;
    for (int32_t last = 0; n_top < q.n_top; n_top++) {
        float before = v;
        last = best_after(r, before, last, n_top == 0, &v);
        if (v == -CUDART_INF_F) break; /* nothing that could be drawn is left */
        if (threadIdx.x == 0) o->top[n_top] = {last, logprob_of(z, v)};
    }
    if (threadIdx.x == 0) o->n_top = n_top;
    /* Every byte of the answer is written, so that it is the same in every run. */
    for (int32_t i = n_top + threadIdx.x; i < SAMPLE_MAX_TOP; i += LOGITS_THREADS) o->top[i] = {0, 0};
}

/* ---- the host's part ---- */

/* Places int32_t words of one row in the workspace. */
struct words_of_rows {
    struct cuda_device *device;
    int32_t *base;
    int64_t used, room;
};

static int32_t place(struct words_of_rows *w, const void *from, int64_t words)
{
    int64_t at = w->used;
    ASSERT(words >= 0 && at + words <= w->room);
    w->used += words;
    if (from) w->device->base.ops->upload(&w->device->base, w->base + at, from, (size_t)words * 4);
    return (int32_t)at;
}

static row_request request_of(const struct sample_row *row, int32_t vocab_size, struct words_of_rows *w)
{
    const struct sample_params *p = row->params;
    row_request q = {.forced = row->forced, .n_top = (int32_t)min_i64(row->n_top, vocab_size)};
    if (row->forced >= 0) return q;
    bool penalties = p->repetition_penalty != 1 || p->presence_penalty != 0 || p->frequency_penalty != 0;
    q.temperature = p->temperature;
    q.top_p = p->top_p;
    q.min_p = p->min_p;
    q.repetition = p->repetition_penalty;
    q.presence = p->presence_penalty;
    q.frequency = p->frequency_penalty;
    q.top_k = p->top_k;
    q.n_prompt = row->n_prompt;
    q.choice = row->choice;
    q.uniform = (uint32_t)(sample_uniform(p->seed, row->choice, row->n_history) * 0x1p24f);
    q.n_history = penalties ? row->n_history : 0;
    q.n_bias = p->n_bias;
    q.n_stops = row->ban_stops ? row->n_stop_ids : 0;
    q.n_changes = q.n_history + q.n_bias + q.n_stops;
    q.history = place(w, row->history, q.n_history);
    q.bias = place(w, p->bias, 2 * (int64_t)q.n_bias);
    q.stops = place(w, row->stop_ids, q.n_stops);
    q.saved = place(w, NULL, q.n_changes);
    return q;
}

void cuda_sample(struct device *d, struct tensor logits, const struct sample_row *rows,
                 struct sample_out *out)
{
    struct cuda_device *c = cuda_of(d);
    ASSERT(logits.dtype == DTYPE_F32 && sizeof(struct bias_pair) == sizeof(struct token_bias));
    int64_t n = logits.rows, outs = round_up(n * (int64_t)sizeof *out, 16);
    sample_out *to = (sample_out *)cuda_workspace(c, 0, outs);
    struct words_of_rows words = {c, (int32_t *)cuda_workspace(c, outs, 0), 0,
                                  (c->workspace_bytes - outs) / 4};
    for (int64_t first = 0; first < n; first += SAMPLE_ROWS) {
        int64_t some = min_i64(SAMPLE_ROWS, n - first);
        request_table requests = {};
        for (int64_t i = 0; i < some; i++)
            requests.at[i] = request_of(&rows[first + i], (int32_t)logits.cols, &words);
        cuda_launch(c, "sample", sample_kernel, dim3((unsigned)some), dim3(LOGITS_THREADS), 0, to + first,
                    (float *)logits.data + first * logits.cols, requests, words.base, (int32_t)logits.cols);
    }
    d->ops->download(d, out, to, (size_t)n * sizeof *out);
}

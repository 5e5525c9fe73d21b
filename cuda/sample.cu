/* From a row of logits to a token: model/sampler.h says what, this says how, without sorting a vocabulary.
 *
 * Few logits are changed by penalties, bias and bans: they are changed in place and put back, so that
 * log-probabilities and ranks see the raw ones. Cuts and draws: candidates.cuh.
 *
 * Grid: a block a row, 32 rows a launch. Readings of the row, 4 V bytes each: greedy one, a plain draw two, top_k and
 * top_p three together as long as what can be drawn is among the best thousand; one more for changes, three for
 * alternatives and a rank. Bound by a multiprocessor's bandwidth to the second-level cache, some 60 bytes a clock: expected,
 * not measured, 2 us a reading of 50,304 logits and 6 us of 151,936, whatever the number of rows up to that of
 * multiprocessors. To the device go only the lists of rows that have penalties, bias or bans; back come the answers of all
 * rows at once. CPU twin: cpu_sample; draws may differ where rounding decides. */
#include "cuda/candidates.cuh"
#include "cuda/cuda_internal.h"

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

/* Requests travel as the kernel's arguments, which have 4 KiB: no copy, and so none that would wait for the step. */
static constexpr int SAMPLE_ROWS = 32;
struct request_table { row_request at[SAMPLE_ROWS]; };
static_assert(sizeof(request_table) <= 4096 - 64);

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

/* ---- the row ---- */

/* Over all threads. */
__device__ __forceinline__ int32_t lowest_id(int32_t id, float *room)
{
    /* Ids are exact in f32: CONFIG_MAX_VOCAB is less than 2^24. */
    return (int32_t)-block_max(id == INT32_MAX ? -CUDART_INF_F : -(float)id, room);
}

/* 1 + how many are before it in the order. One reading. */
__device__ __forceinline__ int32_t rank_of(const float *x, int32_t n, float value, int32_t id, uint64_t *sums)
{
    uint64_t before = 0;
    each_logit(x, 0, n, threadIdx.x, LOGITS_THREADS,
               [&](float other, int32_t i) { before += other > value || (other == value && i < id); });
    return (int32_t)(1 + warps_sums(before, sums));
}

/* The n_top best of the row and the rank of `id` in it. Three readings. */
__device__ __forceinline__ void report(sample_out *o, candidates c, logsumexp z, int32_t id, int32_t n_top,
                                       float hint)
{
    int32_t rank = rank_of(c.x, c.n, clean_logit(c.x[id]), id, c.room->sums);
    uint64_t *list = c.room->list;
    if (threadIdx.x == 0) o->rank = rank;
    if (c.highest > -CUDART_INF_F) {
        cut_down(c, n_top, 0, hint);
        if (!c.gathered) gather(c);
        __syncthreads(); /* whoever looked for the cut has read the list */
        /* Best first; ties by lower id. */
        for (int32_t i = threadIdx.x; i < c.n; i += LOGITS_THREADS) list[i] = ~list[i] << 32 | list[i] >> 32;
        sort_list(list, c.n);
    } else {
        c.n = 0;
    }
    n_top = min(n_top, c.n);
    if (threadIdx.x == 0) o->n_top = n_top;
    for (int32_t i = threadIdx.x; i < n_top; i += LOGITS_THREADS)
        o->top[i] = {(int32_t)(uint32_t)list[i], logprob_of(z, from_ordered(~(uint32_t)(list[i] >> 32)))};
}

/* highest > -inf, and best is its id; temperature > 0. */
__device__ __forceinline__ int32_t draw(candidates c, const row_request &q, float hint)
{
    int32_t n_vocab = c.n;
#pragma unroll 1 /* one copy of the code for both */
    for (int by_share = 0; by_share < 2; by_share++) {
        if (by_share ? q.top_p < 1 : q.top_k > 0 && q.top_k < n_vocab)
            cut_down(c, by_share ? 0 : q.top_k, q.top_p, hint);
    }
    /* What min_p drops is dropped from the set that top_p takes, not from the sum that it is a share of. */
    c.least = q.min_p;
    return first_over(c, false, q.uniform, true);
}

__global__ void __launch_bounds__(LOGITS_THREADS)
sample_kernel(sample_out *out, float *logits, const request_table requests, int32_t *words, int32_t n)
{
    __shared__ candidate_room room;
    __shared__ float floats[WARP];
    row_request q = requests.at[blockIdx.x];
    float *x = logits + (int64_t)blockIdx.x * n, *saved = (float *)(words + q.saved);
    sample_out *o = &out[blockIdx.x];
    /* Twice where logits are changed: log-probabilities are those of the raw ones. */
    logsumexp z;
    logits_seen seen;
    float highest, raw_hint = 0, hint;
    bool changed = false;
    for (;; changed = true) {
        seen = read_row(x, n);
        highest = block_max(seen.highest, floats);
        /* Each thread has seen one at least as good as this: some five hundred are, and few more than thousands. */
        hint = highest + block_max(-seen.highest, floats);
        if (!changed) z = join_seen(seen, highest, floats), raw_hint = hint;
        if (changed || q.n_changes == 0) break;
        change(x, n, q, words, saved);
    }
    int32_t id = q.forced;
    if (id < 0 && highest == -CUDART_INF_F) {
        id = 0;
    } else if (id < 0 && q.temperature == 0) {
        id = lowest_id(n % 4 == 0 ? seen_id<4>(x, n, seen, highest) : seen_id<1>(x, n, seen, highest), floats);
    } else if (id < 0) {
        float scale = fminf(1 / q.temperature, CUDART_MAX_NORMAL_F);
        id = draw(all_candidates(&room, x, n, highest, scale), q, hint);
    }
    if (changed) put_back(x, n, q, words, saved);
    if (threadIdx.x == 0) {
        o->id = id;
        o->logprob = logprob_of(z, x[id]);
        o->rank = o->n_top = 0;
    }
    /* Every byte of the answer is written, so that it is the same in every run. */
    for (int32_t i = threadIdx.x; i < SAMPLE_MAX_TOP; i += LOGITS_THREADS) o->top[i] = {0, 0};
    __syncthreads();
    if (q.n_top > 0) report(o, all_candidates(&room, x, n, z.shift, 1), z, id, q.n_top, raw_hint);
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

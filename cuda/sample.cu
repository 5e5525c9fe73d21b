/* From a row of logits to a token: model/sampler.h says what, this says how, without sorting a
 * vocabulary.
 *
 * Few logits are changed by penalties, bias and bans: they are changed in place and put back, so
 * that log-probabilities and ranks see the raw ones. Cuts and draws: candidates.cuh.
 *
 * Grid: a block a row. Readings of the row, 4 V bytes each: greedy one, a plain draw two, top_k and
 * top_p three together as long as what can be drawn is among the best thousand; one more for
 * changes, three for alternatives and a rank. Bound by a multiprocessor's bandwidth to the
 * second-level cache, some 60 bytes a clock: expected, not measured, 2 us a reading of 50,304
 * logits and 6 us of 151,936, whatever the number of rows up to that of multiprocessors. CPU twin:
 * cpu_sample; draws may differ where rounding decides. */
#include "cuda/candidates.cuh"
#include "cuda/cuda_internal.h"

/* ---- changes: each id has one, and so each logit one thread ---- */

__device__ __forceinline__ void change(float *x, const sample_request &q, logit_change *changes)
{
    for (int32_t i = threadIdx.x; i < q.n_changes; i += LOGITS_THREADS) {
        logit_change c = changes[i];
        float y = changes[i].raw = x[c.id];
        if (c.n_output >= 0) y = y > 0 ? y / q.repetition_penalty : y * q.repetition_penalty;
        if (c.n_output > 0) y -= q.presence_penalty + (float)c.n_output * q.frequency_penalty;
        x[c.id] = y + c.bias;
    }
    __syncthreads();
}

__device__ __forceinline__ void put_back(float *x, const sample_request &q, const logit_change *changes)
{
    __syncthreads();
    for (int32_t i = threadIdx.x; i < q.n_changes; i += LOGITS_THREADS) x[changes[i].id] = changes[i].raw;
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

/* The n_top best of a row that has a highest logit, and the rank of `id` in it. Three readings. */
__device__ __forceinline__ void report(sample_out *o, candidates c, logsumexp z, int32_t id, int32_t n_top,
                                       float hint)
{
    int32_t rank = rank_of(c.x, c.n, clean_logit(c.x[id]), id, c.room->sums);
    uint64_t *list = c.room->list;
    if (threadIdx.x == 0) o->rank = rank;
    cut_down(c, n_top, 0, hint);
    if (!c.gathered) gather(c);
    __syncthreads(); /* whoever looked for the cut has read the list */
    /* Best first; ties by lower id. */
    for (int32_t i = threadIdx.x; i < c.n; i += LOGITS_THREADS) list[i] = ~list[i] << 32 | list[i] >> 32;
    sort_list(list, c.n);
    n_top = min(n_top, c.n);
    if (threadIdx.x == 0) o->n_top = n_top;
    for (int32_t i = threadIdx.x; i < n_top; i += LOGITS_THREADS)
        o->top[i] = {(int32_t)(uint32_t)list[i], logprob_of(z, from_ordered(~(uint32_t)(list[i] >> 32)))};
}

/* highest > -inf, and best is its id; temperature > 0. */
__device__ __forceinline__ int32_t draw(candidates c, const sample_request &q, float hint)
{
    int32_t n_vocab = c.n;
#pragma unroll 1 /* one copy of the code for both */
    for (int by_share = 0; by_share < 2; by_share++) {
        if (by_share ? q.top_p < 1 : q.top_k > 0 && q.top_k < n_vocab)
            cut_down(c, by_share ? 0 : q.top_k, q.top_p, hint);
    }
    /* What min_p drops is dropped from the set that top_p takes, not from the sum that it is a
     * share of. */
    c.least = q.min_p;
    return first_over(c, false, (uint32_t)(q.uniform * 0x1p24f), true);
}

__global__ void __launch_bounds__(LOGITS_THREADS)
sample_kernel(sample_out *out, float *logits, const sample_request *requests, int32_t *words, int32_t n)
{
    wait_for_previous();
    __shared__ candidate_room room;
    __shared__ float floats[WARP];
    const sample_request q = requests[blockIdx.x];
    logit_change *changes = (logit_change *)(words + q.changes);
    float *x = logits + (int64_t)blockIdx.x * n;
    sample_out *o = &out[blockIdx.x];
    /* Twice where logits are changed: log-probabilities are those of the raw ones. */
    logsumexp z;
    logits_seen seen;
    float highest, raw_hint = 0, hint;
    bool changed = false;
    for (;; changed = true) {
        seen = read_row(x, n);
        highest = block_max(seen.highest, floats);
        /* Each thread has seen one at least as good as this: some five hundred are, and few more
         * than thousands. */
        hint = highest + block_max(-seen.highest, floats);
        if (!changed) z = join_seen(seen, highest, floats), raw_hint = hint;
        if (changed || q.n_changes == 0) break;
        change(x, q, changes);
    }
    /* Infinity has become the largest float. */
    bool usable = z.shift > -CUDART_INF_F && z.shift < CUDART_MAX_NORMAL_F;
    int32_t id = q.forced;
    if (!usable) {
        id = SAMPLE_NO_TOKEN;
    } else if (id < 0 && highest == -CUDART_INF_F) {
        id = 0;
    } else if (id < 0 && q.temperature == 0) {
        id = lowest_id(n % 4 == 0 ? seen_id<4>(x, n, seen, highest) : seen_id<1>(x, n, seen, highest), floats);
    } else if (id < 0) {
        float scale = fminf(1 / q.temperature, CUDART_MAX_NORMAL_F);
        id = draw(all_candidates(&room, x, n, highest, scale), q, hint);
    }
    if (changed) put_back(x, q, changes);
    if (threadIdx.x == 0) {
        o->id = id;
        o->logprob = usable ? logprob_of(z, x[id]) : 0;
        o->rank = o->n_top = 0;
    }
    /* Every byte of the answer is written, so that it is the same in every run. */
    for (int32_t i = threadIdx.x; i < SAMPLE_MAX_TOP; i += LOGITS_THREADS) o->top[i] = {0, 0};
    __syncthreads();
    if (usable && q.n_top > 0) report(o, all_candidates(&room, x, n, z.shift, 1), z, id, q.n_top, raw_hint);
}

void cuda_sample(struct device *d, struct tensor logits, const struct sample_request *requests, int32_t *words,
                 struct sample_out *out)
{
    ASSERT(logits.dtype == DTYPE_F32);
    cuda_launch_early(cuda_of(d), "sample", sample_kernel, dim3((unsigned)logits.rows), dim3(LOGITS_THREADS), 0, out,
                      (float *)logits.data, requests, words, (int32_t)logits.cols);
}

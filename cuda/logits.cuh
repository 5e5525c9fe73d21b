/* Log-probabilities of a row of logits: one function for sampling and for the loss, so that
 * training and serving report the same bits. The order of the sum is fixed by the vocabulary's size
 * and the block's, which is LOGITS_THREADS everywhere. */
#pragma once

#include "cuda/gpu.cuh"

enum { LOGITS_THREADS = 512, LOGITS_RUN = 8 /* loads that a thread has under way */ };

/* A log-probability of minus infinity is reported as this: JSON has no infinities. */
static __device__ constexpr float LOWEST_LOGPROB = -9999.0f;

/* log sum exp of the row is shift + log_sum. */
struct logsumexp { float shift, log_sum, sum; };

/* NaN counts as -inf, +inf as the largest float. */
__device__ __forceinline__ float clean_logit(float x)
{
    return isnan(x) ? -CUDART_INF_F : x == CUDART_INF_F ? CUDART_MAX_NORMAL_F : x;
}

/* What a thread knows of the logits that it has read: their highest, and the first of the loads
 * with which that came; the sum of exp(x - highest), and of x. */
struct logits_seen { float highest, sum, plain; int64_t at; };

template <int EACH>
__device__ __forceinline__ void see_logits(logits_seen &seen, const packed<float, EACH> (&v)[LOGITS_RUN],
                                           int64_t i0, int runs)
{
    float highest = seen.highest;
#pragma unroll
    for (int u = 0; u < LOGITS_RUN; u++)
#pragma unroll
        for (int e = 0; e < EACH; e++)
            if (u < runs) highest = fmaxf(highest, clean_logit(v[u].at[e]));
    if (highest == -CUDART_INF_F) return;
    if (highest > seen.highest) seen.at = i0;
    float sum = seen.sum * expf(seen.highest - highest);
#pragma unroll
    for (int u = 0; u < LOGITS_RUN; u++)
#pragma unroll
        for (int e = 0; e < EACH; e++)
            if (u < runs) {
                sum += expf(clean_logit(v[u].at[e]) - highest);
                seen.plain += v[u].at[e];
            }
    seen.highest = highest, seen.sum = sum;
}

/* n is a number of loads, of EACH logits each. */
template <int EACH> __device__ __forceinline__ logits_seen read_logits(const float *x, int64_t n)
{
    logits_seen seen = {-CUDART_INF_F, 0, 0, 0};
    for (int64_t i0 = threadIdx.x; i0 < n; i0 += LOGITS_RUN * LOGITS_THREADS) {
        packed<float, EACH> v[LOGITS_RUN];
        int runs = (int)min((n - i0 + LOGITS_THREADS - 1) / LOGITS_THREADS, (int64_t)LOGITS_RUN);
#pragma unroll
        for (int u = 0; u < LOGITS_RUN; u++)
            if (u < runs) v[u] = load_packed<float, EACH>(x + (i0 + u * LOGITS_THREADS) * EACH);
        see_logits<EACH>(seen, v, i0, runs);
    }
    return seen;
}

/* A thread's part of one reading of the row by a block of LOGITS_THREADS, 4 n bytes. x is aligned
 * to 16 bytes where n is a multiple of 4. */
__device__ __forceinline__ logits_seen read_row(const float *x, int64_t n)
{
    return n % 4 == 0 ? read_logits<4>(x, n / 4) : read_logits<1>(x, n);
}

/* Of what the threads have seen, and of the highest of all; every thread gets the result. */
__device__ __forceinline__ logsumexp join_seen(const logits_seen &seen, float highest, float *room)
{
    if (highest == -CUDART_INF_F) return {highest, 0, 0};
    float sum = block_sum(seen.sum * expf(seen.highest - highest), room);
    return {highest, logf(sum), sum};
}

/* *plain: the sum of all x. */
__device__ __forceinline__ logsumexp row_logsumexp(const float *x, int64_t n, float *room, float *plain)
{
    logits_seen seen = read_row(x, n);
    float highest = block_max(seen.highest, room);
    *plain = block_sum(seen.plain, room);
    return join_seen(seen, highest, room);
}

/* The lowest id that this thread saw with the row's highest logit, in the loads that it looks at
 * again; INT32_MAX: it saw none. */
template <int EACH>
__device__ __forceinline__ int32_t seen_id(const float *x, int64_t n, const logits_seen &seen, float highest)
{
    int32_t id = INT32_MAX;
    if (seen.highest != highest || highest == -CUDART_INF_F) return id;
    for (int u = 0; u < LOGITS_RUN; u++)
        for (int e = 0; e < EACH; e++) {
            int64_t i = (seen.at + u * LOGITS_THREADS) * EACH + e;
            if (i < n && clean_logit(x[i]) == highest) id = min(id, (int32_t)i);
        }
    return id;
}

__device__ __forceinline__ float logprob_of(logsumexp z, float x)
{
    x = clean_logit(x);
    return x == -CUDART_INF_F ? LOWEST_LOGPROB : x - z.shift - z.log_sum;
}

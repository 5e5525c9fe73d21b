/* Log-probabilities of a row of logits: one function for sampling and for the loss, so that training and
 * serving report the same bits. The order of the sum is fixed by the vocabulary's size and the block's, which
 * is LOGITS_THREADS everywhere. */
#pragma once

#include "cuda/gpu.cuh"

enum { LOGITS_THREADS = 512 };

/* A log-probability of minus infinity is reported as this: JSON has no infinities. */
static __device__ constexpr float LOWEST_LOGPROB = -9999.0f;

/* log sum exp of the row is shift + log_sum. */
struct logsumexp { float shift, log_sum, sum; };

/* NaN counts as -inf, +inf as the largest float. */
__device__ __forceinline__ float clean_logit(float x)
{
    return isnan(x) ? -CUDART_INF_F : x == CUDART_INF_F ? CUDART_MAX_NORMAL_F : x;
}

/* By a block of LOGITS_THREADS; every thread gets the result. */
__device__ __forceinline__ logsumexp row_logsumexp(const float *x, int64_t n, float *room)
{
    float highest = -CUDART_INF_F, sum = 0;
    for (int64_t i = threadIdx.x; i < n; i += LOGITS_THREADS) highest = fmaxf(highest, clean_logit(x[i]));
    highest = block_max(highest, room);
    if (highest == -CUDART_INF_F) return {highest, 0, 0};
    for (int64_t i = threadIdx.x; i < n; i += LOGITS_THREADS) sum += expf(clean_logit(x[i]) - highest);
    sum = block_sum(sum, room);
    return {highest, logf(sum), sum};
}

__device__ __forceinline__ float logprob_of(logsumexp z, float x)
{
    x = clean_logit(x);
    return x == -CUDART_INF_F ? LOWEST_LOGPROB : x - z.shift - z.log_sum;
}

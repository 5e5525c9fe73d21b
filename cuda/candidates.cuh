/* The best of a row of logits without sorting it, and a draw from them. Candidates are the logits
 * above minus infinity; their order is that of values downwards, then of ids upwards.
 *
 * A probability is an integer here: 2^40 times its share of the best one's, rounded down. So sums
 * depend on no order, threads may add in any, and cuts and draws are exact to the integers: V of
 * them are off by less than V 2^-40 of the best one's probability, which for all vocabularies is
 * less than the rounding of expf.
 *
 * The best k, or those that make up a share, end at a cut. It is found as a radix sort would find
 * it: a histogram over the distances from the best, the bin in which the cut falls, a histogram
 * over that bin, and so on; 2,048 bins a time, so that three are enough for any distance. Distances
 * in f32 keep the order but for near values that end at the same one: if the cut falls among those,
 * it goes on by their values, and among equal values by ids. Once what can still be kept is little,
 * it is gathered in shared memory, and the row is read no more. */
#pragma once

#include "cuda/logits.cuh"

static constexpr int BINS = 2048, GATHERED = 1024, LOGITS_WARPS = (int)LOGITS_THREADS / WARP;

/* Where the cut falls: the bin (BINS: beyond all), and the sum and number of what is in the bins
 * before it. */
struct bin_found { uint32_t bin, n_before; uint64_t before; };

/* A block's shared memory. */
struct candidate_room {
    uint32_t count[BINS], low[BINS], high[BINS]; /* of each bin: its number; its sum, in two halves */
    uint64_t list[GATHERED];                     /* id << 32 | ordered(value), in order of ids */
    uint64_t sums[LOGITS_WARPS];
    bin_found found;
    uint32_t n_listed;
};

/* Floats in order as unsigned numbers in order; both zeros are one. */
__device__ __forceinline__ uint32_t ordered(float x)
{
    uint32_t u = __float_as_uint(x + 0.0f);
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}

__device__ __forceinline__ float from_ordered(uint32_t u)
{
    return __uint_as_float(u & 0x80000000u ? u & 0x7FFFFFFFu : ~u);
}

/* Kept is what is nearer to the best; at this distance, what is above the value; of equals, ids up
 * to this one. */
struct cut { float distance, value; int32_t id; };

__device__ __forceinline__ bool keeps(const cut &c, float distance, float x, int32_t id)
{
    if (distance != c.distance) return distance < c.distance;
    return x > c.value || (x == c.value && id <= c.id);
}

/* What is left to choose from; the same in every thread. */
struct candidates {
    candidate_room *room;
    const float *x;       /* the row, [n]; */
    int32_t n;            /* once gathered, the list's length */
    bool gathered;
    float highest, scale; /* log probability: (x - highest) scale and a constant */
    float least;          /* shares of the best one's probability below it are none */
    cut kept;
    uint32_t n_kept;      /* after cut_down */
};

__device__ __forceinline__ candidates all_candidates(candidate_room *room, const float *x, int32_t n,
                                                     float highest, float scale)
{
    return {room, x, n, false, highest, scale, 0, {CUDART_INF_F, -CUDART_MAX_NORMAL_F, INT32_MAX}, 0};
}

__device__ __forceinline__ uint64_t weight(const candidates &c, float distance)
{
    float p = expf(-distance * c.scale);
    uint32_t u = __float_as_uint(p);
    if (p < c.least) return 0;
    return (uint64_t)(u & 0x7FFFFFu | 0x800000u) << 17 >> min(127 - (u >> 23), 63u);
}

/* f(value, id) for the logits [first, last) of a row, by `step` threads of which this is number
 * `me`. */
template <class F>
__device__ __forceinline__ void each_logit(const float *x, int32_t first, int32_t last, int32_t me,
                                           int32_t step, F f)
{
    for (int32_t i0 = first + me; i0 < last; i0 += LOGITS_RUN * step) {
        float v[LOGITS_RUN];
#pragma unroll
        for (int u = 0; u < LOGITS_RUN; u++)
            if (i0 + u * step < last) v[u] = x[i0 + u * step];
#pragma unroll
        for (int u = 0; u < LOGITS_RUN; u++)
            if (i0 + u * step < last) f(clean_logit(v[u]), i0 + u * step);
    }
}

/* f(distance, value, id) for those of the candidates [first, last) that are kept. */
template <class F>
__device__ __forceinline__ void each_kept(const candidates &c, int32_t first, int32_t last, int32_t me,
                                          int32_t step, F f)
{
    auto if_kept = [&](float x, int32_t id) {
        float distance = c.highest - x;
        if (keeps(c.kept, distance, x, id)) f(distance, x, id);
    };
    if (!c.gathered) each_logit(c.x, first, last, me, step, if_kept);
    for (int32_t i = first + me; c.gathered && i < last; i += step) {
        uint64_t entry = c.room->list[i];
        if_kept(from_ordered((uint32_t)entry), (int32_t)(entry >> 32));
    }
}

/* ---- sums of integers ---- */

__device__ __forceinline__ uint64_t warp_sum(uint64_t x)
{
#pragma unroll
    for (int m = WARP / 2; m > 0; m >>= 1) x += __shfl_xor_sync(0xFFFFFFFFu, x, m);
    return x;
}

/* Of this lane and those before it. */
__device__ __forceinline__ uint64_t warp_scan(uint64_t x)
{
#pragma unroll
    for (int m = 1; m < WARP; m <<= 1) {
        uint64_t before = __shfl_up_sync(0xFFFFFFFFu, x, m);
        if (threadIdx.x % WARP >= m) x += before;
    }
    return x;
}

/* Leaves each warp's sum in sums; returns that of all. */
__device__ __forceinline__ uint64_t warps_sums(uint64_t x, uint64_t *sums)
{
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = x;
    __syncthreads();
    uint64_t total = 0;
    for (int w = 0; w < LOGITS_WARPS; w++) total += sums[w];
    return total;
}

/* Of the threads before this one. */
__device__ __forceinline__ uint64_t sum_before(uint64_t x, uint64_t *sums)
{
    uint64_t before = warp_scan(x) - x;
    warps_sums(x, sums);
    for (int w = 0; w < threadIdx.x / WARP; w++) before += sums[w];
    return before;
}

/* ---- in order of ids ---- */

/* The first candidate, in order of ids, at which the sum of weights is over `limit`, which is below
 * the sum of all: over limit 2^-24 of all, with `of_all`. `ties`: those of the cut's value weigh 1,
 * others nothing. Each warp adds up a part of the range, and the one that goes over is the next
 * range. One reading and a bit. */
__device__ __forceinline__ int32_t first_over(const candidates &c, bool ties, uint64_t limit, bool of_all)
{
    int32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, first = 0, n = c.n;
    uint64_t *sums = c.room->sums;
    auto weigh = [&](float distance, float x) {
        return ties ? (uint64_t)(x == c.kept.value) : weight(c, distance);
    };
    do {
        int32_t part = (n + LOGITS_WARPS - 1) / LOGITS_WARPS, begin = min(warp * part, n);
        uint64_t sum = 0;
        each_kept(c, first + begin, first + min(begin + part, n), lane, WARP,
                  [&](float distance, float x, int32_t) { sum += weigh(distance, x); });
        uint64_t total = warps_sums(sum, sums);
        if (of_all) limit = (total >> 24) * limit + ((total & 0xFFFFFF) * limit >> 24);
        of_all = false;
        int w = 0;
        for (; w < LOGITS_WARPS - 1 && limit >= sums[w]; w++) limit -= sums[w];
        first += w * part;
        n = min(part, n - w * part);
    } while (n > WARP);
    uint64_t mine = 0;
    each_kept(c, first, first + n, lane, WARP,
              [&](float distance, float x, int32_t) { mine = weigh(distance, x); });
    int32_t at = first + __ffs(__ballot_sync(0xFFFFFFFFu, warp_scan(mine) > limit)) - 1;
    return c.gathered ? (int32_t)(c.room->list[at] >> 32) : at;
}

/* ---- gathering ---- */

/* Sorts the first n of list upwards: Batcher's bitonic network, in which a thread has a pair a
 * time. */
__device__ __forceinline__ void sort_list(uint64_t *list, int32_t n)
{
    static_assert(GATHERED <= 2 * LOGITS_THREADS);
    int32_t t = threadIdx.x, all = 2;
    while (all < n) all *= 2;
    for (int32_t i = n + t; i < all; i += LOGITS_THREADS) list[i] = ~(uint64_t)0;
    for (int32_t run = 2; run <= all; run *= 2)
        for (int32_t apart = run / 2; apart > 0; apart /= 2) {
            int32_t i = 2 * t - (t & (apart - 1));
            __syncthreads();
            if (t >= all / 2) continue;
            uint64_t a = list[i], b = list[i + apart];
            if ((a > b) != ((i & run) != 0)) list[i] = b, list[i + apart] = a;
        }
    __syncthreads();
}

/* What is kept, n_kept <= GATHERED of them, becomes the list. One reading. */
__device__ __forceinline__ void gather(candidates &c)
{
    candidate_room *r = c.room;
    __syncthreads();
    if (threadIdx.x == 0) r->n_listed = 0;
    __syncthreads();
    each_kept(c, 0, c.n, threadIdx.x, LOGITS_THREADS, [&](float, float x, int32_t id) {
        r->list[atomicAdd(&r->n_listed, 1u)] = (uint64_t)id << 32 | ordered(x);
    });
    __syncthreads();
    c.gathered = true;
    c.n = (int32_t)r->n_listed;
    sort_list(r->list, c.n);
}

/* ---- the cut ---- */

__device__ __forceinline__ void add_to_bin(candidate_room *r, uint32_t bin, uint64_t w)
{
    uint32_t low = (uint32_t)w;
    uint32_t high = (uint32_t)(w >> 32) + (atomicAdd(&r->low[bin], low) > ~low); /* with the carry */
    atomicAdd(&r->count[bin], 1u);
    if (high) atomicAdd(&r->high[bin], high);
}

/* The first bin at which the sum reaches `missing` >= 1. */
__device__ __forceinline__ bin_found find_bin(candidate_room *r, uint64_t missing)
{
    constexpr int EACH = BINS / LOGITS_THREADS;
    auto counts = load_packed<uint32_t, EACH>(r->count + threadIdx.x * EACH);
    auto low = load_packed<uint32_t, EACH>(r->low + threadIdx.x * EACH);
    auto high = load_packed<uint32_t, EACH>(r->high + threadIdx.x * EACH);
    uint64_t sum = 0, count = 0;
#pragma unroll
    for (int e = 0; e < EACH; e++) {
        sum += (uint64_t)high.at[e] << 32 | low.at[e];
        count += counts.at[e];
    }
    uint64_t before = sum_before(sum, r->sums), n_before = sum_before(count, r->sums);
    if (threadIdx.x == LOGITS_THREADS - 1) r->found = {BINS, (uint32_t)(n_before + count), before + sum};
    __syncthreads();
#pragma unroll
    for (int e = 0; e < EACH; e++) {
        uint64_t here = (uint64_t)high.at[e] << 32 | low.at[e];
        if (before < missing && before + here >= missing)
            r->found = {threadIdx.x * EACH + e, (uint32_t)n_before, before};
        before += here;
        n_before += counts.at[e];
    }
    __syncthreads();
    return r->found;
}

/* Keeps the best `number` of what is kept, or, where that is 0, the least set of the best whose
 * probabilities reach this share of all; all, if there are no more. `hint`: a distance within which
 * the cut probably falls, so that no more than the candidates up to there are counted.
 *
 * One reading a histogram, one to gather: two for what is few, five at most and two more for
 * ties. */
__device__ __forceinline__ void cut_down(candidates &c, uint32_t number, float share, float hint)
{
    candidate_room *r = c.room;
    uint64_t target = number, above = 0;
    uint32_t n_above = 0, low = 0, last = __float_as_uint(c.kept.distance);
    uint32_t high = min(__float_as_uint(hint), last);
    bool by_value = false;
    for (bool first = true;; first = false) {
        int shift = 32 - __clz((high - low) / BINS);
        __syncthreads();
        for (int i = threadIdx.x; i < BINS; i += LOGITS_THREADS) r->count[i] = r->low[i] = r->high[i] = 0;
        __syncthreads();
        uint64_t sum = 0;
        each_kept(c, 0, c.n, threadIdx.x, LOGITS_THREADS, [&](float distance, float x, int32_t) {
            uint32_t key = by_value ? ordered(c.highest) - ordered(x) : __float_as_uint(distance);
            bool here = key >= low && key <= high && (!by_value || distance == c.kept.distance);
            if (!here && (!first || number > 0)) return;
            uint64_t w = number > 0 ? 1 : weight(c, distance);
            sum += w;
            if (here) add_to_bin(r, (key - low) >> shift, w);
        });
        __syncthreads();
        if (first && number == 0)
            target = max((uint64_t)((double)share * (double)warps_sums(sum, r->sums)), (uint64_t)1);
        bin_found f = find_bin(r, target - above);
        above += f.before;
        n_above += f.n_before;
        c.n_kept = n_above;
        if (f.bin == BINS) {
            if (high == last) return;
            low = high + 1;
            high = last;
            continue;
        }
        uint32_t count = r->count[f.bin];
        low += f.bin << shift;
        high = min(high, low + ((1u << shift) - 1));
        c.n_kept += count;
        if (by_value && from_ordered(ordered(c.highest) - high) > c.kept.value)
            c.kept = {c.kept.distance, from_ordered(ordered(c.highest) - high), INT32_MAX};
        if (!by_value && __uint_as_float(high) < c.kept.distance)
            c.kept = {__uint_as_float(high), -CUDART_MAX_NORMAL_F, INT32_MAX};
        if (!c.gathered && c.n_kept <= GATHERED) gather(c);
        if (count == 1 || (number > 0 && c.n_kept == number)) return; /* all of the bin */
        last = high;
        if (shift > 0) continue;
        if (by_value) {
            uint64_t each = number > 0 ? 1 : weight(c, c.kept.distance), ties = (target - above + each - 1) / each;
            if (ties < count) c.kept.id = first_over(c, true, ties - 1, false);
            c.n_kept = n_above + (uint32_t)ties;
            return;
        }
        by_value = true;
        low = 0;
        high = last = ~0u;
    }
}

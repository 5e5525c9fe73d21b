/* From a row of logits to a token: model/sampler.h says what, this says how,
 * without sorting a vocabulary.
 *
 * Sets of the best are found by a cut: the last candidate (in order of value, then lower id) that
 * belongs to the set. top_k keeps a heap of k while it skips through the row; large k and top_p
 * narrow down on the cut by partitioning (quickselect, by count or by probability mass). The draw
 * then walks the kept ids upwards and takes the first whose cumulative probability exceeds u. */
#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "cpu/cpu_internal.h"
#include "model/sampler.h"

enum {
    HEAP_TOP_K = 1024,  /* up to here top_k uses the heap */
    DRAW_BLOCK = 1024,  /* ids whose probabilities are summed at once */
};

/* A log-probability of minus infinity is reported as this: JSON has no infinities. */
static const float LOWEST_LOGPROB = -9999.0f;

struct candidate {
    float value; /* logit, later exp of it */
    int32_t id;
};

/* One thread's scratch; each array has room for the vocabulary. */
struct sampler {
    const struct cpu_kernels *kernels;
    int64_t n_vocab;
    float *values;
    struct candidate *kept;  /* in order of ids */
    struct candidate *other; /* for partitioning; also ids */
};

static int64_t scratch_bytes(int64_t vocab_size)
{
    return round_up(vocab_size, 64) * (int64_t)(sizeof(float) + 2 * sizeof(struct candidate));
}

int64_t cpu_sample_workspace(const struct cpu_device *c, int64_t vocab_size)
{
    return pool_n_threads(c->pool) * scratch_bytes(vocab_size);
}

static const float LARGEST = 0x1.fffffep127f;

/* NaN counts as -inf, +inf as the largest float: the same in kernels. */
static float clean(float x) { return isnan(x) ? -INFINITY : x == INFINITY ? LARGEST : x; }

static bool better(struct candidate a, struct candidate b)
{
    return a.value > b.value || (a.value == b.value && a.id < b.id);
}

static bool lower_id(struct candidate a, struct candidate b) { return a.id < b.id; }

typedef bool (*candidate_order)(struct candidate a, struct candidate b);

/* A heap whose root is the last in the order. */
static void sift_down(struct candidate *heap, int64_t n, int64_t i, candidate_order before)
{
    for (int64_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && before(heap[child], heap[child + 1])) child++;
        if (!before(heap[i], heap[child])) return;
        struct candidate t = heap[i];
        heap[i] = heap[child];
        heap[child] = t;
    }
}

static void heap_sort(struct candidate *c, int64_t n, candidate_order before)
{
    for (int64_t i = n / 2 - 1; i >= 0; i--) sift_down(c, n, i, before);
    for (int64_t last = n - 1; last > 0; last--) {
        struct candidate t = c[0];
        c[0] = c[last];
        c[last] = t;
        sift_down(c, last, 0, before);
    }
}

/* The best k (fewer when fewer are above -inf), best first. Ids come upwards, so one that equals
 * the worst of a full heap ranks behind it and is skipped. */
static int64_t select_best(const struct sampler *s, const float *x, int64_t k,
                           struct candidate *out)
{
    int64_t n = 0, v = s->n_vocab;
    float threshold = -INFINITY;
    for (int64_t i = s->kernels->find_above(x, 0, v, threshold); i < v;
         i = s->kernels->find_above(x, i + 1, v, threshold)) {
        struct candidate c = {clean(x[i]), (int32_t)i};
        if (n < k) {
            out[n++] = c;
            if (n == k)
                for (int64_t j = n / 2 - 1; j >= 0; j--) sift_down(out, n, j, better);
        } else if (better(c, out[0])) {
            out[0] = c;
            sift_down(out, n, 0, better);
        }
        if (n == k) threshold = out[0].value;
    }
    heap_sort(out, n, better);
    return n;
}

/* Everything above t, in order of ids. */
static int64_t collect_above(const struct sampler *s, const float *x, float t,
                             struct candidate *out)
{
    int32_t *ids = (int32_t *)s->other;
    int64_t n = s->kernels->list_above(ids, x, s->n_vocab, t);
    for (int64_t i = 0; i < n; i++) out[i] = (struct candidate){clean(x[ids[i]]), ids[i]};
    return n;
}

/* Puts those better than the pivot first; returns how many. */
static int64_t partition(struct candidate *c, int64_t n, struct candidate pivot)
{
    int64_t first = 0;
    for (int64_t i = 0; i < n; i++) {
        if (!better(c[i], pivot)) continue;
        struct candidate t = c[first];
        c[first++] = c[i];
        c[i] = t;
    }
    return first;
}

static struct candidate middle_of(struct candidate a, struct candidate b, struct candidate c)
{
    if (better(a, b)) return better(b, c) ? b : better(a, c) ? c : a;
    return better(a, c) ? a : better(b, c) ? c : b;
}

/* The last member of the smallest set of the best whose weights reach `target`. By mass a candidate
 * weighs its value, else 1. n >= 1; reorders c. */
static struct candidate find_cut(struct candidate *c, int64_t n, bool by_mass, double target)
{
    while (n > 1) {
        struct candidate pivot = middle_of(c[0], c[n / 2], c[n - 1]);
        int64_t better_n = partition(c, n, pivot);
        double weight = 0;
        for (int64_t i = 0; i < better_n; i++) weight += by_mass ? c[i].value : 1;
        if (better_n > 0 && weight >= target) {
            n = better_n;
            continue;
        }
        /* The pivot itself is the best of the rest. */
        weight += by_mass ? pivot.value : 1;
        if (weight >= target || better_n + 1 == n) return pivot;
        target -= weight;
        c += better_n;
        n -= better_n;
        for (int64_t i = 0; i < n; i++)
            if (c[i].id == pivot.id) c[i] = c[0];
        c++;
        n--;
    }
    return c[0];
}

static int64_t keep_up_to(struct candidate *c, int64_t n, struct candidate cut)
{
    int64_t kept = 0;
    for (int64_t i = 0; i < n; i++)
        if (!better(cut, c[i])) c[kept++] = c[i];
    return kept;
}

/* The logits that the choice is made from: the row itself, or a changed copy. */
static const float *adjusted(const struct sampler *s, const struct sample_request *q,
                             const struct logit_change *changes, const float *x)
{
    if (q->n_changes == 0) return x;
    memcpy(s->values, x, (size_t)s->n_vocab * 4);
    for (int32_t i = 0; i < q->n_changes; i++) {
        const struct logit_change *c = &changes[i];
        ASSERT(c->id >= 0 && c->id < s->n_vocab);
        float *y = &s->values[c->id];
        if (c->n_output >= 0) *y = *y > 0 ? *y / q->repetition_penalty : *y * q->repetition_penalty;
        if (c->n_output > 0) *y -= q->presence_penalty + (float)c->n_output * q->frequency_penalty;
        *y += c->bias;
    }
    return s->values;
}

/* The next float below, for "at least t" by way of "above". */
static float below(float t) { return nextafterf(t, -INFINITY); }

static int32_t choose_greedy(const struct sampler *s, const float *x, float max)
{
    return max == -INFINITY ? 0 : (int32_t)s->kernels->find_above(x, 0, s->n_vocab, below(max));
}

/* From the whole vocabulary, whose probabilities (times `total`) are in s->values. */
static int32_t draw_from_all(const struct sampler *s, double u)
{
    const float *p = s->values;
    int64_t v = s->n_vocab, last = 0;
    double total = 0, sum = 0;
    for (int64_t i = 0; i < v; i += DRAW_BLOCK)
        total += s->kernels->sum_above(p + i, min_i64(DRAW_BLOCK, v - i), 0);
    for (int64_t i = 0; i < v; i += DRAW_BLOCK) {
        int64_t n = min_i64(DRAW_BLOCK, v - i);
        double next = sum + s->kernels->sum_above(p + i, n, 0);
        bool here = next > u * total;
        for (int64_t j = i; here && j < i + n; j++) {
            if (p[j] > 0) last = j;
            sum += p[j];
            if (sum > u * total) break;
        }
        if (here) break; /* rounding may have left the sum short: then it is the block's last */
        sum = next;
    }
    return (int32_t)last;
}

static int32_t draw_from(const struct candidate *c, int64_t n, double u)
{
    double total = 0, sum = 0;
    for (int64_t i = 0; i < n; i++) total += c[i].value;
    for (int64_t i = 0; i < n; i++) {
        sum += c[i].value;
        if (sum > u * total) return c[i].id;
    }
    return c[n - 1].id;
}

static bool cuts_top_k(const struct sampler *s, const struct sample_request *p)
{
    return p->top_k > 0 && p->top_k < s->n_vocab;
}

/* The top_k best of x with their probabilities (times *total), in order of ids. */
static int64_t keep_top_k(const struct sampler *s, const float *x, int64_t k, float max,
                          float scale, double *total)
{
    struct candidate *kept = s->kept;
    int64_t n;
    if (k <= HEAP_TOP_K) {
        n = select_best(s, x, k, kept);
        heap_sort(kept, n, lower_id);
    } else {
        n = collect_above(s, x, -INFINITY, kept);
        memcpy(s->other, kept, (size_t)n * sizeof *kept);
        if (n > k) n = keep_up_to(kept, n, find_cut(s->other, n, false, (double)k));
    }
    for (int64_t i = 0; i < n; i++) s->values[i] = kept[i].value;
    *total = s->kernels->row_exp(s->values, s->values, n, max, scale);
    for (int64_t i = 0; i < n; i++) kept[i].value = s->values[i];
    return n;
}

/* Between which probabilities (times the total) top_p's cut lies: those above `high` sum to
 * `above`, which is less than top_p asks for, those above `low` to enough. */
struct bracket { float low, high; double above; };

/* From the best's, which is 1, down in steps of sixteen, then halved in the logarithm: each costs a
 * sum over the row, and spares the partitioning, which is dear, most of what is not near the
 * cut. */
static struct bracket find_bracket(const struct sampler *s, double target)
{
    struct bracket b = {.high = 1};
    double sum;
    for (b.low = 0x1p-4f; b.low > 0; b.low = b.low > 0x1p-40f ? b.low / 16 : 0) {
        sum = s->kernels->sum_above(s->values, s->n_vocab, b.low);
        if (sum > target) break;
        b.high = b.low;
        b.above = sum;
    }
    for (int i = 0; i < 4 && b.low > 0; i++) {
        float middle = sqrtf(b.low * b.high);
        sum = s->kernels->sum_above(s->values, s->n_vocab, middle);
        if (sum > target) {
            b.low = middle;
        } else {
            b.high = middle;
            b.above = sum;
        }
    }
    return b;
}

/* Of candidates in order of ids the smallest set of the most probable whose sum reaches the
 * target. */
static int64_t keep_top_p(const struct sampler *s, int64_t n, struct bracket b, double target)
{
    int64_t unsure = 0;
    for (int64_t i = 0; i < n; i++)
        if (s->kept[i].value <= b.high) s->other[unsure++] = s->kept[i];
    if (unsure == 0) return n;
    return keep_up_to(s->kept, n, find_cut(s->other, unsure, true, target - b.above));
}

/* total: of the probabilities, if s->values has them already; else 0. */
static int32_t choose_random(const struct sampler *s, const struct sample_request *p,
                             const float *x, float max, double total)
{
    double u = p->uniform;
    float scale = fminf(1 / p->temperature, LARGEST);
    struct bracket bracket = {.high = 1};
    int64_t n;
    if (cuts_top_k(s, p)) {
        n = keep_top_k(s, x, p->top_k, max, scale, &total);
    } else {
        if (total == 0) total = s->kernels->row_exp(s->values, x, s->n_vocab, max, scale);
        if (p->min_p == 0 && p->top_p >= 1) return draw_from_all(s, u);
        /* The best has exp(0) = 1, so that min_p is a bound as it stands. */
        if (p->min_p > 0) bracket.low = below(p->min_p);
        else bracket = find_bracket(s, p->top_p * total);
        n = collect_above(s, s->values, bracket.low, s->kept);
    }
    int64_t kept = 0;
    for (int64_t i = 0; i < n; i++)
        if (s->kept[i].value >= p->min_p) s->kept[kept++] = s->kept[i];
    if (p->top_p < 1) kept = keep_top_p(s, kept, bracket, p->top_p * total);
    return draw_from(s->kept, kept, u);
}

static int32_t rank_of(const struct sampler *s, const float *x, int32_t id)
{
    const struct cpu_kernels *k = s->kernels;
    float t = isnan(x[id]) ? -INFINITY : x[id];
    int64_t above = k->count_above(x, s->n_vocab, t);
    int64_t lower = t == -INFINITY ? id - k->count_above(x, id, t)
                                   : k->count_above(x, id, below(t)) - k->count_above(x, id, t);
    return (int32_t)(1 + above + lower);
}

static void report_top(const struct sampler *s, const float *x, int32_t n_top, struct logsumexp z,
                       struct sample_out *out)
{
    struct candidate best[SAMPLE_MAX_TOP];
    ASSERT(n_top <= SAMPLE_MAX_TOP);
    out->n_top = (int32_t)select_best(s, x, n_top, best);
    for (int32_t i = 0; i < out->n_top; i++)
        out->top[i] = (struct token_logprob){best[i].id, cpu_logprob(z, best[i].value)};
    out->rank = rank_of(s, x, out->id);
}

struct logsumexp cpu_logsumexp(const struct cpu_kernels *k, const float *x, int64_t n, float *exps,
                               float *sum)
{
    struct logsumexp z = {.shift = k->row_max(x, n)};
    *sum = k->row_exp(exps, x, n, z.shift, 1);
    if (z.shift > -INFINITY) z.log_sum = logf(*sum);
    return z;
}

float cpu_logprob(struct logsumexp z, float x)
{
    x = clean(x);
    return x == -INFINITY ? LOWEST_LOGPROB : x - z.shift - z.log_sum;
}

static void sample_one(const struct sampler *s, const float *x, const struct sample_request *q,
                       const struct logit_change *changes, struct sample_out *out)
{
    /* At temperature 1 the row's own softmax is what is drawn from. */
    bool drawn_as_is = q->forced < 0 && q->temperature == 1 && q->n_changes == 0 &&
                       !cuts_top_k(s, q);
    float total;
    struct logsumexp z =
        cpu_logsumexp(s->kernels, x, s->n_vocab, drawn_as_is ? s->values : NULL, &total);
    /* Infinity has become the largest float. */
    if (!(z.shift > -INFINITY && z.shift < LARGEST)) {
        *out = (struct sample_out){.id = SAMPLE_NO_TOKEN};
        return;
    }
    *out = (struct sample_out){.id = q->forced};
    if (q->forced < 0) {
        const float *y = adjusted(s, q, changes, x);
        float highest = y == x ? z.shift : s->kernels->row_max(y, s->n_vocab);
        bool greedy = q->temperature == 0 || highest == -INFINITY;
        out->id = greedy ? choose_greedy(s, y, highest)
                         : choose_random(s, q, y, highest, drawn_as_is ? total : 0);
    }
    ASSERT(out->id >= 0 && out->id < s->n_vocab);
    out->logprob = cpu_logprob(z, x[out->id]);
    if (q->n_top > 0) report_top(s, x, q->n_top, z, out);
}

struct sample_job {
    struct cpu_device *device;
    struct tensor logits;
    const struct sample_request *requests;
    const int32_t *words;
    struct sample_out *out;
};

static void sample_rows(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    const struct sample_job *job = ctx;
    int64_t v = job->logits.cols, room = round_up(v, 64);
    struct sampler s = {.kernels = &job->device->kernels, .n_vocab = v};
    s.values = (float *)(job->device->workspace + thread * scratch_bytes(v));
    s.kept = (struct candidate *)(s.values + room);
    s.other = s.kept + room;
    for (int64_t i = begin; i < end; i++) {
        const struct sample_request *q = &job->requests[i];
        sample_one(&s, tensor_row(job->logits, i), q,
                   (const struct logit_change *)(job->words + q->changes), &job->out[i]);
    }
}

void cpu_sample(struct device *d, struct tensor logits, const struct sample_request *requests,
                int32_t *words, struct sample_out *out)
{
    struct cpu_device *c = cpu_of(d);
    ASSERT(logits.dtype == DTYPE_F32 && cpu_sample_workspace(c, logits.cols) <= c->workspace_bytes);
    struct sample_job job = {c, logits, requests, words, out};
    pool_for(c->pool, logits.rows, cpu_row_grain(logits.cols), sample_rows, &job);
}

/* Recovering RoPE scaling parameters from per-frequency factors: see rope_freqs.h. */
#include "model/rope_freqs.h"

#include <math.h>

static const double pi = 3.14159265358979323846;

/* How often frequency i turns over a context of `tokens`. */
static double turns(const struct gpt_config *c, int64_t i, double tokens)
{
    double freq = pow((double)c->rope_theta, -2.0 * (double)i / (double)c->head_dim);
    return tokens * freq / (2 * pi);
}

double rope_llama3_factor(const struct gpt_config *c, int64_t i)
{
    double low = (double)c->rope_low_freq, high = (double)c->rope_high_freq;
    double n = turns(c, i, (double)c->rope_original_context);
    if (n > high) return 1;
    if (n < low) return (double)c->rope_factor;
    double smooth = (n - low) / (high - low);
    return 1 / ((1 - smooth) / (double)c->rope_factor + smooth);
}

static bool close_to(double a, double b) { return fabs(a - b) <= 1e-4 * fabs(b); }

static bool llama3_matches(const struct gpt_config *c, const float *factors, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (!close_to(rope_llama3_factor(c, i), (double)factors[i])) return false;
    return true;
}

bool rope_freqs_to_config(const float *factors, int64_t n, const char *where, struct gpt_config *c,
                          struct error *err)
{
    struct gpt_config tried = *c;
    bool uniform = true;
    float largest = factors[0];
    for (int64_t i = 0; i < n; i++) {
        if (!(factors[i] >= 1e-3f && factors[i] <= 1e6f))
            return error_set(err, ERR_FORMAT, NULL, "%s: rope_freqs.weight[%d] is %g", where,
                             (int)i, (double)factors[i]);
        uniform = uniform && factors[i] == factors[0];
        largest = fmaxf(largest, factors[i]);
    }
    if (uniform && largest == 1) return true;
    if (c->rope_scaling != ROPE_SCALING_NONE)
        return error_set(err, ERR_UNSUPPORTED, NULL,
                         "%s: rope_freqs.weight on top of another rope scaling is not supported",
                         where);
    tried.rope_factor = largest;
    tried.rope_scaling = uniform ? ROPE_SCALING_LINEAR : ROPE_SCALING_LLAMA3;
    /* Only the ratios of context, low and high matter, so that the published low and high
     * with some power of two as the context cover what converters write. */
    tried.rope_low_freq = 1;
    tried.rope_high_freq = 4;
    bool found = uniform;
    for (int64_t context = 8; !found && context <= CONFIG_MAX_CONTEXT; context *= 2) {
        tried.rope_original_context = context;
        found = llama3_matches(&tried, factors, n);
    }
    if (!found)
        return error_set(err, ERR_UNSUPPORTED, NULL,
                         "%s: the factors of rope_freqs.weight are not Llama 3's scaling", where);
    *c = tried;
    return true;
}

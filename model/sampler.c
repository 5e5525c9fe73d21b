/* Sampling parameters and the counter-based generator: see sampler.h. Turning logits into a
 * token is the device's `sample` operation. */
#include "model/sampler.h"

#include <math.h>

void sample_params_init(struct sample_params *p)
{
    *p = (struct sample_params){
        .temperature = 1,
        .top_p = 1,
        .repetition_penalty = 1,
    };
}

/* True for NaN too: every comparison with it is false. */
static bool outside(float v, float lo, float hi) { return !(v >= lo && v <= hi); }

static bool check_bias(const struct sample_params *p, int64_t vocab_size, struct error *err)
{
    if (p->n_bias < 0 || p->n_bias > SAMPLE_MAX_BIAS)
        return error_set(err, ERR_INVALID, "logit_bias",
                         "logit_bias has %d entries; at most %d are allowed", p->n_bias,
                         SAMPLE_MAX_BIAS);
    for (int32_t i = 0; i < p->n_bias; i++) {
        int32_t id = p->bias[i].id;
        if (id < 0 || id >= vocab_size)
            return error_set(err, ERR_INVALID, "logit_bias",
                             "logit_bias names token %d; the model has tokens 0 to %lld", id,
                             (long long)vocab_size - 1);
        if (!isfinite(p->bias[i].bias))
            return error_set(err, ERR_INVALID, "logit_bias",
                             "logit_bias of token %d is not a finite number", id);
        for (int32_t j = 0; j < i; j++)
            if (p->bias[j].id == id)
                return error_set(err, ERR_INVALID, "logit_bias",
                                 "logit_bias names token %d twice", id);
    }
    return true;
}

bool sample_params_check(const struct sample_params *p, int64_t vocab_size, struct error *err)
{
    if (outside(p->temperature, 0, 100))
        return error_set(err, ERR_INVALID, "temperature",
                         "temperature is %g; it must be from 0 to 100", (double)p->temperature);
    if (p->top_k < 0)
        return error_set(err, ERR_INVALID, "top_k", "top_k is %d; it must be 0 (off) or more",
                         p->top_k);
    if (outside(p->top_p, 0, 1) || p->top_p == 0)
        return error_set(err, ERR_INVALID, "top_p", "top_p is %g; it must be above 0 and at most 1",
                         (double)p->top_p);
    if (outside(p->min_p, 0, 1))
        return error_set(err, ERR_INVALID, "min_p", "min_p is %g; it must be from 0 to 1",
                         (double)p->min_p);
    if (!(p->repetition_penalty > 0) || !isfinite(p->repetition_penalty))
        return error_set(err, ERR_INVALID, "repetition_penalty",
                         "repetition_penalty is %g; it must be above 0 (1 is off)",
                         (double)p->repetition_penalty);
    if (outside(p->presence_penalty, -2, 2))
        return error_set(err, ERR_INVALID, "presence_penalty",
                         "presence_penalty is %g; it must be from -2 to 2",
                         (double)p->presence_penalty);
    if (outside(p->frequency_penalty, -2, 2))
        return error_set(err, ERR_INVALID, "frequency_penalty",
                         "frequency_penalty is %g; it must be from -2 to 2",
                         (double)p->frequency_penalty);
    return check_bias(p, vocab_size, err);
}

/* Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), section 4.2. */
void philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4])
{
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)0xD2511F53u * c0;
        uint64_t b = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)b;
        c2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)a;
        k0 += 0x9E3779B9u; /* the golden ratio */
        k1 += 0xBB67AE85u; /* sqrt(3) - 1 */
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

float sample_uniform(uint64_t seed, int32_t choice, int64_t position)
{
    /* The seed fills the key, so the choice rides in a counter word of its own: no two (seed,
     * choice, position) share a block. */
    uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint32_t counter[4] = {(uint32_t)position, (uint32_t)((uint64_t)position >> 32),
                           (uint32_t)choice, 0};
    uint32_t word[4];
    philox4x32(counter, key, word);
    return (float)(word[0] >> 8) * 0x1p-24f;
}

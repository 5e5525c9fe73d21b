/* Sampling parameters, the counter-based generator, and requests as devices read them: see
 * sampler.h. Turning logits into a token is the device's `sample` operation. */
#include "model/sampler.h"

#include <math.h>

#include "base/checked.h"

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

/* Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3" (SC 2011),
 * section 4.2. */
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

/* ---- requests ---- */

enum { CHANGE_WORDS = sizeof(struct logit_change) / sizeof(int32_t) };

int64_t sample_max_words(int64_t vocab_size, int64_t max_history)
{
    return min_i64(vocab_size, max_history + SAMPLE_MAX_BIAS + SAMPLE_MAX_STOP_IDS) * CHANGE_WORDS;
}

/* A row's changes as they come together. */
struct change_list {
    struct logit_change *at;
    int32_t n;
    int32_t *entry_of; /* [n_vocab] 1 + the place of an id's change; 0: it has none */
    int64_t n_vocab;
};

static struct logit_change *change_of(struct change_list *l, int32_t id)
{
    ASSERT(id >= 0 && id < l->n_vocab);
    if (l->entry_of[id] == 0) {
        l->at[l->n] = (struct logit_change){.id = id, .n_output = -1};
        l->entry_of[id] = ++l->n;
    }
    return &l->at[l->entry_of[id] - 1];
}

static void collect_changes(struct change_list *l, const struct sample_row *row)
{
    const struct sample_params *p = row->params;
    bool penalties = p->repetition_penalty != 1 || p->presence_penalty != 0 ||
                     p->frequency_penalty != 0;
    for (int32_t i = 0; penalties && i < row->n_history; i++) {
        struct logit_change *c = change_of(l, row->history[i]);
        c->n_output = (int32_t)max_i64(c->n_output, 0) + (i >= row->n_prompt);
    }
    for (int32_t i = 0; i < p->n_bias; i++) change_of(l, p->bias[i].id)->bias = p->bias[i].bias;
    for (int32_t i = 0; row->ban_stops && i < row->n_stop_ids; i++)
        if (row->stop_ids[i] >= 0 && row->stop_ids[i] < l->n_vocab)
            change_of(l, row->stop_ids[i])->bias = -INFINITY;
    for (int32_t i = 0; i < l->n; i++) l->entry_of[l->at[i].id] = 0;
}

int32_t sample_request_write(const struct sample_row *row, int64_t vocab_size, int32_t *entry_of,
                             int32_t *words, int32_t at, struct sample_request *out)
{
    const struct sample_params *p = row->params;
    *out = (struct sample_request){.forced = row->forced,
                                   .n_top = (int32_t)min_i64(row->n_top, vocab_size)};
    ASSERT(row->n_top <= SAMPLE_MAX_TOP);
    if (row->forced >= 0) return 0;
    struct change_list changes = {(struct logit_change *)(words + at), 0, entry_of, vocab_size};
    collect_changes(&changes, row);
    out->temperature = p->temperature;
    out->top_p = p->top_p;
    out->min_p = p->min_p;
    out->repetition_penalty = p->repetition_penalty;
    out->presence_penalty = p->presence_penalty;
    out->frequency_penalty = p->frequency_penalty;
    out->top_k = p->top_k;
    out->uniform = sample_uniform(p->seed, row->choice, row->n_history);
    out->n_changes = changes.n;
    out->changes = at;
    return changes.n * CHANGE_WORDS;
}

/* How a row of logits becomes a token. The device's `sample` operation does it; this is the
 * contract. What it has to know of a row is a sample_request, plain data without pointers, so that
 * it goes to the device with the rest of a step.
 *
 * Order: (1) the row's log-probabilities are those of the raw logits (temperature 1, no penalty):
 * what `logprob` and `top` report, and what training computes. (2) repetition penalty over the
 * prompt and the output (logit > 0 ? l / p : l * p; Keskar et al. 2019), then presence and
 * frequency penalties over the output (OpenAI: l -= presence + count * frequency), then logit_bias.
 * (3) temperature 0: the highest logit, the lower id on a tie. Else l / temperature; keep the top_k
 * highest (ties: lower id first); softmax; keep those with p >= min_p * max p; keep the smallest
 * set of the most probable whose sum reaches top_p (at least one); draw with a uniform number from
 * a counter-based generator (Philox4x32-10, Salmon et al. 2011; key = seed, counter = the token's
 * position and the choice), so that a request's tokens do not depend on its neighbours.
 *
 * A NaN counts as minus infinity. A row whose highest raw logit is not a number, or infinite, is no
 * basis for a choice: it gives SAMPLE_NO_TOKEN, to score as well as to draw.
 *
 * All arithmetic of a row runs in an order fixed by the row alone. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { SAMPLE_MAX_TOP = 20, SAMPLE_MAX_BIAS = 1024, SAMPLE_MAX_STOP_IDS = 64 };

struct token_bias { int32_t id; float bias; };

struct sample_params {
    float temperature; /* 0: greedy; 0..100 */
    int32_t top_k;     /* 0: off */
    float top_p;       /* (0, 1]; 1: off */
    float min_p;       /* [0, 1]; 0: off */
    float repetition_penalty; /* > 0; 1: off */
    float presence_penalty, frequency_penalty; /* -2..2; 0: off */
    uint64_t seed;
    int32_t n_bias;
    const struct token_bias *bias; /* distinct ids; borrowed */
};

/* temperature 1, everything else off. */
void sample_params_init(struct sample_params *p);
/* Ranges above, finite numbers, bias ids below vocab_size. Names the parameter at fault. */
bool sample_params_check(const struct sample_params *p, int64_t vocab_size, struct error *err)
    MUST_CHECK;

struct sample_row {
    const struct sample_params *params;
    const int32_t *history; /* prompt, then output so far: n_history ids */
    int32_t n_prompt, n_history;
    int32_t choice;         /* which of n: part of the generator's counter */
    int32_t forced;         /* >= 0: take this token (prompt scoring); -1: sample */
    int32_t n_top;          /* 0..SAMPLE_MAX_TOP alternatives to report */
    bool ban_stops;         /* ignore_eos: ids in `stop_ids` cannot be drawn */
    const int32_t *stop_ids;
    int32_t n_stop_ids;     /* 0..SAMPLE_MAX_STOP_IDS */
};

/* What a request does to one logit before the choice; of every id there is at most one. */
struct logit_change {
    int32_t id;
    int32_t n_output; /* times that the output has it; -1: neither
                         it nor the prompt does, so no penalties */
    float bias;       /* added last; -INFINITY: it cannot be drawn */
    float raw;        /* room for the device */
};

/* A sample_row as devices read it. */
struct sample_request {
    float temperature, top_p, min_p;
    float repetition_penalty, presence_penalty, frequency_penalty;
    int32_t top_k;
    float uniform;    /* what the draw is made with: sample_uniform */
    int32_t forced;   /* >= 0: the token; all of the above and the changes are unused */
    int32_t n_top;    /* at most the vocabulary */
    int32_t n_changes, changes; /* struct logit_change, `changes` int32_t
                                   words into the words of all requests */
};

struct token_logprob { int32_t id; float logprob; };

enum { SAMPLE_NO_TOKEN = -1 };
struct sample_out {
    int32_t id;    /* SAMPLE_NO_TOKEN: the row has no highest logit, and the rest here is zero */
    float logprob; /* of id, under the raw logits */
    int32_t rank;  /* of id among the raw logits, 1 = highest; 0 when n_top == 0 */
    int32_t n_top;
    struct token_logprob top[SAMPLE_MAX_TOP]; /* highest first; ties: lower id first */
};

/* The words that a row's changes take at most, with a history of up to `max_history` ids. */
int64_t sample_max_words(int64_t vocab_size, int64_t max_history);
/* Writes the row's request, and its changes to words[at] and on; returns how many words they take.
 * entry_of [vocab_size] is scratch, zero before and after; it and `words` are not used by a row
 * that is forced, or has neither penalties, bias nor bans. */
int32_t sample_request_write(const struct sample_row *row, int64_t vocab_size, int32_t *entry_of,
                             int32_t *words, int32_t at, struct sample_request *out);

/* Philox4x32-10: four 32-bit words from a counter and a key. */
void philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);
/* Uniform in [0, 1) with 24 bits, for a choice's token at `position`. */
float sample_uniform(uint64_t seed, int32_t choice, int64_t position);

#ifdef __cplusplus
}
#endif

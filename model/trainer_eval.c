/* Evaluation: the mean loss over each set, and a text from the model as it stands. Both use the
 * trainer's own buffers: no memory of their own. */
#include <math.h>

#include "base/checked.h"
#include "model/trainer_internal.h"

enum { PROMPT_TOKENS = 8, SAMPLE_LIMIT = 1 << 22 };

static bool run_rows(struct trainer *t, struct loss_sum *sum, struct error *err)
{
    if (t->host_rows->n_rows == 0) return true;
    struct gpt_micro_batch m = gpt_rows_upload(t->host_rows, &t->device_rows, t->device);
    gpt_train_evaluate(&t->train, t->device, &m);
    gpt_rows_clear(t->host_rows);
    return trainer_sum_losses(t, m.batch.n_rows, sum, err);
}

/* Sequences spread evenly over the set: the same ones every time. */
static bool evaluate_set(struct trainer *t, const struct trainer_set *set, double *loss,
                         struct error *err)
{
    const struct train_config *c = &t->options.config;
    int64_t in_set = dataset_sequences(set->data, set->split), targets = 0;
    int64_t n = min_i64(c->eval_iters * c->batch_size, in_set);
    struct loss_sum sum = {0};
    gpt_rows_clear(t->host_rows);
    for (int64_t i = 0; i < n; i++) {
        int64_t index = (int64_t)((double)i * (double)in_set / (double)n);
        if (i > 0 && i % c->micro_batch_size == 0 && !run_rows(t, &sum, err)) return false;
        int64_t added = dataset_add(set->data, set->split, index, t->host_rows,
                                    &t->train.options);
        if (added < 0)
            return error_set(err, ERR_FORMAT, NULL, "evaluation set %s: sequence %lld does not fit "
                             "the model", set->name, (long long)index);
        targets += added;
    }
    if (!run_rows(t, &sum, err)) return false;
    if (targets == 0)
        return error_set(err, ERR_INVALID, NULL, "evaluation set %s has no token to predict",
                         set->name);
    *loss = sum.nll / (double)targets;
    return true;
}

/* ---- a sample ---- */

/* The token after the n in t->host_rows: one whole forward pass each, which for the few tokens of a
 * sample costs less than memory for their keys and values would. */
static bool next_token(struct trainer *t, int32_t *tokens, int32_t n, struct sample_out *out,
                       struct error *err)
{
    struct sample_params p;
    sample_params_init(&p);
    p.temperature = 0.8f;
    p.top_k = (int32_t)min_i64(50, t->gpt.config.vocab_size);
    p.seed = (uint64_t)t->options.config.seed + (uint64_t)t->state.step;
    struct sample_row row = {.params = &p, .history = tokens, .n_prompt = n, .n_history = n,
                             .forced = -1};
    struct gpt_micro_batch m = gpt_rows_upload(t->host_rows, &t->device_rows, t->device);
    gpt_train_evaluate(&t->train, t->device, &m);
    /* The last chunk's logits are still there. */
    struct tensor logits = t->train.logits;
    int64_t last = (n - 1) % t->train.options.loss_rows;
    logits.data = (float *)logits.data + last * logits.cols;
    logits.rows = 1;
    struct sample_request request; /* changes no logits */
    (void)sample_request_write(&row, logits.cols, NULL, NULL, 0, &request);
    t->device->ops->upload(t->device, &t->sampled->request, &request, sizeof request);
    t->device->ops->sample(t->device, logits, &t->sampled->request, NULL, &t->sampled->out);
    t->device->ops->download(t->device, out, &t->sampled->out, sizeof *out);
    return t->device->ops->sync(t->device, err);
}

static bool one_span(struct trainer *t, const int32_t *tokens, int32_t n)
{
    struct gpt_rows *r = t->host_rows;
    gpt_rows_clear(r);
    if (!gpt_rows_add(r, &t->train.options, tokens, tokens, n)) return false;
    for (int32_t i = 0; i < n; i++) r->targets[i] = -1;
    return true;
}

static void append_text(struct trainer *t, struct token_decoder *d, int32_t id, struct buf *text)
{
    size_t n;
    const char *bytes = token_decode(t->options.tokenizer, d, id, &n);
    if (bytes) buf_append(text, bytes, n);
}

/* Continues the beginning of the set's (or the data's) first sequence. */
static bool sample(struct trainer *t, struct buf *text, struct error *err)
{
    const struct trainer_options *o = &t->options;
    const struct dataset *data = o->n_sets > 0 ? o->sets[0].data : o->data;
    enum dataset_split split = o->n_sets > 0 ? o->sets[0].split : SPLIT_TRAIN;
    gpt_rows_clear(t->host_rows);
    if (dataset_add(data, split, 0, t->host_rows, &t->train.options) < 0)
        return error_set(err, ERR_FORMAT, NULL, "the first sequence does not fit the model");
    /* host_rows.tokens doubles as the text so far: gpt_rows_add copies it onto itself. */
    int32_t *tokens = t->host_rows->tokens;
    int32_t n = (int32_t)min_i64(PROMPT_TOKENS, t->host_rows->spans[0].n_rows);
    int64_t most = min_i64(n + o->config.sample_tokens, o->config.sequence_length);
    struct token_decoder decoder = {0};
    struct sample_out out;
    for (int32_t i = 0; i < n; i++) append_text(t, &decoder, tokens[i], text);
    while (n < most) {
        ASSERT(one_span(t, tokens, n));
        if (!next_token(t, tokens, n, &out, err)) return false;
        if (out.id == tokenizer_eos(o->tokenizer) || out.id == SAMPLE_NO_TOKEN) break;
        tokens[n++] = out.id;
        append_text(t, &decoder, out.id, text);
    }
    return buf_check(text, "the sample text", err);
}

/* ---- all of it ---- */

bool trainer_evaluate(struct trainer *t, struct trainer_evaluation *out, struct buf *text,
                      struct error *err)
{
    const struct trainer_options *o = &t->options;
    *out = (struct trainer_evaluation){.step = t->state.step, .n_sets = o->n_sets,
                                       .sets = o->sets};
    for (int32_t i = 0; i < o->n_sets; i++)
        if (!evaluate_set(t, &o->sets[i], &out->loss[i], err)) return false;
    buf_init(text, SAMPLE_LIMIT);
    if (!o->tokenizer || o->config.sample_tokens == 0) return true;
    if (!sample(t, text, err)) {
        buf_free(text);
        return false;
    }
    out->sample = text->data ? text->data : "";
    return true;
}

/* What is asked of the planner: see plan_request.h. */
#include "api/plan_request.h"

#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "base/options.h"
#include "model/gpt.h"

/* A modest CPU, where no other is named: two cores with AVX2 and two memory channels. Only the
 * order of plans and the estimate of a step's time rest on it. */
static const struct device_rates assumed_cpu = {
    .flops = 200e9, .bytes = 25e9, .source = "assumed: two cores with AVX2",
};

static const char cpu_overhead[] = "the program itself: what is resident before a model is "
                                   "opened, rounded up";
static const int64_t cpu_overhead_bytes = (int64_t)16 << 20;

#define NUMBER(key, most, text) {#key, offsetof(struct plan_request, key), most, NULL, text},
#define WORD(key, literals, text) {#key, offsetof(struct plan_request, key), 0, literals, text},
const struct plan_key plan_keys[N_PLAN_KEYS] = {PLAN_KEYS(NUMBER, WORD)};
#undef NUMBER
#undef WORD

/* ---- training -------------------------------------------------------------------------------- */

static const struct train_key *training_key(const char *name)
{
    for (size_t i = 0; i < N_TRAIN_KEYS; i++)
        if (strcmp(train_keys[i].name, name) == 0) return &train_keys[i];
    return NULL;
}

/* Training's keys that the request names, over what *c says. */
static bool read_keys(const struct plan_request *r, struct train_config *c, struct error *err)
{
    for (size_t i = 0; i < N_PLAN_KEYS; i++) {
        const struct plan_key *key = &plan_keys[i];
        const struct train_key *to = training_key(key->name);
        const void *from = (const char *)r + key->offset;
        if (!to) continue;
        if (key->words) {
            const char *word = *(const char *const *)from;
            /* Quantized weights generate; what trains them is another matter. */
            if (word && word[0] == 'q' && strcmp(key->name, "dtype") == 0) continue;
            if (word && !train_key_set_word(to, word, "the request", c, err)) return false;
        } else if (*(const int64_t *)from > 0) {
            *(int64_t *)((char *)c + to->offset) = *(const int64_t *)from;
        }
    }
    return true;
}

/* ---- the model ------------------------------------------------------------------------------- */

static bool read_model(const struct plan_request *r, struct plan_case *out, struct error *err)
{
    struct gpt_config *m = &out->question.model;
    if (r->known) {
        *m = *r->known;
        if (r->vocab_size > 0 || r->block_size > 0)
            return error_set(err, ERR_INVALID, r->block_size > 0 ? "block_size" : "vocab_size",
                             "%s exists already: its %s cannot be another", r->name,
                             r->block_size > 0 ? "block_size" : "vocab_size");
        return true;
    }
    if (!gpt_config_from_preset(r->config, r->n_config, r->name, m, err)) return false;
    if (r->block_size > 0) m->block_size = r->block_size;
    if (r->vocab_size > 0) m->vocab_size = r->vocab_size;
    if (m->vocab_size == 0) {
        m->vocab_size = PLAN_ASSUMED_VOCAB;
        out->assumed_vocab = true;
    }
    out->question.longer_context = true;
    return gpt_config_check(m, r->name, err);
}

/* How to train, where `usual` is the type unless the config or the request says another. */
static bool read_training(const struct plan_request *r, const struct gpt_config *model,
                          enum dtype usual, struct train_config *c, struct error *err)
{
    train_config_init(c);
    c->dtype = usual;
    return (!r->config || train_config_from_json(r->config, r->n_config, r->name, c, err))
           && read_keys(r, c, err) && train_config_check_model(c, model, err)
           && train_config_check(c, "the request", err);
}

static bool read_config(const struct plan_request *r, struct plan_case *out, struct error *err)
{
    struct fit_question *q = &out->question;
    if (!read_model(r, out, err)
        || !read_training(r, &q->model, DTYPE_BF16, &q->card_training, err)
        || !read_training(r, &q->model, out->on_cuda ? DTYPE_BF16 : DTYPE_F32, &q->training, err))
        return false;
    q->freedom = train_search_freedom(&q->training);
    return true;
}

/* ---- the device ------------------------------------------------------------------------------ */

static bool find_gpu(const char *name, struct gpu *out, struct error *err)
{
    int64_t bytes;
    const struct gpu *found = gpu_find(name);
    if (found) {
        *out = *found;
        return true;
    }
    if (options_parse_bytes(name, &bytes) && bytes > 0) {
        *out = gpu_of_size(name, bytes);
        return true;
    }
    const char *near = gpu_nearest(name);
    return error_set(err, ERR_INVALID, "gpu", "\"%.60s\" is neither a card that gptd knows nor a "
                     "size like 8GiB%s%s%s", name, near ? "; did you mean \"" : "",
                     near ? near : "", near ? "\"?" : "");
}

static bool read_device(const struct plan_request *r, const struct plan_devices *devices,
                        struct plan_case *out, struct error *err)
{
    struct fit_question *q = &out->question;
    bool is_cpu = r->device && strcmp(r->device, "cpu") == 0;
    if (r->gpu && is_cpu)
        return error_set(err, ERR_INVALID, "gpu", "a GPU is named, and the device is cpu: leave "
                         "one of them out");
    if (r->gpu && !find_gpu(r->gpu, &out->gpu, err)) return false;
    out->has_gpu = r->gpu != NULL;
    out->on_cuda = out->has_gpu || (r->device && !is_cpu);
    q->budget = r->memory_budget;
    if (!out->on_cuda) {
        q->device = devices->cpu;
        q->rates = assumed_cpu;
        out->overhead_bytes = cpu_overhead_bytes;
        out->overhead_source = cpu_overhead;
        return true;
    }
    struct gpu usual = out->has_gpu ? out->gpu : *gpu_find("RTX 3060");
    q->device = devices->cuda(usual.sm);
    q->rates = gpu_rates(&usual);
    out->overhead_bytes = gpu_context_bytes(&usual, &out->overhead_source);
    if (!out->has_gpu) return true;
    int64_t room = gpu_budget(&out->gpu);
    if (room == 0)
        return error_set(err, ERR_NO_FIT, "gpu", "%s has %lld bytes; a CUDA context alone takes "
                         "about %lld: name a card (\"RTX 3060\"), or give more memory (8GiB)",
                         out->gpu.name, (long long)out->gpu.memory_bytes,
                         (long long)out->overhead_bytes);
    q->budget = q->budget > 0 ? min_i64(q->budget, room) : room;
    return true;
}

static void read_serving(const struct plan_request *r, struct plan_case *out)
{
    struct engine_options *o = &out->question.serving;
    fit_serving_init(o);
    if (r->dtype) (void)dtype_parse(r->dtype, &o->dtype);
    else o->formats = r->formats;
    /* Its words were checked. */
    if (r->kv_dtype) ASSERT(gpt_kv_type_parse(r->kv_dtype, &o->kv_dtype));
    o->max_context = r->max_context;
    if (r->max_seqs > 0) o->max_seqs = (int32_t)r->max_seqs;
    if (r->max_batch_tokens > 0) o->max_batch_tokens = (int32_t)r->max_batch_tokens;
}

/* ---- the whole ------------------------------------------------------------------------------- */

static bool check_word(const struct plan_key *key, const char *word, struct error *err)
{
    char literal[40];
    int n = snprintf(literal, sizeof literal, "\"%s\"", word);
    if (*word && n < (int)sizeof literal && !strchr(word, '"') && strstr(key->words, literal))
        return true;
    return error_set(err, ERR_INVALID, key->name, "%s is \"%.40s\"; known are %s", key->name, word,
                     key->words);
}

/* Ranges and words, whoever gave them. */
static bool check_keys(const struct plan_request *r, struct error *err)
{
    for (size_t i = 0; i < N_PLAN_KEYS; i++) {
        const struct plan_key *key = &plan_keys[i];
        const void *at = (const char *)r + key->offset;
        if (key->words) {
            const char *word = *(const char *const *)at;
            if (word && !check_word(key, word, err)) return false;
        } else if (*(const int64_t *)at < 0 || *(const int64_t *)at > key->max) {
            return error_set(err, ERR_INVALID, key->name, "%s is %lld; it must be from 1 to %lld",
                             key->name, (long long)*(const int64_t *)at, (long long)key->max);
        }
    }
    return true;
}

static enum plan_purpose purpose_of(const char *word)
{
    if (word && strcmp(word, "training") == 0) return PLAN_TRAINING;
    return word && strcmp(word, "generation") == 0 ? PLAN_GENERATION : PLAN_BOTH;
}

bool plan_request_resolve(const struct plan_request *given, const struct plan_devices *devices,
                          struct plan_case *out, struct error *err)
{
    struct plan_request request = *given, *r = &request;
    *out = (struct plan_case){.name = r->name};
    if (!check_keys(r, err)) return false;
    /* Serving's word; training's has none. */
    if (r->dtype && strcmp(r->dtype, "auto") == 0) r->dtype = NULL;
    if (!read_device(r, devices, out, err) || !read_config(r, out, err)) return false;
    out->purpose = purpose_of(r->purpose);
    read_serving(r, out);
    if (!r->dtype) fit_half(&out->question);
    return true;
}

bool plan_case_fits(const struct plan_case *c, const struct fit_answer *a)
{
    return (a->training_fits || c->purpose == PLAN_GENERATION)
           && (a->generation_fits || c->purpose == PLAN_TRAINING);
}

int64_t plan_case_shortfall(const struct plan_case *c, const struct fit_answer *a)
{
    int64_t training = c->purpose == PLAN_GENERATION ? 0 : fit_shortfall_training(&c->question, a);
    int64_t generation = c->purpose == PLAN_TRAINING ? 0
                                                     : fit_shortfall_generation(&c->question, a);
    return max_i64(training, generation);
}

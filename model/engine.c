/* The engine's life: opening, the thread, closing.
 *
 * The thread goes round one loop, at its own pace:
 *
 *   collect    take what was submitted out of the locked inbox; sleep if there is nothing at all
 *   expire     end what was canceled, is past its deadline or meets shutdown;
 *              its pages are free now
 *   admit      in order of arrival, while slots are free and every page that a request may ever
 *              need can be reserved; the first that does not fit makes all others wait
 *   step       one row for each decoding choice, then chunks of prompts up to max_batch_tokens
 *              rows; one forward pass over all of them (weights are read once), sampling, sync;
 *              results go to the choices: tokens, ends, full pages to the prefix index
 *   deliver    publish the numbers, notify each owner once
 *
 * No row's bits depend on the other rows of a batch (model/device.h), and a token's random number
 * on nothing but seed, choice and position. So none of these decisions can change a reply. */
#include "model/engine.h"

#include <string.h>

#include "base/clock.h"
#include "model/engine_internal.h"

void engine_options_init(struct engine_options *o)
{
    *o = (struct engine_options){
        .dtype = DTYPE_BF16,
        .kv_dtype = KV_AUTO,
        .max_seqs = 16,
        .max_batch_tokens = 512,
        .max_queue = 256,
        .prefix_cache = true,
    };
}

const char *finish_reason_name(enum finish_reason r)
{
    switch (r) {
    case FINISH_NONE: return "none";
    case FINISH_STOP: return "stop";
    case FINISH_LENGTH: return "length";
    case FINISH_CANCELED: return "canceled";
    case FINISH_DEADLINE: return "deadline";
    case FINISH_SHUTDOWN: return "shutdown";
    case FINISH_ERROR: return "error";
    }
    return "unknown";
}

static void *engine_main(void *arg)
{
    struct engine *e = arg;
    bool closing;
    do {
        closing = engine_collect(e);
        engine_end_expired(e, closing);
        engine_admit(e);
        if (e->n_active > 0) {
            engine_publish_stats(e); /* a step may be long: who runs is known before it ends */
            engine_step(e);
        }
        engine_deliver(e);
    } while (!closing);
    return NULL;
}

/* Everything is in use from the start but the KV pool, and the staging of the load that is over. */
static void begin_stats(struct engine *e)
{
    struct engine_memory *m = &e->live.memory;
    memcpy(m->in_use, m->allocated, sizeof m->in_use);
    memcpy(m->peak, m->allocated, sizeof m->peak);
    m->in_use[MEMORY_KV_CACHE] = m->peak[MEMORY_KV_CACHE] = 0;
    m->in_use[MEMORY_STAGING] -= gpt_load_staging_bytes(&e->gpt);
    kv_pool_stats(e->pool, &e->live.kv);
    e->live.last_progress_ns = clock_ns();
    e->stats = e->live;
}

static bool start_thread(struct engine *e, struct error *err)
{
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->wake, NULL);
    int rc = pthread_create(&e->thread, NULL, engine_main, e);
    if (rc == 0) {
        pthread_setname_np(e->thread, "engine");
        return true;
    }
    pthread_mutex_destroy(&e->lock);
    pthread_cond_destroy(&e->wake);
    return error_set(err, ERR_MEMORY, NULL, "the engine's thread could not be started: %s",
                     strerror(rc));
}

bool engine_open(struct device *d, const struct checkpoint *ck, const struct tokenizer *t,
                 const struct engine_options *o, struct engine **out, struct error *err)
{
    struct engine draft = {.device = d, .tokenizer = t, .options = *o};
    draft.gpt.config = *checkpoint_config(ck);
    if (!checkpoint_fingerprint(ck, draft.fingerprint, err)) return false;
    struct engine *e = engine_allocate(&draft, err);
    if (!e) return false;
    if (!gpt_load(&e->gpt, d, ck, e->load_staging, err)) goto fail;
    engine_record_steps(e);
    if (!d->ops->sync(d, err)) goto fail;
    begin_stats(e);
    if (!start_thread(e, err)) goto fail;
    *out = e;
    return true;

fail:
    engine_free_recorded(e);
    engine_release(e);
    return false;
}

void engine_close(struct engine *e)
{
    if (!e) return;
    pthread_mutex_lock(&e->lock);
    e->closing = true;
    pthread_cond_signal(&e->wake);
    pthread_mutex_unlock(&e->lock);
    pthread_join(e->thread, NULL);
    pthread_mutex_destroy(&e->lock);
    pthread_cond_destroy(&e->wake);
    engine_free_recorded(e);
    engine_release(e);
}

const struct gpt_config *engine_config(const struct engine *e) { return &e->gpt.config; }
const struct tokenizer *engine_tokenizer(const struct engine *e) { return e->tokenizer; }
const char *engine_fingerprint(const struct engine *e) { return e->fingerprint; }
const struct weight_formats *engine_formats(const struct engine *e) { return e->gpt.kept; }
int64_t engine_max_context(const struct engine *e) { return e->options.max_context; }
int32_t engine_max_seqs(const struct engine *e) { return e->options.max_seqs; }

/* What a training job will take: see job_plan.h. */
#include "server/job_plan.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/checked.h"
#include "base/file.h"
#include "cpu/cpu.h"
#include "model/config.h"
#include "model/tokenizer_char.h"
#include "model/train_search.h"
#include "model/train_state.h"
#include "server/train_setup.h"

enum { CONFIG_LIMIT = 1 << 20, TOKENIZER_LIMIT = 64 << 20, NARROW_IDS = 65536 };

/* Two cores of a small machine: which of two plans is faster hardly depends on it. */
static const struct device_rates guessed_rates = {5e10, 1e10, "guessed"};

/* ---- the config ---- */

struct ft_key *job_find_key(struct ft_job *job, const char *name)
{
    for (int32_t i = 0; i < job->n_keys; i++)
        if (strcmp(job->keys[i].name, name) == 0) return &job->keys[i];
    return NULL;
}

const struct train_key *job_training_key(const char *name)
{
    for (size_t i = 0; i < N_TRAIN_KEYS; i++)
        if (strcmp(train_keys[i].name, name) == 0) return &train_keys[i];
    ASSERT(!"a training key by that name");
    return NULL;
}

/* What the trainer will make of a key. */
static bool apply_key(const struct ft_key *key, struct train_config *c, struct error *err)
{
    const struct train_key *k = job_training_key(key->name);
    void *at = (char *)c + k->offset;
    switch (k->type) {
    case TRAIN_INT: *(int64_t *)at = strtoll(key->value, NULL, 10); break;
    case TRAIN_DOUBLE: *(double *)at = strtod(key->value, NULL); break;
    case TRAIN_BOOL: *(bool *)at = strcmp(key->value, "true") == 0; break;
    case TRAIN_WORD: return train_key_set_word(k, key->value, "the job", c, err);
    }
    return true;
}

/* The preset's values, checked like the trainer does. */
static bool read_preset(const char *path, struct gpt_config *model, struct train_config *c,
                        struct error *err)
{
    struct buf json;
    buf_init(&json, CONFIG_LIMIT);
    bool ok = file_read(path, &json, err)
              && gpt_config_from_preset(json.data, json.len, path, model, err)
              && train_config_from_json(json.data, json.len, path, c, err);
    buf_free(&json);
    return ok;
}

bool job_config(const struct ft_job *job, struct gpt_config *model, struct train_config *c,
                struct error *err)
{
    struct gpt_config ignored;
    if (job->config_path[0]) train_config_init(c);
    else train_config_init_fine_tuning(c);
    if (job->config_path[0] && !read_preset(job->config_path, model ? model : &ignored, c, err))
        return false;
    for (int32_t i = 0; i < job->n_keys; i++)
        if (!apply_key(&job->keys[i], c, err)) return false;
    if (job->batch_size) c->batch_size = job->batch_size;
    if (job->seed >= 0) c->seed = job->seed;
    return train_config_check(c, "the job", err);
}

/* A run that goes on has all that it chose in its folder. */
static bool find_config(const struct ft_job *job, const struct job_files *files,
                        struct gpt_config *model, struct train_config *c, struct error *err)
{
    if (files->run_dir && train_state_read_config(files->run_dir, model, c, err)) return true;
    return job_config(job, model, c, err)
           && (!job->init_from[0] || train_setup_init_config(job->init_from, model, err));
}

/* As many as the text has different characters: exactly what the trainer will find. */
static bool count_characters(const char *path, int64_t *n, struct error *err)
{
    struct buf json;
    int32_t count;
    if (*n > 0) return true;
    buf_init(&json, TOKENIZER_LIMIT);
    bool ok = tokenizer_char_make(&path, 1, NULL, 0, &json, &count, err);
    buf_free(&json);
    if (ok) *n = count;
    return ok;
}

/* ---- the data ---- */

/* At most: a token a byte; of JSON lines also which tokens count, and where documents begin. */
static int64_t data_bound(const char *path, int64_t vocab_size)
{
    struct stat st;
    size_t n = path ? strlen(path) : 0;
    bool lines = n > 6 && strcmp(path + n - 6, ".jsonl") == 0;
    int64_t bytes;
    if (!path || stat(path, &st) != 0) return 0;
    return checked_mul(st.st_size, (vocab_size > NARROW_IDS ? 4 : 2) + (lines ? 2 : 0), &bytes)
               ? bytes
               : INT64_MAX / 4;
}

/* The planner was told of no data: these, and the spans of many short documents in a batch. */
static bool add_data(const struct job_files *files, const struct train_config *c,
                     int64_t vocab_size, struct memory_plan *m, struct error *err)
{
    int64_t spans = c->micro_batch_size * c->sequence_length * 2 * (int64_t)sizeof(struct span);
    int64_t data = data_bound(files->training, vocab_size)
                   + data_bound(files->validation, vocab_size);
    m->component[MEMORY_STAGING] += spans;
    m->component[MEMORY_DATA] += data;
    return (checked_add(m->total_bytes, spans, &m->total_bytes)
            && checked_add(m->total_bytes, data, &m->total_bytes))
           || error_set(err, ERR_NO_FIT, NULL, "the job would need more than 2^63 bytes");
}

/* ---- the plan ---- */

/* Of the choices the fastest that fits, or the smallest. */
static bool search(const struct trainer_options *o, const struct device *d, unsigned freedom,
                   int64_t room, struct memory_plan *out, struct train_config *chosen,
                   struct error *err)
{
    struct train_search s;
    if (!train_search(o, d, &guessed_rates, freedom, max_i64(1, room), &s, err)) return false;
    const struct train_choice *best = &s.choices[0];
    for (int32_t i = 1; s.n_fit == 0 && i < s.n; i++)
        if (s.choices[i].memory.total_bytes < best->memory.total_bytes) best = &s.choices[i];
    *out = best->memory;
    *chosen = best->config;
    train_search_free(&s);
    return true;
}

static bool plan_on(const struct device *d, struct trainer_options *o, unsigned freedom,
                    const struct job_files *files, int64_t room, struct memory_plan *out,
                    struct error *err)
{
    int64_t vocab = o->model.vocab_size;
    if (!trainer_plan(o, d, NULL, NULL, out, err) || !add_data(files, &o->config, vocab, out, err))
        return false;
    if (out->total_bytes <= room || freedom == 0) return true;
    struct memory_plan none = {0};
    return add_data(files, &o->config, vocab, &none, err)
           && search(o, d, freedom, room - none.total_bytes, out, &o->config, err)
           && add_data(files, &o->config, vocab, out, err);
}

bool job_plan(const struct ft_job *job, struct job_files *files, int64_t threads, int64_t room,
              struct job_need *out, struct error *err)
{
    struct trainer_options o = {0};
    struct device *d;
    struct cpu_options cpu = {.n_threads = (int32_t)threads, .isa = CPU_ISA_BEST};
    if (!find_config(job, files, &o.model, &o.config, err)) return false;
    if (o.model.vocab_size == 0) {
        if (!count_characters(files->training, &files->n_characters, err)) return false;
        o.model.vocab_size = files->n_characters;
    }
    unsigned freedom = train_search_freedom(&o.config);
    if (!gpt_config_check(&o.model, "the job", err)
        || !train_config_check_model(&o.config, &o.model, err))
        return false;
    train_config_resolve(&o.config, o.model.block_size, o.model.vocab_size);
    o.model.dropout = (float)o.config.dropout;
    if (!cpu_device_open(&cpu, &d, err)) return false;
    struct gpt typed; /* asked only whether the device computes so */
    bool ok = gpt_set_type(&typed, o.config.dtype, d, err)
              && plan_on(d, &o, freedom, files, room - JOB_PROGRAM_BYTES, &out->memory, err);
    d->ops->close(d);
    return ok
           && (checked_add(out->memory.total_bytes, JOB_PROGRAM_BYTES, &out->total_bytes)
               || error_set(err, ERR_NO_FIT, NULL, "the job would need more than 2^63 bytes"));
}

bool job_no_room(const struct job_need *need, int64_t room, const char *when, struct error *err)
{
    const int64_t *c = need->memory.component;
    int64_t states = c[MEMORY_WEIGHTS] + c[MEMORY_MASTER] + c[MEMORY_GRADIENTS]
                     + c[MEMORY_OPTIMIZER];
    int64_t activations = c[MEMORY_ACTIVATIONS] + c[MEMORY_LOGITS];
    return error_set(err, ERR_NO_ROOM, "model",
                     "the job needs %lld bytes at the least (weights and master %lld, gradients "
                     "%lld, optimizer %lld, activations and logits %lld, data at most %lld, the "
                     "rest %lld); %lld are there for training, %lld too few: %s",
                     (long long)need->total_bytes,
                     (long long)(c[MEMORY_WEIGHTS] + c[MEMORY_MASTER]),
                     (long long)c[MEMORY_GRADIENTS], (long long)c[MEMORY_OPTIMIZER],
                     (long long)activations, (long long)c[MEMORY_DATA],
                     (long long)(need->total_bytes - states - activations - c[MEMORY_DATA]),
                     (long long)room, (long long)(need->total_bytes - room), when);
}

/* The job's object, out and in, and its events and checkpoints: see fine_tuning.h. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/fine_tuning.h"
#include "api/json_out.h"
#include "base/json.h"
#include "model/train_config.h"

enum { JOB_JSON_DEPTH = 8 };

static const char *const state_names[] = {
    "validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled",
};
enum { N_STATES = sizeof state_names / sizeof *state_names };

const char *job_state_name(enum job_state s) { return state_names[s]; }

/* ---- out ------------------------------------------------------------------------------------- */

/* "key":text, or null for "". */
static void text(struct buf *out, const char *key, const char *value)
{
    buf_printf(out, ",\"%s\":", key);
    json_out_text(out, value[0] ? value : NULL);
}

static void number_or(struct buf *out, const char *key, int64_t value, const char *zero)
{
    if (value) buf_printf(out, ",\"%s\":%" PRId64, key, value);
    else buf_printf(out, ",\"%s\":%s", key, zero);
}

static void render_hyperparameters(const struct ft_job *job, struct buf *out)
{
    buf_puts(out, "{\"learning_rate_multiplier\":");
    if (job->learning_rate_multiplier > 0) json_out_double(out, job->learning_rate_multiplier);
    else buf_puts(out, "\"auto\"");
    number_or(out, "n_epochs", job->n_epochs, "\"auto\"");
    number_or(out, "batch_size", job->batch_size, "\"auto\"");
    buf_putc(out, '}');
}

static void render_keys(const struct ft_job *job, struct buf *out)
{
    buf_puts(out, ",\"training\":{");
    for (int32_t i = 0; i < job->n_keys; i++) {
        const struct ft_key *k = &job->keys[i];
        buf_printf(out, k->is_word ? "%s\"%s\":\"%s\"" : "%s\"%s\":%s", i ? "," : "", k->name,
                   k->value);
    }
    buf_putc(out, '}');
}

static void render_error(const struct ft_job *job, struct buf *out)
{
    if (!job->error_message[0]) {
        buf_puts(out, ",\"error\":null");
        return;
    }
    buf_puts(out, ",\"error\":{\"code\":");
    json_out_text(out, job->error_code);
    text(out, "message", job->error_message);
    buf_puts(out, ",\"param\":null}");
}

void ft_job_render(const struct ft_job *job, struct buf *out)
{
    buf_puts(out, "{\"id\":");
    json_out_text(out, job->id);
    buf_printf(out, ",\"object\":\"fine_tuning.job\",\"created_at\":%" PRId64, job->created_at);
    number_or(out, "started_at", job->started_at, "null");
    number_or(out, "finished_at", job->finished_at, "null");
    text(out, "status", job_state_name(job->state));
    text(out, "model", job->model);
    text(out, "fine_tuned_model", job->fine_tuned_model);
    text(out, "suffix", job->suffix);
    text(out, "training_file", job->training_file);
    text(out, "validation_file", job->validation_file);
    buf_printf(out, ",\"seed\":%" PRId64 ",\"hyperparameters\":", job->seed);
    render_hyperparameters(job, out);
    buf_puts(out, ",\"method\":{\"type\":\"supervised\",\"supervised\":{\"hyperparameters\":");
    render_hyperparameters(job, out);
    buf_puts(out, "}}");
    render_keys(job, out);
    render_error(job, out);
    text(out, "queued_reason", job->state == JOB_QUEUED ? job->queued_reason : "");
    buf_printf(out, ",\"metadata\":%s", job->metadata[0] ? job->metadata : "null");
    buf_printf(out, ",\"step\":%" PRId64, job->step);
    buf_puts(out, ",\"trainer\":{\"config\":");
    json_out_text(out, job->config_path[0] ? job->config_path : NULL);
    text(out, "init_from", job->init_from);
    text(out, "input", job->training_path);
    text(out, "val_input", job->validation_path);
    buf_puts(out, "},\"organization_id\":\"\",\"result_files\":[]");
    number_or(out, "trained_tokens", job->trained_tokens, "null");
    number_or(out, "estimated_finish", job->state == JOB_RUNNING ? job->estimated_finish : 0,
              "null");
    buf_puts(out, ",\"integrations\":[]}");
}

void ft_event_render(const struct ft_event *e, struct buf *out)
{
    buf_puts(out, "{\"id\":");
    json_out_text(out, e->id);
    buf_printf(out, ",\"object\":\"fine_tuning.job.event\",\"created_at\":%" PRId64,
               e->created_at);
    text(out, "level", e->level);
    text(out, "type", e->type);
    buf_puts(out, ",\"message\":");
    json_out_text(out, e->message);
    buf_printf(out, ",\"data\":%s}", e->data ? e->data : "null");
}

static void metric(struct buf *out, const char *key, double value)
{
    if (isnan(value)) return;
    buf_printf(out, ",\"%s\":", key);
    json_out_double(out, value);
}

void ft_model_name(const struct ft_job *job, char out[FT_NAME_MAX])
{
    if (job->suffix[0]) snprintf(out, FT_NAME_MAX, "%s", job->suffix);
    else snprintf(out, FT_NAME_MAX, "ft:%.12s", job->id + strlen("ftjob-"));
}

void ft_checkpoint_name(const struct ft_job *job, int64_t step, char out[FT_CHECKPOINT_NAME_MAX])
{
    snprintf(out, FT_CHECKPOINT_NAME_MAX, "%.64s:%.12s:ckpt-step-%" PRId64,
             job->suffix[0] ? job->suffix : "ft", job->id + strlen("ftjob-"), step);
}

bool ft_checkpoint_step(const struct ft_job *job, const char *name, int64_t *step)
{
    char own[FT_CHECKPOINT_NAME_MAX];
    const char *dash = strrchr(name, '-');
    if (!dash || dash[1] < '0' || dash[1] > '9') return false;
    *step = strtoll(dash + 1, NULL, 10);
    ft_checkpoint_name(job, *step, own);
    return strcmp(name, own) == 0;
}

void ft_checkpoint_render(const struct ft_job *job, const struct ft_checkpoint *c,
                          struct buf *out)
{
    char name[FT_CHECKPOINT_NAME_MAX];
    ft_checkpoint_name(job, c->step, name);
    buf_printf(out, "{\"id\":\"ftckpt-%.32s-%" PRId64 "\",\"object\":\"fine_tuning.job.checkpoint\""
               ",\"created_at\":%" PRId64 ",\"fine_tuning_job_id\":",
               job->id, c->step, c->created_at);
    json_out_text(out, job->id);
    text(out, "fine_tuned_model_checkpoint", name);
    text(out, "root", c->path);
    buf_printf(out, ",\"step_number\":%" PRId64 ",\"metrics\":{\"step\":%" PRId64, c->step,
               c->step);
    metric(out, "train_loss", c->train_loss);
    metric(out, "valid_loss", c->valid_loss);
    buf_puts(out, "}}");
}

/* ---- in -------------------------------------------------------------------------------------- */

/* A member that is text, or null or absent for "". */
static bool take_text(const struct cJSON *root, const char *key, char *out, size_t size)
{
    const struct cJSON *item = json_get(root, key);
    out[0] = 0;
    if (!item || cJSON_IsNull(item)) return true;
    if (!cJSON_IsString(item) || strlen(item->valuestring) >= size) return false;
    strcpy(out, item->valuestring);
    return true;
}

/* A member that is an integer, or null, "auto" or absent for 0. */
static bool take_int(const struct cJSON *root, const char *key, int64_t *out)
{
    const struct cJSON *item = json_get(root, key);
    *out = 0;
    if (!item || cJSON_IsNull(item) || cJSON_IsString(item)) return true;
    return json_to_i64(item, out);
}

static bool take_state(const struct cJSON *root, enum job_state *out)
{
    const struct cJSON *item = json_get(root, "status");
    if (!cJSON_IsString(item)) return false;
    for (int i = 0; i < N_STATES; i++)
        if (strcmp(item->valuestring, state_names[i]) == 0) {
            *out = (enum job_state)i;
            return true;
        }
    return false;
}

static const char *known_key(const char *name)
{
    for (size_t i = 0; i < N_TRAIN_KEYS; i++)
        if (strcmp(train_keys[i].name, name) == 0) return train_keys[i].name;
    return NULL;
}

/* Values go to a command line: nothing but what ft_request_parse lets through. */
static bool take_key(const struct cJSON *item, struct ft_key *out)
{
    *out = (struct ft_key){.name = known_key(item->string)};
    if (!out->name) return false;
    if (cJSON_IsBool(item)) {
        strcpy(out->value, cJSON_IsTrue(item) ? "true" : "false");
    } else if (cJSON_IsNumber(item)) {
        snprintf(out->value, sizeof out->value, "%.17g", item->valuedouble);
    } else if (cJSON_IsString(item) && strlen(item->valuestring) < sizeof out->value) {
        out->is_word = true;
        strcpy(out->value, item->valuestring);
        return strspn(out->value, "abcdefghijklmnopqrstuvwxyz0123456789_") == strlen(out->value);
    } else {
        return false;
    }
    return true;
}

static bool take_keys(const struct cJSON *root, struct ft_job *job)
{
    const struct cJSON *item;
    cJSON_ArrayForEach(item, json_get(root, "training")) {
        if (job->n_keys == FT_MAX_KEYS || !take_key(item, &job->keys[job->n_keys])) return false;
        job->n_keys++;
    }
    return true;
}

static bool take_metadata(const struct cJSON *root, struct ft_job *job)
{
    const struct cJSON *item = json_get(root, "metadata");
    if (!cJSON_IsObject(item)) return true;
    char *json = cJSON_PrintUnformatted(item);
    bool ok = json && strlen(json) < sizeof job->metadata;
    if (ok) strcpy(job->metadata, json);
    cJSON_free(json);
    return ok;
}

#define TEXT(object, key, member) take_text(object, key, job->member, sizeof job->member)

static bool take_job(const struct cJSON *root, struct ft_job *job)
{
    const struct cJSON *hyper = json_get(root, "hyperparameters"), *error = json_get(root, "error");
    const struct cJSON *trainer = json_get(root, "trainer");
    const struct cJSON *multiplier = json_get(hyper, "learning_rate_multiplier");
    if (cJSON_IsNumber(multiplier)) job->learning_rate_multiplier = multiplier->valuedouble;
    return TEXT(root, "id", id) && TEXT(root, "model", model) && TEXT(root, "suffix", suffix)
           && TEXT(root, "training_file", training_file)
           && TEXT(root, "validation_file", validation_file)
           && TEXT(root, "fine_tuned_model", fine_tuned_model)
           && take_state(root, &job->state) && take_int(root, "created_at", &job->created_at)
           && take_int(root, "started_at", &job->started_at)
           && take_int(root, "finished_at", &job->finished_at)
           && take_int(root, "seed", &job->seed) && take_int(root, "step", &job->step)
           && take_int(root, "trained_tokens", &job->trained_tokens)
           && take_int(hyper, "n_epochs", &job->n_epochs)
           && take_int(hyper, "batch_size", &job->batch_size) && take_keys(root, job)
           && take_metadata(root, job) && TEXT(error, "code", error_code)
           && TEXT(error, "message", error_message) && TEXT(trainer, "config", config_path)
           && TEXT(trainer, "init_from", init_from) && TEXT(trainer, "input", training_path)
           && TEXT(trainer, "val_input", validation_path) && job->id[0] && job->training_path[0];
}

bool ft_job_parse(const char *json, size_t n, const char *where, struct ft_job *out,
                  struct error *err)
{
    struct cJSON *root = json_parse(json, n, JOB_JSON_DEPTH, where, err);
    if (!root) return false;
    *out = (struct ft_job){0};
    bool ok = take_job(root, out);
    cJSON_Delete(root);
    return ok || error_set(err, ERR_FORMAT, NULL, "%s: not a job that gptd wrote", where);
}

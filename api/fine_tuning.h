/* Fine-tuning jobs as OpenAI's API shows them: the body that creates one, and the job's object. The
 * object is also what job.json holds, so that a job is read back from what the API said of it.
 *
 *                 validating_files
 *                        │
 *    create ──────────▶ queued ──start──▶ running ──exit 0──▶ succeeded
 *                        ▲ │ │              │ │ └──exit, signal──▶ failed
 *               resume   │ │ └──── cancel ──┼─┴────────────▶ cancelled
 *                        │ └──── pause ───┐ │ pause
 *                      paused ◀───────────┴─┘
 *
 * A server that ends or dies leaves queued and running jobs as they are; the next one queues
 * them. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "api/api.h"
#include "base/arena.h"
#include "base/buf.h"
#include "base/error.h"

struct cJSON;
struct param;

enum job_state {
    JOB_VALIDATING,
    JOB_QUEUED,
    JOB_RUNNING,
    JOB_PAUSED,
    JOB_SUCCEEDED,
    JOB_FAILED,
    JOB_CANCELLED,
};
const char *job_state_name(enum job_state s);
static inline bool job_state_is_final(enum job_state s) { return s >= JOB_SUCCEEDED; }

enum { FT_MAX_KEYS = 48, FT_ID_MAX = 48, FT_NAME_MAX = 96 };

/* One training key as the client gave it: a word, a number or a boolean, as text that is fit for
 * a flag and, quoted if it is a word, for JSON. */
struct ft_key {
    const char *name; /* of the table of training keys */
    bool is_word;
    char value[40];
};

/* The body of POST /v1/fine_tuning/jobs: checked as far as one can without files and models. */
struct ft_request {
    const char *model, *training_file;
    const char *validation_file, *suffix, *metadata; /* NULL: not given. metadata: JSON */
    int64_t seed;                                    /* -1: not given */
    int64_t n_epochs;                                /* 0: not given, or "auto" */
    int64_t batch_size;                              /* 0 */
    double learning_rate_multiplier;                 /* 0 */
    struct ft_key keys[FT_MAX_KEYS];                 /* all else that tells the trainer something */
    int32_t n_keys;
    bool has_top_hyperparameters, has_method; /* to refuse both */
};
/* Strings live in `arena`. Errors as params_parse's. */
bool ft_request_parse(const struct api_limits *l, const char *body, size_t n, struct arena *arena,
                      struct ft_request *out, struct error *err) MUST_CHECK;
/* The rows behind it, for /openapi.json. */
const struct param *ft_param_table(size_t *n);

/* A job. Plain values, nothing to free. */
struct ft_job {
    char id[FT_ID_MAX];              /* "ftjob-..." */
    char model[128];                 /* what was asked for */
    char suffix[FT_NAME_MAX];        /* "": none */
    char training_file[FT_ID_MAX], validation_file[FT_ID_MAX]; /* ids; "": none */
    char fine_tuned_model[FT_NAME_MAX]; /* its name, once it has succeeded; "" before */
    enum job_state state;
    int64_t created_at, started_at, finished_at; /* Unix seconds; 0: not yet */
    int64_t seed;
    int64_t n_epochs, batch_size;    /* 0: auto */
    double learning_rate_multiplier; /* 0: auto */
    struct ft_key keys[FT_MAX_KEYS];
    int32_t n_keys;
    char metadata[2048];             /* JSON object; "": none */
    int64_t step;                    /* last one that metrics.jsonl told of */
    int64_t estimated_finish;        /* Unix seconds, while it runs; 0: no pace is known yet */
    int64_t trained_tokens;          /* of all its steps, once it has succeeded; 0: not known */
    char error_code[32], error_message[512]; /* "": none */
    char queued_reason[512];         /* why it does not start yet; "": its turn has not come */
    /* How the trainer is started. */
    char config_path[1024], init_from[1024]; /* one of them is "" */
    char training_path[64], validation_path[64]; /* in the job's folder; "": none */
};
void ft_job_render(const struct ft_job *job, struct buf *out);
bool ft_job_parse(const char *json, size_t n, const char *where, struct ft_job *out,
                  struct error *err) MUST_CHECK;

/* {"object":"fine_tuning.job.event",...} with `data`, JSON, or NULL. */
struct ft_event {
    char id[64];
    int64_t created_at;
    const char *level;   /* "info", "warn", "error" */
    const char *type;    /* "message", "metrics" */
    const char *message;
    const char *data;
};
void ft_event_render(const struct ft_event *e, struct buf *out);

/* The name of the model that the job makes: its suffix, or "ft:" and a part of its id. */
void ft_model_name(const struct ft_job *job, char out[FT_NAME_MAX]);
/* The name by which a checkpoint is a model: "SUFFIX:ID:ckpt-step-N", or "ft:ID:ckpt-step-N"; ID,
 * a part of the job's, since a job that failed leaves its suffix to others. */
enum { FT_CHECKPOINT_NAME_MAX = 128 };
void ft_checkpoint_name(const struct ft_job *job, int64_t step, char out[FT_CHECKPOINT_NAME_MAX]);
/* Is `name` one of the job's checkpoints', there or not? Then its step. */
bool ft_checkpoint_step(const struct ft_job *job, const char *name, int64_t *step);

struct ft_checkpoint {
    const char *path; /* of its folder */
    int64_t step, created_at;
    double train_loss, valid_loss; /* NaN: not known */
};
void ft_checkpoint_render(const struct ft_job *job, const struct ft_checkpoint *c,
                          struct buf *out);

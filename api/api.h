/* JSON in, JSON out: what the routes mean, without a socket in sight. server/ turns bytes from a
 * connection into these calls and their replies into HTTP.
 *
 * Everything here is strict: unknown or unsupported parameters, duplicate keys, numbers that are
 * not finite or not integers where integers belong are ERR_INVALID with error.param naming the
 * parameter. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/error.h"
#include "model/engine.h"

struct chat_template; /* api/chat.h */
struct api_registry;  /* api/registry.h */

struct api_limits {
    size_t body_bytes;       /* default 4 MiB; server/ enforces it while reading */
    int32_t json_depth;      /* 32 */
    int32_t max_n;           /* n and best_of: 16 */
    int32_t max_prompts;     /* prompts in one request: 64 */
    int32_t max_prompt_tokens; /* 0: the context */
    int64_t deadline_ms;     /* 0: none; else every request's */
    int64_t reply_bytes; /* what one request may hold for tokens and log-probabilities: 64 MiB */
    int32_t default_max_tokens; /* completions: 16 as OpenAI's; chat without max_tokens: what the
                                   context leaves */
};
void api_limits_init(struct api_limits *l);

/* What the routes work on. Read-only once serving: any thread. With a registry the routes find
 * their model there (api_acquire), and of the server's own context only that and the limits
 * count. */
struct api_context {
    struct engine *engine;
    const char *model_id;    /* the name clients use */
    const char *model_path;  /* for /v1/models: "root"; may be NULL */
    int64_t created;         /* Unix seconds */
    struct api_limits limits;
    const char *device_name; /* "cpu", "cuda:0": for /v1/memory; NULL: "cpu" */
    const struct chat_template *chat; /* NULL: the model has no tokenizer */
    struct api_registry *registry; /* NULL: this is the one model */
};

/* HTTP status for an error: the one table. */
int api_error_status(enum error_code code);
/* What a client may read of it: a bug's or a disk's text, which may name addresses and files, is
 * for the log, and another stands for it. */
const char *api_error_text(const struct error *err);
/* {"error":{"message","type","param","code"}} */
void api_render_error(struct buf *out, const struct error *err);

/* Whole replies (JSON) for routes that answer at once; the body is `n` bytes of a POST. */
/* A model that is not loaded but could be: what a training job left. */
struct api_available {
    char id[128], path[1024];
    int64_t created;
};
/* GET /v1/models: those that are loaded, then `more`. */
void api_models(const struct api_context *c, const struct api_available *more, size_t n_more,
                struct buf *out);
/* One of `more`. */
void api_render_available(const struct api_available *m, struct buf *out);
/* The body of POST /v1/models/load. */
struct api_load { const char *model, *id; }; /* id: NULL when not given; in the arena */
struct arena;
bool api_load_parse(const struct api_limits *l, const char *body, size_t n, struct arena *arena,
                    struct api_load *out, struct error *err) MUST_CHECK;
struct param;
const struct param *api_load_param_table(size_t *n);
bool api_model(const struct api_context *c, const char *id, struct buf *out,
               struct error *err) MUST_CHECK; /* GET /v1/models/{id} */
bool api_tokenize(const struct api_context *c, const char *body, size_t n, struct buf *out,
                  struct error *err) MUST_CHECK;
bool api_detokenize(const struct api_context *c, const char *body, size_t n, struct buf *out,
                    struct error *err) MUST_CHECK;

/* The process's own bytes, read by server/. Of what is beyond the program itself and the arenas,
 * some is known by kind. */
struct api_process_memory {
    int64_t rss_bytes, peak_rss_bytes;
    int64_t baseline_bytes; /* RSS just before the model was opened: the program itself */
    int64_t heap_bytes;     /* what malloc has given out, now, but for
                               the arenas: tokenizers, HTTP, requests */
    int64_t heap_free_bytes; /* what malloc holds for later; not all of it need be resident */
    int64_t file_bytes;     /* mapped files beyond the baseline's: libraries, code touched since */
};

/* A training job that runs. */
struct api_job_memory {
    char id[48];
    bool reported; /* the trainer has told its plan; else it is the server's own */
    int64_t planned[N_MEMORY_COMPONENTS], planned_bytes; /* they sum to planned_bytes */
    int64_t rss_bytes, peak_rss_bytes; /* as the kernel counts them */
    int64_t baseline_bytes;            /* the trainer's program itself; 0: not known yet */
};

/* What was there at a moment. */
struct api_memory_sample {
    int64_t time; /* Unix seconds */
    int64_t rss_bytes, resident_bytes; /* the process; of it, the engines' arenas */
    int64_t kv_in_use_bytes;           /* all models */
    int64_t jobs_rss_bytes;
};

struct api_memory_view {
    struct api_process_memory process;
    int64_t resident_bytes; /* of the engines' arenas, as the kernel counts them */
    const struct device_memory *driver; /* of a GPU; NULL: the device's memory is the process's */
    const struct api_job_memory *jobs;
    size_t n_jobs;
    const struct api_memory_sample *history; /* oldest first; NULL: not asked for */
    size_t n_history;
    int64_t history_interval_s;
};
/* GET /v1/memory: per device, planned, allocated, in_use and peak bytes by component; KV pages; RSS
 * and what no component explains; training jobs. */
void api_memory(const struct api_context *c, const struct api_memory_view *v, struct buf *out);
/* What no plan and no kind explains; negative where memory that was given out has not been
 * touched. */
int64_t api_unexplained_bytes(const struct api_process_memory *p, int64_t allocated_bytes);
/* Bytes of the engines' arenas that lie in the process: not those on a GPU. */
int64_t api_process_arena_bytes(const struct api_memory_view *v, const struct engine_memory *m);
/* In use on the GPU beyond what was there at the start and what the models have. */
int64_t api_driver_unexplained_bytes(const struct device_memory *driver,
                                     const struct engine_memory *m);
int64_t api_job_unexplained_bytes(const struct api_job_memory *j);

/* Who may use a route, of a server that has keys. 0 is the strictest. */
enum api_access { API_ACCESS_ADMIN = 0, API_ACCESS_USER, API_ACCESS_OPEN };
/* Asked of each operation, by method (in any case) and path. */
typedef enum api_access (*api_access_fn)(const char *method, const char *path);
/* GET /openapi.json: OpenAPI 3.1. */
void api_openapi(const struct api_context *c, api_access_fn access, struct buf *out);

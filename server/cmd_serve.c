/* `gptd serve`: a model over HTTP, until SIGINT or SIGTERM. */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "server/auth.h"
#include "server/command.h"
#include "server/guard.h"
#include "server/http.h"
#include "server/jobs.h"
#include "server/listen.h"
#include "server/models.h"
#include "server/notify.h"
#include "server/process.h"
#include "server/signals.h"
#include "server/tls.h"
#include "server/watchdog.h"

struct serve_options {
    struct option_list models;
    struct model_options model;
    struct http_options http;
    struct api_limits limits;
    struct jobs_options jobs;
    struct auth_options keys;
    const char *data_dir, *models_dir;
    int64_t max_n, max_prompt_tokens, request_timeout_s, drain_timeout_s;
    const char *tls_cert, *tls_key;
    const char *log_level, *log_format;
    bool auth, hint, exit_on_stall;
};

enum { N_SERVE_OPTIONS = 41, MAX_BODY = 1 << 30, MAX_RATE = 1 << 30 };
static const int64_t DEFAULT_MAX_UPLOAD = (int64_t)512 << 20, MAX_UPLOAD = (int64_t)1 << 42;

static void options_init(struct serve_options *o)
{
    *o = (struct serve_options){
        .http = {.host = "127.0.0.1", .port = 8080, .threads = 2, .max_header = 16 << 10,
                 .max_connections = 1024, .max_connections_per_address = 512, .log_requests = true,
                 .stall_timeout_s = 60,
                 .times = {.idle_s = 60, .header_s = 30, .body_s = 60, .send_s = 60}},
        .request_timeout_s = 600,
        .drain_timeout_s = 30,
        .log_level = "info",
        .log_format = "text",
        .auth = true,
    };
    model_options_init(&o->model);
    api_limits_init(&o->limits);
    jobs_options_init(&o->jobs);
    o->data_dir = "gptd-data";
    o->models_dir = "models";
    o->http.max_upload = DEFAULT_MAX_UPLOAD;
    o->http.max_body = (int64_t)o->limits.body_bytes;
    o->max_n = o->limits.max_n;
    o->max_prompt_tokens = o->limits.max_prompt_tokens;
}

/* Fills table[]; returns how many entries. */
static size_t options_table(struct serve_options *o, struct option *table)
{
    const struct option before[] = {
        {"model", OPTION_LIST, &o->models, 0, 0, "[NAME=]PATH",
         "A Hugging Face directory or a .gguf file; clients call it NAME, or what PATH ends in. "
         "Given several times, the first is who answers requests that name none."},
        {"host", OPTION_STRING, &o->http.host, 0, 0, "ADDRESS",
         "Where to listen; unix:PATH for a Unix socket."},
        {"port", OPTION_INT, &o->http.port, 0, 65535, "N", "0: any free one, which is printed."},
        {"auth", OPTION_FLAG, &o->auth, 0, 0, NULL,
         "Listen on addresses that other machines reach, with no keys: anyone may use the model."},
        {"api-key-file", OPTION_STRING, &o->keys.user_file, 0, 0, "PATH",
         "Users' keys, one a line (KEY or KEY NAME), as gptd key new prints them; read again on "
         "SIGHUP."},
        {"admin-key-file", OPTION_STRING, &o->keys.admin_file, 0, 0, "PATH",
         "The same for admins, who may also upload, train, and load models."},
        {"requests-per-minute", OPTION_INT, &o->keys.limits.requests_per_minute, 0, MAX_RATE, "N",
         "Of each user's key; more get 429. 0: no limit."},
        {"tokens-per-minute", OPTION_INT, &o->keys.limits.tokens_per_minute, 0, MAX_RATE, "N",
         "Of each user's key, prompts and new ones; more get 429. 0: no limit."},
        {"requests-at-once", OPTION_INT, &o->keys.limits.concurrent, 0, 65536, "N",
         "Of each user's key; more get 429. 0: no limit."},
        {"share-prefix-cache", OPTION_FLAG, &o->http.share_prefix_cache, 0, 0, NULL,
         "Let one key's prompts be reused for another's: faster, and the time to a first token "
         "tells what others have asked."},
        {"allowed-host", OPTION_LIST, &o->http.allowed_hosts, 0, 0, "NAME",
         "A name besides localhost in the Host header of requests, when only this machine is "
         "listened to."},
        {"cors-origin", OPTION_LIST, &o->http.cors_origins, 0, 0, "ORIGIN",
         "Whose pages a browser lets read replies: https://example.org, or * for any."},
    };
    const struct option after[] = {
        {"tls-cert", OPTION_STRING, &o->tls_cert, 0, 0, "FILE",
         "Serve HTTPS with this certificate chain (PEM); read again on SIGHUP."},
        {"tls-key", OPTION_STRING, &o->tls_key, 0, 0, "FILE", "The certificate's key (PEM)."},
        {"max-body", OPTION_BYTES, &o->http.max_body, 1, MAX_BODY, "SIZE",
         "Of a request's body; more gets 413."},
        {"max-header", OPTION_BYTES, &o->http.max_header, 1024, 1 << 20, "SIZE",
         "Of a request's headers; more gets 431."},
        {"max-connections", OPTION_INT, &o->http.max_connections, 1, 65536, "N",
         "Open at once; beyond, the longest idle is closed, and where none is idle 503 is said."},
        {"max-connections-per-address", OPTION_INT, &o->http.max_connections_per_address, 0, 65536,
         "N", "Open at once from one address; more are closed. 0: no limit."},
        {"max-n", OPTION_INT, &o->max_n, 1, 4096, "N", "Choices of one request, and best_of."},
        {"max-prompt-tokens", OPTION_INT, &o->max_prompt_tokens, 0, CONFIG_MAX_CONTEXT, "N",
         "Of one prompt; 0: what the context holds."},
        {"request-timeout", OPTION_INT, &o->request_timeout_s, 0, 1 << 24, "SECONDS",
         "After which a request is abandoned; 0: never."},
        {"idle-timeout", OPTION_INT, &o->http.times.idle_s, 1, 86400, "SECONDS",
         "After which a connection on which nothing moves is closed; a quiet stream of a job's "
         "events gets a comment twice as often, or every 15 seconds."},
        {"header-timeout", OPTION_INT, &o->http.times.header_s, 1, 86400, "SECONDS",
         "For all headers of a request to arrive."},
        {"body-timeout", OPTION_INT, &o->http.times.body_s, 1, 86400, "SECONDS",
         "For a request's body to arrive; a second more for every 8 KiB that have."},
        {"send-timeout", OPTION_INT, &o->http.times.send_s, 1, 86400, "SECONDS",
         "For a client to read what was sent, up to 16 KiB of a stream; a second more for every "
         "8 KiB."},
        {"drain-timeout", OPTION_INT, &o->drain_timeout_s, 0, 86400, "SECONDS",
         "How long requests may go on after SIGTERM or SIGINT."},
        {"stall-timeout", OPTION_INT, &o->http.stall_timeout_s, 1, 86400, "SECONDS",
         "How long a step of the engine may take until /health says 503."},
        {"exit-on-stall", OPTION_FLAG, &o->exit_on_stall, 0, 0, NULL,
         "End the process then, with exit code 4, for whoever starts it again."},
        {"http-threads", OPTION_INT, &o->http.threads, 1, 64, "N", "Threads for connections."},
        {"data-dir", OPTION_STRING, &o->data_dir, 0, 0, "DIR",
         "Where uploaded files and training jobs are kept; made when first needed."},
        {"max-upload", OPTION_BYTES, &o->http.max_upload, 1, (double)MAX_UPLOAD, "SIZE",
         "Of an uploaded file; more gets 413."},
        {"models-dir", OPTION_STRING, &o->models_dir, 0, 0, "DIR",
         "Where clients may load other models from, with POST /v1/models/load."},
        {"configs-dir", OPTION_STRING, &o->jobs.configs_dir, 0, 0, "DIR",
         "Where the presets are that jobs name as configs/NAME."},
        {"train-threads", OPTION_INT, &o->jobs.threads, 1, 4096, "N",
         "CPU threads of a training job, which has a lower priority than serving."},
        {"training-memory", OPTION_BYTES, &o->jobs.memory, 0, 0, "SIZE",
         "For all training jobs together; 0: 95 % of what the machine and the cgroup leave."},
        {"max-jobs", OPTION_INT, &o->jobs.max_running, 0, JOBS_MAX_RUNNING, "N",
         "Training jobs that run at once; others wait."},
        {"trainer", OPTION_STRING, &o->jobs.trainer, 0, 0, "PROGRAM",
         "What runs jobs, with the arguments of gptd train; gptd itself without it."},
        {"log-level", OPTION_STRING, &o->log_level, 0, 0, "error|warn|info|debug",
         "What goes to stderr."},
        {"log-format", OPTION_STRING, &o->log_format, 0, 0, "text|json",
         "A line of text, or an object, for each event."},
        {"log-requests", OPTION_FLAG, &o->http.log_requests, 0, 0, NULL,
         "Do not log a line a request: its id (X-Request-Id), the key's name, route, status, "
         "tokens and times; never their text. Probes that find all well stay out in any case."},
        {"hint", OPTION_FLAG, &o->hint, 0, 0, NULL,
         "Print what to try when ready: a curl line, the web page's address."},
    };
    enum { N_BEFORE = sizeof before / sizeof *before, N_AFTER = sizeof after / sizeof *after };
    memcpy(table, before, sizeof before);
    model_options_table(&o->model, table + N_BEFORE);
    memcpy(table + N_BEFORE + N_MODEL_OPTIONS, after, sizeof after);
    _Static_assert(N_BEFORE + N_AFTER <= N_SERVE_OPTIONS, "the table's size");
    return N_BEFORE + N_MODEL_OPTIONS + N_AFTER;
}

static bool has_keys(const struct serve_options *o)
{
    return o->keys.user_file || o->keys.admin_file;
}

/* Who is let in. */
static bool keys_check(const struct serve_options *o, struct error *err)
{
    if (has_keys(o) && !o->auth)
        return error_set(err, ERR_INVALID, "auth",
                         "--no-auth lets anyone in, and a key file says who may: give one of them");
    if (o->auth && !has_keys(o) && !listen_is_local(o->http.host))
        return error_set(err, ERR_INVALID, "host",
                         "--host %s can be reached by other machines, and there are no keys: give "
                         "--api-key-file, listen on 127.0.0.1, or say --no-auth to let anyone in",
                         o->http.host);
    if (limits_any(&o->keys.limits) && !o->keys.user_file)
        return error_set(err, ERR_INVALID, "api-key-file",
                         "--requests-per-minute, --tokens-per-minute and --requests-at-once limit "
                         "users' keys: give --api-key-file");
    return true;
}

/* Usable, and different. */
static bool check_names(const struct option_list *models, struct error *err)
{
    char ids[sizeof models->at / sizeof *models->at][sizeof((struct model *)0)->id];
    const char *path;
    for (int32_t i = 0; i < models->n; i++) {
        if (!model_name(models->at[i], ids[i], sizeof *ids, &path, err)) return false;
        for (int32_t k = 0; k < i; k++)
            if (strcmp(ids[i], ids[k]) == 0)
                return error_set(err, ERR_INVALID, "model", "--model %s: another model is called "
                                 "'%s' too; give them different names, with --model NAME=PATH",
                                 models->at[i], ids[i]);
    }
    return true;
}

/* What a browser would never send is a slip: it would let nobody in, and say nothing. */
static bool browsers_check(const struct serve_options *o, struct error *err)
{
    for (int32_t i = 0; i < o->http.cors_origins.n; i++)
        if (!guard_is_origin(o->http.cors_origins.at[i]))
            return error_set(err, ERR_INVALID, "cors-origin",
                             "--cors-origin %s: must be * or SCHEME://HOST[:PORT], with no path",
                             o->http.cors_origins.at[i]);
    for (int32_t i = 0; i < o->http.allowed_hosts.n; i++)
        if (!guard_host_is_local(o->http.allowed_hosts.at[i], &o->http.allowed_hosts))
            return error_set(err, ERR_INVALID, "allowed-host",
                             "--allowed-host %s: must be a name, with no port and no path",
                             o->http.allowed_hosts.at[i]);
    return true;
}

/* What single options cannot check on their own. */
static bool options_check(struct serve_options *o, struct error *err)
{
    enum log_level level;
    if (!log_level_parse(o->log_level, &level))
        return error_set(err, ERR_INVALID, "log-level",
                         "--log-level %s: must be error, warn, info or debug", o->log_level);
    log_set_level(level);
    enum log_format format;
    if (!log_format_parse(o->log_format, &format))
        return error_set(err, ERR_INVALID, "log-format", "--log-format %s: must be text or json",
                         o->log_format);
    log_set_format(format);
    if (o->models.n == 0)
        return error_set(err, ERR_INVALID, "model", "say what to serve: --model PATH");
    if (!keys_check(o, err) || !browsers_check(o, err)) return false;
    if (!o->tls_cert != !o->tls_key)
        return error_set(err, ERR_INVALID, o->tls_cert ? "tls-key" : "tls-cert",
                         "--tls-cert and --tls-key are two halves of one thing: give both");
    if (!model_options_check(&o->model, err) || !check_names(&o->models, err)) return false;
    o->limits.body_bytes = (size_t)o->http.max_body;
    o->limits.max_n = (int32_t)o->max_n;
    o->limits.max_prompt_tokens = (int32_t)o->max_prompt_tokens;
    o->limits.deadline_ms = o->request_timeout_s * 1000;
    return true;
}

/* ---- Shutting down ---- */

/* What the signal thread tells the main thread. */
struct shutdown {
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    struct http_server *http; /* what SIGHUP reloads; NULL: nothing yet */
    bool serving;   /* the first signal drains; before, and the second time, it ends the process */
    bool requested;
    bool device_failed; /* why the end was asked for */
};

static void reload(struct http_server *http)
{
    notify_reloading();
    http_reload(http);
    notify_send("READY=1");
}

static void on_signal(void *ctx, int number, int count)
{
    struct shutdown *s = ctx;
    pthread_mutex_lock(&s->mutex);
    if (number == SIGHUP) {
        if (s->http) reload(s->http);
        pthread_mutex_unlock(&s->mutex);
        return;
    }
    if (!s->serving || s->requested) _exit(128 + number);
    s->requested = true;
    pthread_cond_signal(&s->cond);
    pthread_mutex_unlock(&s->mutex);
}

/* watchdog_options.on_device_failure: as a signal does. Requests have their errors; jobs may
 * save. */
static void end_failed(void *ctx)
{
    struct shutdown *s = ctx;
    pthread_mutex_lock(&s->mutex);
    s->requested = s->device_failed = true;
    pthread_cond_signal(&s->cond);
    pthread_mutex_unlock(&s->mutex);
}

/* From here on the first signal drains: before anyone is told that the server listens. */
static void begin_serving(struct shutdown *s, struct http_server *http)
{
    pthread_mutex_lock(&s->mutex);
    s->http = http;
    s->serving = true;
    pthread_mutex_unlock(&s->mutex);
}

static void wait_for_shutdown(struct shutdown *s)
{
    pthread_mutex_lock(&s->mutex);
    while (!s->requested) pthread_cond_wait(&s->cond, &s->mutex);
    s->http = NULL;
    pthread_mutex_unlock(&s->mutex);
}

/* Lets what runs finish, within the timeout. */
static void drain(struct http_server *http, struct models *models, struct jobs *jobs,
                  int64_t timeout_s)
{
    log_info("shutting down: %d requests may go on for %lld s; another signal ends them now",
             http_active(http), (long long)timeout_s);
    http_drain(http);
    jobs_drain(jobs); /* their last checkpoints are written meanwhile */
    models_drain(models);
    int64_t end = clock_ns() + timeout_s * 1000000000;
    while ((http_active(http) > 0 || !models_idle(models)) && clock_ns() < end) usleep(10000);
    if (http_active(http) > 0)
        log_warn("%d requests did not finish within %lld s", http_active(http),
                 (long long)timeout_s);
}

/* ---- Serving ---- */

/* A line for a shell, and the web page's address for a browser. */
static void print_hint(const struct serve_options *o, const struct api_context *m, const char *url)
{
    const char *path = listen_unix_path(o->http.host);
    const char *insecure = o->tls_cert ? "-k " : "", *local = o->tls_cert ? "https" : "http";
    printf("try: curl %s", insecure);
    if (path) printf("--unix-socket %s %s://localhost", path, local);
    else printf("%s", url);
    printf("/v1/completions -H 'Content-Type: application/json' "
           "-d '{\"model\": \"%s\", \"prompt\": %s, \"max_tokens\": 100}'\n",
           m->model_id, engine_tokenizer(m->engine) ? "\"Once upon a time\"" : "[1, 2, 3]");
    if (!path) printf("or open %s/ in a browser\n", url);
}

static void print_ready(const struct serve_options *o, const struct api_context *m, int port)
{
    char url[160];
    listen_url(o->http.host, port, o->tls_cert ? "https" : "http", url, sizeof url);
    printf("listening on %s\n", url);
    if (o->hint) print_hint(o, m, url);
    fflush(stdout);
}

/* What training over HTTP needs. */
struct training {
    struct data_dir dir;
    struct file_store *files;
    struct jobs *jobs;
};

static void training_close(struct training *t, int64_t timeout_s)
{
    jobs_stop(t->jobs, timeout_s);
    file_store_close(t->files);
    data_dir_release(&t->dir);
}

/* A folder that is there has jobs to go on with. One that cannot be used is no reason not to
 * serve. */
static bool training_open(const struct serve_options *o, struct training *t, struct error *err)
{
    struct error why;
    *t = (struct training){.dir.lock_fd = -1};
    if (!data_dir_init(&t->dir, o->data_dir, err)) return false;
    if (file_is_dir(t->dir.path) && !data_dir_take(&t->dir, &why)) log_warn("%s", why.text);
    if (file_store_open(&t->dir, o->http.max_upload, &t->files, err)
        && jobs_start(&t->dir, t->files, &o->jobs, &t->jobs, err))
        return true;
    training_close(t, 0);
    return false;
}

/* The keys, if there are any; and what follows from what was given, for the log. */
static bool keys_open(const struct serve_options *o, struct auth **out, struct error *err)
{
    *out = NULL;
    if (!o->auth && !listen_is_local(o->http.host))
        log_warn("--no-auth: anyone who reaches %s can use this server", o->http.host);
    if (!has_keys(o)) return true;
    if (!o->keys.admin_file)
        log_info("no --admin-key-file: uploads, training and loading models are closed to "
                 "everyone");
    if (!o->keys.user_file) log_info("no --api-key-file: only admins' keys open anything");
    return auth_open(&o->keys, out, err);
}

/* watchdog_options.on_stall: nothing can be saved, since nothing moves. */
static void exit_stalled(void *ctx) { _exit(EXIT_STALLED); }

/* While `http` serves: until a signal, and what it lets finish. */
static bool serve_until_signal(const struct serve_options *o, struct http_server *http,
                               struct models *models, struct jobs *jobs, struct shutdown *shutdown,
                               struct error *err)
{
    struct watchdog *watchdog;
    struct watchdog_options watch = {.api = models_api(models),
                                     .stall_timeout_s = o->http.stall_timeout_s,
                                     .on_stall = o->exit_on_stall ? exit_stalled : NULL,
                                     .on_device_failure = end_failed, .ctx = shutdown};
    if (!watchdog_start(&watch, &watchdog, err)) return false;
    const struct api_context *first = api_acquire(models_api(models), NULL, NULL);
    begin_serving(shutdown, http);
    print_ready(o, first, http_port(http));
    api_release(first);
    notify_send("READY=1");
    wait_for_shutdown(shutdown);
    notify_send("STOPPING=1");
    drain(http, models, jobs, o->drain_timeout_s);
    watchdog_stop(watchdog);
    return true;
}

static bool serve(const struct serve_options *o, struct auth *auth, struct tls *tls,
                  struct models *models, const struct process_baseline *baseline,
                  struct shutdown *shutdown,
                  struct error *err)
{
    char id[128];
    struct metrics *metrics = malloc(sizeof *metrics); /* 100 kB: not on the stack */
    if (!metrics) return error_set(err, ERR_MEMORY, NULL, "no memory to start the server");
    const struct api_context *first = api_acquire(models_api(models), NULL, NULL);
    snprintf(id, sizeof id, "%s", first->model_id);
    api_release(first);
    http_metrics_init(metrics, id, models_device(models));
    struct http_server *http = NULL;
    struct training training;
    struct http_options http_options = o->http;
    if (!training_open(o, &training, err)) {
        free(metrics);
        return false;
    }
    http_options.files = training.files;
    http_options.jobs = training.jobs;
    http_options.models = models;
    http_options.configs_dir = o->jobs.configs_dir;
    http_options.auth = auth;
    http_options.tls = tls;
    http_options.check_host = listen_is_local(o->http.host) && !listen_unix_path(o->http.host);
    bool ok = http_start(&http_options, models_api(models), metrics, baseline, &http, err);
    ok = ok && serve_until_signal(o, http, models, training.jobs, shutdown, err);
    http_stop(http);
    training_close(&training, o->drain_timeout_s);
    free(metrics);
    if (ok) log_info("bye");
    return ok;
}

static int run(const struct serve_options *o)
{
    struct error err;
    struct shutdown shutdown = {.serving = false};
    pthread_mutex_init(&shutdown.mutex, NULL);
    pthread_cond_init(&shutdown.cond, NULL);
    struct signals *signals;
    if (!signals_start(HANGUP_HANDLE, on_signal, &shutdown, &signals, &err))
        return command_fail("serve", &err);
    struct process_baseline baseline = process_baseline();
    struct models *models = NULL;
    struct auth *auth = NULL;
    struct tls *tls = NULL;
    int code = EXIT_DONE;
    if (!keys_open(o, &auth, &err) ||
        (o->tls_cert && !tls_open(o->tls_cert, o->tls_key, &tls, &err)) ||
        !models_start(o->models.at, o->models.n, &o->model, &o->limits, o->models_dir, &models,
                      &err) ||
        !serve(o, auth, tls, models, &baseline, &shutdown, &err))
        code = command_fail("serve", &err);
    else if (shutdown.device_failed) code = EXIT_DEVICE;
    models_stop(models);
    auth_close(auth);
    tls_close(tls);
    signals_stop(signals);
    pthread_cond_destroy(&shutdown.cond);
    pthread_mutex_destroy(&shutdown.mutex);
    return code;
}

int cmd_serve(int argc, char **argv)
{
    struct serve_options o;
    struct option table[N_SERVE_OPTIONS + N_MODEL_OPTIONS];
    options_init(&o);
    size_t n = options_table(&o, table);
    bool help;
    struct error err;
    if (!options_parse(table, n, argc, argv, 2, NULL, 0, NULL, &help, &err))
        return command_usage("serve", &err);
    if (help) {
        options_print_help(stdout,
                           "gptd serve --model [NAME=]PATH [--model [NAME=]PATH ...] [OPTIONS]",
                           "Serves models over HTTP with OpenAI's API. SIGTERM or Ctrl-C ends it "
                           "gracefully.", table, n);
        return EXIT_DONE;
    }
    if (!options_check(&o, &err)) return command_usage("serve", &err);
    return run(&o);
}

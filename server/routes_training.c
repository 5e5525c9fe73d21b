/* The routes of files and fine-tuning jobs. All of them run on threads of their own (work.c): they
 * may wait for the disk. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/api.h"
#include "base/json.h"
#include "server/request.h"

enum { DEFAULT_LIMIT = 20, MAX_LIMIT = 10000, REQUEST_ARENA = 64 * 1024 };

static bool files_of(struct request *r, struct file_store **out, struct error *err)
{
    *out = r->server->options.files;
    return *out || error_set(err, ERR_UNAVAILABLE, NULL, "this server keeps no files");
}

static bool jobs_of(struct request *r, struct jobs **out, struct error *err)
{
    *out = r->server->options.jobs;
    return *out || error_set(err, ERR_UNAVAILABLE, NULL, "this server does not train");
}

/* ---- query parameters ---- */

struct query {
    struct api_page page;
    const char *purpose;
    bool order, filter, feed; /* does the route take `order`, `purpose`, `stream`? */
    bool limited, stream;     /* `limit` was given; the value of `stream` */
    struct error *err;
    bool failed;
};

static void query_fail(struct query *q, const char *name, const char *what)
{
    if (!q->failed) error_set(q->err, ERR_INVALID, name, "'%.40s' %s", name, what);
    q->failed = true;
}

static void take_limit(struct query *q, const char *value)
{
    char *end;
    errno = 0;
    long long n = strtoll(value, &end, 10);
    if (*end || end == value || errno || n < 1 || n > MAX_LIMIT)
        query_fail(q, "limit", "must be an integer from 1 to 10000");
    q->page.limit = n;
    q->limited = true;
}

static enum MHD_Result take_argument(void *cls, enum MHD_ValueKind kind, const char *name,
                                     const char *value)
{
    struct query *q = cls;
    if (!value) value = "";
    if (strcmp(name, "limit") == 0) {
        take_limit(q, value);
    } else if (strcmp(name, "after") == 0) {
        q->page.after = value;
    } else if (q->filter && strcmp(name, "purpose") == 0) {
        q->purpose = value;
    } else if (q->feed && strcmp(name, "stream") == 0) {
        q->stream = strcmp(value, "true") == 0;
        if (!q->stream && strcmp(value, "false") != 0)
            query_fail(q, name, "must be true or false");
    } else if (q->order && strcmp(name, "order") == 0) {
        q->page.ascending = strcmp(value, "asc") == 0;
        if (!q->page.ascending && strcmp(value, "desc") != 0)
            query_fail(q, name, "must be asc or desc");
    } else {
        query_fail(q, name, "is not a parameter of this route");
    }
    return MHD_YES;
}

/* Strings are the connection's. The defaults may be set before. */
static bool read_query(struct request *r, struct query *q, struct error *err)
{
    q->err = err;
    MHD_get_connection_values(r->connection, MHD_GET_ARGUMENT_KIND, take_argument, q);
    return !q->failed;
}

/* ---- files ---- */

bool post_file(struct request *r, struct buf *out, struct error *err)
{
    struct api_file f;
    if (!upload_finish(r->upload, &f, err)) return false;
    api_file_render(&f, out);
    return true;
}

bool get_files(struct request *r, struct buf *out, struct error *err)
{
    struct file_store *files;
    struct query q = {.page.limit = MAX_LIMIT, .order = true, .filter = true};
    return files_of(r, &files, err) && read_query(r, &q, err)
           && file_store_list(files, &q.page, q.purpose, out, err);
}

bool get_file(struct request *r, struct buf *out, struct error *err)
{
    struct file_store *files;
    struct api_file f;
    if (!files_of(r, &files, err) || !file_store_get(files, r->param, &f, err)) return false;
    api_file_render(&f, out);
    return true;
}

bool get_file_content(struct request *r, struct buf *out, struct error *err)
{
    struct file_store *files;
    size_t size;
    if (!files_of(r, &files, err)
        || !file_store_open_content(files, r->param, &r->reply_fd, &size, err))
        return false;
    r->reply_bytes = (int64_t)size;
    return true;
}

bool delete_file(struct request *r, struct buf *out, struct error *err)
{
    struct file_store *files;
    if (!files_of(r, &files, err) || !file_store_remove(files, r->param, err)) return false;
    api_render_deleted(out, "file", r->param);
    return true;
}

/* ---- jobs ---- */

/* Where the model to begin with is: a preset's config or a model's path. */
static bool find_start(struct request *r, struct jobs *jobs, const char *model,
                       char config[PATH_MAX], char init_from[PATH_MAX], struct error *err)
{
    struct error ignored;
    int64_t created;
    config[0] = init_from[0] = 0;
    if (jobs_is_preset(model)) return jobs_preset_path(jobs, model, config, PATH_MAX, err);
    const struct api_context *loaded = api_acquire(r->server->api, model, &ignored);
    if (loaded) {
        snprintf(init_from, PATH_MAX, "%s", loaded->model_path ? loaded->model_path : "");
        api_release(loaded);
        return true;
    }
    if (jobs_find_model(jobs, model, init_from, &created)) return true;
    return error_set(err, ERR_NOT_FOUND, "model",
                     "the model '%.64s' does not exist: give the id of a served or fine-tuned "
                     "model or of a checkpoint, or configs/NAME for a new model", model);
}

bool post_job(struct request *r, struct buf *out, struct error *err)
{
    struct jobs *jobs;
    struct ft_request request;
    struct arena arena;
    char config[PATH_MAX], init_from[PATH_MAX];
    if (!jobs_of(r, &jobs, err)) return false;
    arena_init(&arena, 2 * r->body.len + REQUEST_ARENA);
    bool ok = ft_request_parse(&r->server->api->limits, r->body.data ? r->body.data : "",
                               r->body.len, &arena, &request, err)
              && find_start(r, jobs, request.model, config, init_from, err)
              && jobs_create(jobs, &request, config[0] ? config : NULL,
                             init_from[0] ? init_from : NULL, out, err);
    arena_free(&arena);
    return ok;
}

bool get_jobs(struct request *r, struct buf *out, struct error *err)
{
    struct jobs *jobs;
    struct query q = {.page.limit = DEFAULT_LIMIT};
    return jobs_of(r, &jobs, err) && read_query(r, &q, err) && jobs_list(jobs, &q.page, out, err);
}

bool get_job(struct request *r, struct buf *out, struct error *err)
{
    struct jobs *jobs;
    return jobs_of(r, &jobs, err) && jobs_get(jobs, r->param, out, err);
}

/* Orders have nothing to say in a body: none, or {}. */
static bool body_is_empty(const struct request *r, struct error *err)
{
    if (r->body.len == 0) return true;
    struct cJSON *root = json_parse(r->body.data, r->body.len, 4, "the body", err);
    if (!root) return false;
    bool empty = cJSON_IsObject(root) && !root->child;
    const char *key = !empty && cJSON_IsObject(root) ? root->child->string : "";
    if (!empty)
        error_set(err, ERR_INVALID, key, "this route takes no parameters: send no body, or {}");
    cJSON_Delete(root);
    return empty;
}

static bool order(struct request *r, enum job_order what, struct buf *out, struct error *err)
{
    struct jobs *jobs;
    return body_is_empty(r, err) && jobs_of(r, &jobs, err)
           && jobs_order(jobs, r->param, what, out, err);
}

bool post_job_cancel(struct request *r, struct buf *out, struct error *err)
{
    return order(r, JOB_CANCEL, out, err);
}

bool post_job_pause(struct request *r, struct buf *out, struct error *err)
{
    return order(r, JOB_PAUSE, out, err);
}

bool post_job_resume(struct request *r, struct buf *out, struct error *err)
{
    return order(r, JOB_RESUME, out, err);
}

bool get_job_events(struct request *r, struct buf *out, struct error *err)
{
    struct jobs *jobs;
    struct query q = {.page.limit = DEFAULT_LIMIT, .feed = true};
    if (!jobs_of(r, &jobs, err) || !read_query(r, &q, err)) return false;
    if (!q.stream) return jobs_events(jobs, r->param, &q.page, out, err);
    if (q.limited)
        return error_set(err, ERR_INVALID, "limit",
                         "'limit' is for pages: a stream has all events");
    if (atomic_load(&r->server->draining))
        return error_set(err, ERR_UNAVAILABLE, NULL, "the server is shutting down");
    return jobs_follow(jobs, r->param, q.page.after, &r->feed, err);
}

bool get_job_checkpoints(struct request *r, struct buf *out, struct error *err)
{
    struct jobs *jobs;
    struct query q = {.page.limit = DEFAULT_LIMIT};
    return jobs_of(r, &jobs, err) && read_query(r, &q, err)
           && jobs_checkpoints(jobs, r->param, &q.page, out, err);
}

/* Answers that take their time - a sync of the disk, a model to load - on threads of their own,
 * while the connection sleeps: the HTTP threads have other connections to serve. */
#include <microhttpd.h>

#include "server/request.h"

enum { MAX_WORKING = 32, REPLY_LIMIT = 64 << 20, STACK_BYTES = 1 << 20 };

static void *work_run(void *arg)
{
    struct request *r = arg;
    struct http_server *s = r->server;
    bool ok = route_answer(r, &r->reply, &r->work_error)
              && buf_check(&r->reply, "the reply", &r->work_error);
    pthread_mutex_lock(&s->work_mutex); /* work_start holds it until the connection sleeps */
    r->work_ok = ok;
    r->work = WORK_DONE;
    MHD_resume_connection(r->connection); /* from here on `r` may be gone */
    s->n_working--;
    pthread_cond_signal(&s->work_done);
    pthread_mutex_unlock(&s->work_mutex);
    return NULL;
}

static bool start_thread(struct request *r)
{
    pthread_t thread;
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes) != 0) return false;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    bool ok = pthread_create(&thread, &attributes, work_run, r) == 0;
    pthread_attr_destroy(&attributes);
    return ok;
}

bool work_start(struct request *r, struct error *err)
{
    struct http_server *s = r->server;
    bool ok = false;
    buf_init(&r->reply, REPLY_LIMIT);
    pthread_mutex_lock(&s->work_mutex);
    if (s->no_more_work) {
        error_set(err, ERR_UNAVAILABLE, NULL, "the server is shutting down");
    } else if (s->n_working >= MAX_WORKING) {
        error_set(err, ERR_BUSY, NULL, "%d requests of this kind are at work; retry later",
                  MAX_WORKING);
    } else {
        r->work = WORK_RUNNING;
        ok = start_thread(r) || error_set(err, ERR_MEMORY, NULL, "no thread for the request");
    }
    if (ok) {
        s->n_working++;
        MHD_suspend_connection(r->connection);
    }
    pthread_mutex_unlock(&s->work_mutex);
    return ok;
}

enum work_state work_look(struct request *r)
{
    pthread_mutex_lock(&r->server->work_mutex);
    enum work_state state = r->work;
    pthread_mutex_unlock(&r->server->work_mutex);
    return state;
}

void work_end_all(struct http_server *s)
{
    pthread_mutex_lock(&s->work_mutex);
    s->no_more_work = true;
    while (s->n_working > 0) pthread_cond_wait(&s->work_done, &s->work_mutex);
    pthread_mutex_unlock(&s->work_mutex);
}

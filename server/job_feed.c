/* Feeds of events: see job_feed.h. */
#include "server/job_feed.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct job_feed {
    struct job_feeds *all;
    struct job_feed *next, *prev; /* of all->open */
    char job_id[FT_ID_MAX];
    int fd;                       /* events.jsonl */
    int64_t offset;               /* what was read of it */
    void (*notify)(void *ctx);    /* with all->mutex; NULL: nobody listens yet */
    void *ctx;
    _Atomic bool ended;           /* the job's last event is in the file */
    _Atomic bool canceled;
};

void job_feeds_init(struct job_feeds *all)
{
    *all = (struct job_feeds){0};
    pthread_mutex_init(&all->mutex, NULL);
}

void job_feeds_free(struct job_feeds *all)
{
    ASSERT(!all->open);
    pthread_mutex_destroy(&all->mutex);
}

void job_feeds_tell(struct job_feeds *all, const char *job_id, bool ended)
{
    pthread_mutex_lock(&all->mutex);
    for (struct job_feed *f = all->open; f; f = f->next) {
        if (strcmp(f->job_id, job_id) != 0) continue;
        if (ended) atomic_store(&f->ended, true); /* after the event was written */
        if (f->notify) f->notify(f->ctx);
    }
    pthread_mutex_unlock(&all->mutex);
}

bool job_feed_open(struct job_feeds *all, const struct data_dir *d, const struct ft_job *job,
                   const char *after, bool ended, struct job_feed **out, struct error *err)
{
    struct job_feed *f = calloc(1, sizeof *f);
    if (!f) return error_set(err, ERR_MEMORY, NULL, "no memory for the stream of events");
    f->all = all;
    memcpy(f->job_id, job->id, sizeof f->job_id);
    atomic_store(&f->ended, ended);
    f->fd = job_store_open_events(d, job, after, &f->offset, err);
    if (f->fd < 0) {
        free(f);
        return false;
    }
    pthread_mutex_lock(&all->mutex);
    f->next = all->open;
    if (f->next) f->next->prev = f;
    all->open = f;
    pthread_mutex_unlock(&all->mutex);
    *out = f;
    return true;
}

void job_feed_listen(struct job_feed *f, void (*notify)(void *ctx), void *ctx)
{
    pthread_mutex_lock(&f->all->mutex);
    f->notify = notify;
    f->ctx = ctx;
    pthread_mutex_unlock(&f->all->mutex);
}

/* job_line_fn: one event. */
static void append_event(void *ctx, const char *line, size_t n)
{
    struct buf *out = ctx;
    if (!job_event_is_whole(line, n)) return;
    buf_puts(out, "data: ");
    buf_append(out, line, n);
    buf_puts(out, "\n\n");
}

static enum completion_status end(const struct error *failure, struct buf *out)
{
    if (failure) {
        buf_puts(out, "data: ");
        api_render_error(out, failure);
        buf_puts(out, "\n\n");
    }
    buf_puts(out, "data: [DONE]\n\n");
    return COMPLETION_ENDED;
}

enum completion_status job_feed_read(struct job_feed *f, struct buf *out)
{
    struct error failure;
    if (atomic_load(&f->canceled)) {
        error_set(&failure, ERR_UNAVAILABLE, NULL, "the server is shutting down: ask again for the "
                  "events after the last one when it is back");
        return end(&failure, out);
    }
    bool ended = atomic_load(&f->ended); /* before reading: what is read then is all */
    switch (job_read_lines(f->fd, &f->offset, append_event, out)) {
    case LINES_SOME: return COMPLETION_DATA;
    case LINES_NONE: return ended ? end(NULL, out) : COMPLETION_WAIT;
    case LINES_FAILED: break;
    }
    error_set(&failure, ERR_IO, NULL, "cannot read the events: %s", strerror(errno));
    return end(&failure, out);
}

void job_feed_cancel(struct job_feed *f) { atomic_store(&f->canceled, true); }

void job_feed_close(struct job_feed *f)
{
    if (!f) return;
    pthread_mutex_lock(&f->all->mutex);
    if (f->prev) f->prev->next = f->next;
    else f->all->open = f->next;
    if (f->next) f->next->prev = f->prev;
    pthread_mutex_unlock(&f->all->mutex);
    close(f->fd);
    free(f);
}

/* A job's events as they come, for one listener. The queue is the file that the events are in,
 * events.jsonl: a feed reads it from where it is to its end, is told when there is more, and so
 * neither holds memory for a slow client nor loses an event. Reading takes no lock that is held
 * while anything waits for a disk.
 *
 *     job_feeds_tell    the supervisor, after an event: any number of times; at last with `ended`
 *     job_feed_listen, job_feed_read ...     the connection's thread
 *     job_feed_cancel   any thread; wakes nobody
 *     job_feed_close    nobody is told any more */
#pragma once

#include <pthread.h>

#include "api/completion.h"
#include "server/job_store.h"

struct job_feed;

struct job_feeds {
    pthread_mutex_t mutex; /* of the list, and held while listeners are told; never for long */
    struct job_feed *open;
};
void job_feeds_init(struct job_feeds *all);
void job_feeds_free(struct job_feeds *all); /* every feed is closed */
/* There is a new event of the job. ended: the last one. */
void job_feeds_tell(struct job_feeds *all, const char *job_id, bool ended);

/* From the event that follows `after`, an event's id, or from the first for NULL. ended: no more
 * will come. Nobody tells of this job meanwhile. ERR_INVALID for an `after` that is none. */
bool job_feed_open(struct job_feeds *all, const struct data_dir *d, const struct ft_job *job,
                   const char *after, bool ended, struct job_feed **out,
                   struct error *err) MUST_CHECK;
/* Calls notify(ctx) for all that comes after this call; read once before waiting for it. */
void job_feed_listen(struct job_feed *f, void (*notify)(void *ctx), void *ctx);
/* As completion_read: appends what is new as server-sent events, a bounded piece at a time; after
 * the job's last event "data: [DONE]". A canceled feed ends with an error event before that. */
enum completion_status job_feed_read(struct job_feed *f, struct buf *out);
void job_feed_cancel(struct job_feed *f);
void job_feed_close(struct job_feed *f); /* NULL-safe */

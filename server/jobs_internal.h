/* What jobs.c (what clients ask) and jobs_run.c (the supervisor's thread) share. Not for others. */
#pragma once

#include <pthread.h>
#include <sys/types.h>

#include "server/job_feed.h"
#include "server/job_plan.h"
#include "server/job_store.h"
#include "server/jobs.h"

/* One job in memory. */
struct job {
    struct ft_job job;
    pid_t pid;                /* its trainer's; 0: none runs */
    bool goes_first;          /* it ran when the last server ended */
    bool stopping;            /* it was told to end: how it does is no failure */
    int64_t kill_ns;          /* when patience with it ends */
    int64_t metrics_offset;   /* read so far */
    int64_t metrics_event_ns; /* when the last event about them was written */
    int64_t n_steps;          /* that its trainer is to make in all; 0: not known yet */
    int64_t seen_step, seen_ns; /* the first that was seen of this trainer, and when; 0: none yet */
    char metrics_line[512];   /* the newest line without an event; "": none */
    struct api_job_memory memory; /* what its trainer plans and takes */
    struct job_need need;     /* what it was admitted with; 0: without a plan */
    int64_t n_characters;     /* of its text; 0: not counted */
    int64_t retry_ns;         /* when to look for memory again */
};

struct jobs {
    struct data_dir *dir;
    struct file_store *files;
    struct jobs_options options;
    struct job_feeds feeds;
    pthread_t thread;
    pthread_mutex_t mutex; /* of what follows, and of all jobs' files but the trainer's */
    pthread_cond_t news;
    struct job **at; /* oldest first */
    size_t n, capacity;
    bool loaded; /* the folder's jobs are in memory */
    bool draining;
    int64_t drain_deadline_ns; /* while draining: when they are killed; 0: not yet known */
    bool stopped;
    /* What /v1/memory shows: apart from the rest, which waits for the disk. */
    pthread_mutex_t memory_mutex;
    struct api_job_memory memory[JOBS_MAX_RUNNING];
    size_t n_memory;
    int64_t memory_ns; /* when; the supervisor's own */
};

/* With the mutex held: */
/* Changes the state, writes it down, and an event that says so. */
void job_set_state(struct jobs *j, struct job *job, enum job_state state, const char *level,
                   const char *message);
/* Is it over, its trainer gone? Then no event will follow. */
bool job_is_over(const struct job *job);
/* Tells the trainer to end, and when to kill it. */
void job_stop(struct job *job, int64_t patience_s);

/* May the job start now? Then its need is reserved; else its queued_reason says why not. */
bool job_admit(struct jobs *j, struct job *job);

/* Without the mutex: */
/* ERR_NO_ROOM when the job cannot start however long it waits; ERR_INVALID and ERR_UNSUPPORTED for
 * what its model, or the device, cannot do. */
bool job_check_room(struct jobs *j, const struct ft_job *job, const char *training,
                    const char *validation, int64_t *n_characters, struct error *err) MUST_CHECK;

void *jobs_run(void *arg); /* the supervisor's thread */

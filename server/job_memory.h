/* What a training run takes, in memory.json of its folder: the trainer writes it, people and the
 * server that runs it as a job read it. */
#pragma once

#include "api/api.h"
#include "base/error.h"
#include "model/plan.h"

/* At start, then about once a second. Renamed into place, so that a reader sees a whole one; not
 * synced: it is worth nothing after a crash. */
bool job_memory_write(const char *dir, const struct api_job_memory *m,
                      struct error *err) MUST_CHECK;
/* All but the id. Another process's word: a file that is not what job_memory_write writes is
 * ERR_FORMAT, and no number in it is taken that could not be one of bytes. */
bool job_memory_read(const char *dir, struct api_job_memory *out, struct error *err) MUST_CHECK;

void job_memory_set_plan(struct api_job_memory *m, const struct memory_plan *plan);

/* A model without an engine: one sequence, straight through gpt_forward. For tests that look at
 * numbers. Pages are handed out in a scrambled order, so that nothing works by being contiguous. */
#pragma once

#include "cpu/cpu.h"
#include "model/gpt.h"

struct model_runner {
    struct device *device;
    struct checkpoint *checkpoint;
    struct gpt gpt;
    struct gpt_state state;
    struct kv_cache kv;
    void *arena, *workspace;
    struct plan plan;
    int64_t workspace_bytes;
    int32_t *pages;   /* page table of the one sequence */
    int32_t *scratch; /* tokens, positions, slots, out_rows */
    int64_t max_rows;
};

/* Fails the test (cmocka) when anything goes wrong. */
void runner_open(struct model_runner *r, const char *path, enum dtype dtype,
                 const struct cpu_options *cpu, int64_t max_rows);
/* In bf16, with matrices that the file has quantized as they are. */
void runner_open_kept(struct model_runner *r, const char *path, const struct cpu_options *cpu,
                      int64_t max_rows);
void runner_close(struct model_runner *r);

/* Runs n <= max_rows tokens at positions start.. and copies the logits of all rows to `logits` [n,
 * V] (may be NULL). */
void runner_forward(struct model_runner *r, const int32_t *tokens, int32_t n, int32_t start,
                    float *logits, const struct gpt_observer *observer);

/* Tables of plans, as Markdown: bytes over one axis, the memory guide over all presets, and what
 * one card does for each preset. Everything is appended to a buffer. */
#pragma once

#include "api/plan_request.h"
#include "base/buf.h"

/* Training and generation over an axis: batch, block, dtype, recompute or moments; the rest as
 * the case's own best plan has it. ERR_INVALID for another axis. */
bool plan_table(const struct plan_request *r, const struct plan_devices *devices, const char *axis,
                struct buf *out, struct error *err) MUST_CHECK;

/* All presets of `configs_dir`: the smallest plan that trains at full speed, the smallest at
 * all, and generating, beside what people expect. For CUDA, with the data sheet of an RTX 3060
 * where plans are compared by time: the same text everywhere. */
bool plan_guide(const struct plan_devices *devices, const char *configs_dir, struct buf *out,
                struct error *err) MUST_CHECK;

/* The presets on the card that `r` names: trains, only generates, or neither. The keys of `r`
 * count for each. */
bool plan_presets(const struct plan_request *r, const struct plan_devices *devices,
                  const char *configs_dir, struct buf *out, struct error *err) MUST_CHECK;

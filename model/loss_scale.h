/* The loss's factor while gradients are computed, so that those of a 16-bit type with a narrow
 * range (f16) do not vanish (Micikevicius et al. 2018). A step whose gradients are not finite
 * changes no weight: it is skipped, and the factor halves. A power of two changes no bit of
 * gradients that f32 or bf16 holds.
 *
 * What it is follows from the steps alone and goes with a checkpoint. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "model/dtype.h"

#define LOSS_SCALE_START 65536.0
#define LOSS_SCALE_MIN 1.0
#define LOSS_SCALE_MAX 0x1p40 /* of growth */
enum { LOSS_SCALE_GROWTH_INTERVAL = 2000 };

struct loss_scale {
    double scale;          /* 1 or more; 0: gradients are taken as they are */
    bool grows;            /* twice after LOSS_SCALE_GROWTH_INTERVAL finite steps in a row */
    int64_t finite_in_a_row;
    int64_t skipped;       /* steps, in all */
};

/* option: 0 is LOSS_SCALE_START and growth for f16, and off otherwise; another number begins there
 * and never grows. */
struct loss_scale loss_scale_begin(double option, enum dtype dtype);
/* What the loss is multiplied by: 1 when off. */
double loss_scale_factor(const struct loss_scale *s);
/* After a step's gradients: were they finite? Not for a scale that is off. ERR_INVALID when they
 * are not, at a scale that cannot be halved any more. */
bool loss_scale_update(struct loss_scale *s, bool finite, struct error *err) MUST_CHECK;

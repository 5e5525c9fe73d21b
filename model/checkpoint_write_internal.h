/* What the writers of checkpoints share with `gptd convert`. */
#pragma once

#include "model/weight_export.h"

/* checkpoint_write from any source: config.json and model.safetensors. dtype: f32, bf16, f16. */
bool checkpoint_write_source(const struct weight_source *source, enum dtype dtype, const char *dir,
                             struct error *err) MUST_CHECK;

/* Puts the markers' ids (-1: none) into the directory's config.json, if it has one and they
 * differ. */
bool checkpoint_write_markers(const char *dir, int32_t bos, int32_t eos, struct error *err)
    MUST_CHECK;

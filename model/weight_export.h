/* Weights on their way into a file: rows of plain f32 matrices, from a device or from another
 * checkpoint, become the bytes of a file's tensor in the file's layout and element type. The
 * inverse of what checkpoint_read_rows does. Memory is bounded by one block, not by the model.
 * Private to the writers of checkpoints; one thread. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "model/checkpoint_internal.h"
#include "model/device.h"
#include "model/gpt.h"

/* Where weights come from. */
struct weight_source {
    const struct gpt_config *config;
    /* Rows [row0, row0 + n_rows) of the weight, which exists, as f32 [n_rows, n_in]. */
    bool (*read_rows)(const struct weight_source *s, enum weight_role role, int64_t layer,
                      int64_t row0, int64_t n_rows, float *dst, struct error *err);
    const struct checkpoint *checkpoint;
    struct device *device;
    struct gpt_param *params; /* [1 + n_layer][N_WEIGHT_ROLES] */
};

struct weight_source weight_source_of_checkpoint(const struct checkpoint *ck);
/* A model on a device that trains (it can read its matrices back). */
bool weight_source_of_gpt(struct weight_source *s, const struct gpt *g, struct device *d,
                          struct error *err) MUST_CHECK;
void weight_source_free(struct weight_source *s);

/* A tensor of the file: a part of a weight. */
struct export_tensor {
    char name[TENSOR_NAME_BYTES];
    enum weight_role role;
    int64_t layer;
    int64_t row0, n_rows, n_cols; /* of the weight; a vector's elements are rows of one column */
    enum part_layout layout;
    bool vector;
    bool zeros;                   /* the file's family has it, the model does not */
    enum dtype dtype;
};

/* The tensors of a model of config `as`, in the order of roles and layers, in a malloc'd array.
 * What `as` has and the source lacks is zeros. Matrices get matrix_dtype; vectors and positions
 * f32, as the model computes with them. */
bool export_list(const struct weight_source *source, const struct tensor_names *names,
                 const struct gpt_config *as, enum dtype matrix_dtype, struct export_tensor **out,
                 int64_t *n, struct error *err) MUST_CHECK;
/* Its shape in the file, outermost first; returns the number of dimensions. */
int32_t export_shape(const struct export_tensor *t, int64_t dims[2]);
int64_t export_bytes(const struct export_tensor *t);

/* Serves bytes of the tensors, best in order. */
struct export_reader {
    const struct weight_source *source;
    const struct export_tensor *tensors;
    int64_t current, begin, end; /* bytes [begin, end) of tensor `current` lie in block */
    float *block, *strip;
    int64_t block_floats, strip_floats;
};
bool export_reader_open(struct export_reader *r, const struct weight_source *source,
                        const struct export_tensor *tensors, int64_t n, struct error *err)
    MUST_CHECK;
void export_reader_close(struct export_reader *r);
/* Bytes [offset, offset + n) of tensor i. */
bool export_read(struct export_reader *r, int64_t i, int64_t offset, int64_t n, uint8_t *out,
                 struct error *err) MUST_CHECK;

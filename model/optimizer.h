/* AdamW over all weights of a GPT: which are decayed (matrices), frozen, and in which
 * format their moments and master copies live. Memory comes from the plan. The thread
 * that owns the device calls all of it. */
#pragma once

#include "model/device_train.h"
#include "model/gpt.h"

struct optimizer_options {
    float beta1, beta2, eps, weight_decay;
    float grad_clip;              /* global norm; 0: off */
    enum moment_format moments;   /* under Q8 tensors of under 4,096
                                     elements are f32, embeddings bf16 */
    enum master_format master;    /* for bf16 weights; f32 weights are their own */
    int64_t freeze_layers;        /* the first n layers do not learn */
    bool freeze_embeddings;
};

struct optimizer {
    struct optimizer_options options;
    struct adamw_tensor *tensors; /* [n], host memory given by the caller: gpt_n_params of them */
    bool *frozen;                 /* [n], likewise */
    int64_t n;
    double *squares;              /* device memory: of the gradients, their sum */
};

/* Lays out moments and masters for g (component optimizer). */
void optimizer_layout(struct optimizer *o, struct gpt *g, struct gpt *grads, const struct device *d,
                      struct plan *plan);
/* Moments zero, masters as the weights stand. */
void optimizer_start(struct optimizer *o, struct device *d);
/* Sums up the squares of the gradients of what learns, and has the sum brought to *squares on the
 * host, where it is after the next sync. */
void optimizer_sum_squares(const struct optimizer *o, struct device *d, double *squares);
/* The gradients' global norm, times grad_scale. */
double optimizer_grad_norm(double squares, double grad_scale);
/* One update with clipping; `norm` is optimizer_grad_norm's. step: 1, 2, ... */
void optimizer_step(struct optimizer *o, struct device *d, float lr, int64_t step,
                    double grad_scale, double norm);

/* The state as named byte arrays in device memory, for checkpoints: i-th of optimizer_n_arrays. */
struct optimizer_array { char name[128]; void *data; int64_t bytes; };
int64_t optimizer_n_arrays(const struct optimizer *o);
struct optimizer_array optimizer_array(const struct optimizer *o, const struct device *d,
                                       int64_t i);

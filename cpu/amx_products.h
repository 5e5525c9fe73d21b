/* Products on AMX tiles: what cpu_matmul and the backward products do on a device whose kernels.amx
 * is set. Arguments are theirs (cpu_internal.h, cpu_train.h), checked there. */
#pragma once

#include "cpu/amx.h"
#include "cpu/cpu_train.h"

void amx_matmul(struct cpu_device *c, struct tensor out, struct tensor x, const struct matrix *w,
                const float *bias, enum epilogue epilogue);
/* All parts are quantized. Worth it from AMX_QUANT_ROWS rows. */
void amx_matmul_quantized(struct device *d, struct tensor out, struct tensor x,
                          const struct matrix *w, const float *bias, enum epilogue epilogue);
void amx_backward_x(struct cpu_device *c, struct tensor dx, struct tensor dy,
                    const struct matrix *w);
void amx_backward_w(struct cpu_device *c, struct matrix *dw, struct tensor dy, struct tensor x,
                    uint64_t rounding_key);

/* Bytes of workspace. */
int64_t amx_matmul_workspace(int64_t n_rows, int64_t n_in);
int64_t amx_quantized_workspace(int64_t n_rows, int64_t n_in);
int64_t amx_backward_workspace(int64_t threads, int64_t max_rows, int64_t n_in);

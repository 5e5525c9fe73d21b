/* A CUDA GPU as a device (model/device.h). Every build has these functions; one without the toolkit
 * answers that it has no CUDA (cuda_none.c). The same binary runs where there is no driver. */
#pragma once

#include "model/device.h"

#ifdef __cplusplus
extern "C" {
#endif

/* To be called before any other, in a process that trains: kernels are loaded when they are first
 * used, and cuBLASLt may help. Else all kernels are loaded when a device is opened, and those of
 * cuBLASLt are left out. */
void cuda_device_will_train(void);
/* Usable GPUs; 0 without a driver, or without CUDA in this build. */
int32_t cuda_device_count(void);
/* GPU number `ordinal`. ERR_UNSUPPORTED says what is missing: CUDA in this build, a driver, that
 * many GPUs, or a compute capability that this build has code for. */
bool cuda_device_open(int32_t ordinal, struct device **out, struct error *err) MUST_CHECK;

#ifdef __cplusplus
}
#endif

/* What stands in for the CUDA device in a build without the toolkit. */
#include "cuda/cuda.h"

void cuda_device_will_train(void) {}

int32_t cuda_device_count(void) { return 0; }

bool cuda_device_open(int32_t ordinal, struct device **out, struct error *err)
{
    return error_set(err, ERR_UNSUPPORTED, "device", "--device cuda:%d: this build of gptd has no "
                     "CUDA (it was built without nvcc); use --device cpu", ordinal);
}

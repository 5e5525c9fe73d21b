/* How fast a device is, in the two figures that say how long a step takes: arithmetic of matrix
 * products and bytes to and from memory. Measured where the device is, from data sheets where it is
 * not (model/gpus.h). */
#pragma once

#include "model/device.h"

struct device_rates {
    double flops;       /* of matrix products of training's shapes, a second, in the run's type */
    double bytes;       /* read and written, a second, by what streams through memory */
    const char *source; /* "measured now", "data sheet": static */
};

/* Both, each measured for about a twentieth of a second in memory of its own that is freed again (a
 * few tens of MB). ERR_UNSUPPORTED on a device that cannot train. Here and below the device's
 * workspace must be set anew after. */
bool device_rates_measure(struct device *d, enum dtype dtype, struct device_rates *out,
                          struct error *err) MUST_CHECK;
/* The first of the two alone. */
bool device_product_rate_measure(struct device *d, enum dtype dtype, double *flops,
                                 struct error *err) MUST_CHECK;
/* What reading alone reaches in memory that no cache holds, in bytes a second: the limit of
 * products with few rows. Measured for as long, in 128 MiB. */
bool device_read_rate_measure(struct device *d, double *bytes, struct error *err) MUST_CHECK;

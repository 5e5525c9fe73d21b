/* Where a run's time goes: a device that passes every operation on to another one and keeps, for
 * each kind of operation (products by their shapes), how often it ran, how long it took, and the
 * arithmetic and the bytes that it cannot do without. Results and memory are the other device's to
 * the bit; each operation is waited for, so a device that works behind its caller's back is slower
 * under a profile.
 *
 * Counting begins anew with set_workspace: what was measured or tried before a run is not of it.
 * One thread, as every device. */
#pragma once

#include <stdio.h>

#include "model/device.h"

/* Measures what `inner` can do (model/device_rates.h), then takes it over: closing *out prints the
 * table to `to` and closes `inner` too. On failure `inner` is as it was. */
bool profile_open(struct device *inner, FILE *to, struct device **out, struct error *err)
    MUST_CHECK;

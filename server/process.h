/* The process's own memory, as the kernel counts it. Any thread. */
#pragma once

#include <stdint.h>

#include "api/api.h"

int64_t process_rss_bytes(void);
/* Fills rss and peak; leaves baseline_bytes to the caller, who took it (process_rss_bytes) just
 * before the model was opened. */
void process_memory(struct api_process_memory *out);

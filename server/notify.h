/* Tells the service manager how we are, as systemd's Type=notify services do: datagrams to the
 * socket that NOTIFY_SOCKET names. Without one nothing happens. Any thread. */
#pragma once

#include <stdint.h>

void notify_send(const char *state); /* "READY=1", "STOPPING=1", "WATCHDOG=1", ... */
void notify_reloading(void);         /* READY=1 is to follow */
/* How often WATCHDOG=1 is expected of this process, in nanoseconds; 0: never. */
int64_t notify_watchdog_ns(void);

/* Loaded into a server in front of libc (LD_PRELOAD): while the file that STALL_ENGINE names is
 * there, the engine's thread does not come back from asking the time, as if its device hung.
 * Black-box tests build it; see http/test_watchdog.py. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *out)
{
    char name[16] = "";
    const char *file = getenv("STALL_ENGINE");
    pthread_getname_np(pthread_self(), name, sizeof name);
    if (file && strcmp(name, "engine") == 0)
        while (access(file, F_OK) == 0) usleep(10000);
    return (int)syscall(SYS_clock_gettime, clock, out);
}

/* The log: see log.h. */
#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/utf8.h"

enum { LINE_MAX_BYTES = 2048, MESSAGE_MAX = 960 }; /* escaped, a message doubles at most */

static enum log_level log_threshold = LOG_INFO;
static enum log_format log_shape = LOG_TEXT;
static const char *const level_names[] = {"error", "warn", "info", "debug"};
static const char *const format_names[] = {"text", "json"};

void log_set_level(enum log_level level) { log_threshold = level; }
void log_set_format(enum log_format format) { log_shape = format; }
bool log_is_on(enum log_level level) { return level <= log_threshold; }

/* The index of a name; -1 when it is none of them. */
static int find(const char *const *names, int n, const char *name)
{
    for (int i = 0; i < n; i++)
        if (strcmp(name, names[i]) == 0) return i;
    return -1;
}

bool log_level_parse(const char *name, enum log_level *out)
{
    int i = find(level_names, 4, name);
    if (i >= 0) *out = (enum log_level)i;
    return i >= 0;
}

bool log_format_parse(const char *name, enum log_format *out)
{
    int i = find(format_names, 2, name);
    if (i >= 0) *out = (enum log_format)i;
    return i >= 0;
}

/* One event, one line, whatever a message carries. */
static void clean(char *message)
{
    for (; *message; message++)
        if ((unsigned char)*message < ' ') *message = ' ';
}

/* The inside of a JSON string; `out` has room for twice the message. */
static void escape(const char *message, char *out)
{
    size_t left = strlen(message);
    while (left > 0) {
        uint32_t cp;
        int n = utf8_decode(message, left, &cp);
        if (n <= 0) {
            *out++ = '?';
            n = 1;
        } else {
            if (*message == '"' || *message == '\\') *out++ = '\\';
            memcpy(out, message, (size_t)n);
            out += n;
        }
        message += n;
        left -= (size_t)n;
    }
    *out = 0;
}

/* The one write; `rest` is what follows time and level. */
static void put(enum log_level level, const char *rest)
{
    char line[LINE_MAX_BYTES + 80], when[32];
    struct timespec now;
    struct tm tm;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &tm);
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%S", &tm);
    const char *format = log_shape == LOG_JSON ? "{\"time\":\"%s.%03ldZ\",\"level\":\"%s\",%s}\n"
                                               : "%s.%03ldZ %-5s %s\n";
    int n = snprintf(line, sizeof line, format, when, now.tv_nsec / 1000000, level_names[level],
                     rest);
    if (n < 0 || (size_t)n >= sizeof line) return; /* rest has a limit */
    ssize_t written = write(STDERR_FILENO, line, (size_t)n);
    (void)written; /* nowhere left to report it */
}

void log_write(enum log_level level, const char *fmt, ...)
{
    if (!log_is_on(level)) return;
    char message[MESSAGE_MAX], quoted[2 * MESSAGE_MAX], member[LINE_MAX_BYTES];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(message, sizeof message, fmt, args);
    va_end(args);
    if (n < 0) return;
    if ((size_t)n >= sizeof message) message[utf8_complete(message, sizeof message - 1)] = 0;
    clean(message);
    if (log_shape == LOG_TEXT) {
        put(level, message);
        return;
    }
    escape(message, quoted);
    snprintf(member, sizeof member, "\"message\":\"%s\"", quoted);
    put(level, member);
}

void log_event(enum log_level level, const char *message, const char *members)
{
    if (log_is_on(level)) put(level, log_shape == LOG_JSON ? members : message);
}

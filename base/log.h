/* The log: one line an event on stderr, as text, "2026-01-31T12:00:00.123Z level message", or as
 * JSON, {"time":"2026-01-31T12:00:00.123Z","level":"info","message":"..."}. Safe from any thread
 * (one write a line). Prompts, outputs and keys are never logged above LOG_DEBUG. */
#pragma once

#include "base/error.h"

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };
enum log_format { LOG_TEXT, LOG_JSON };

void log_set_level(enum log_level level); /* at start, before threads; default LOG_INFO */
bool log_level_parse(const char *name, enum log_level *out);
void log_set_format(enum log_format format); /* at start, before threads; default LOG_TEXT */
bool log_format_parse(const char *name, enum log_format *out);
bool log_is_on(enum log_level level);

void log_write(enum log_level level, const char *fmt, ...) PRINTF_LIKE(2, 3);
/* An event that machines read, too: as JSON, `members` ("\"status\":200,...") stand in the
 * message's place. */
void log_event(enum log_level level, const char *message, const char *members);

#define log_error(...) log_write(LOG_ERROR, __VA_ARGS__)
#define log_warn(...) log_write(LOG_WARN, __VA_ARGS__)
#define log_info(...) log_write(LOG_INFO, __VA_ARGS__)
#define log_debug(...) log_write(LOG_DEBUG, __VA_ARGS__)

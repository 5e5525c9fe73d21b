/* Errors: a code for the program and a sentence for the person.
 *
 * A function that can fail returns bool and takes `struct error *` last. The first to
 * know writes the text (what was attempted, on what, why it failed, what would be right);
 * everybody above passes it on untouched. `error_set` returns false, so that
 *
 *     return error_set(err, ERR_FORMAT, NULL, "%s: header is %zu bytes, the file %zu", ...);
 *
 * reads as one step. `err` may be NULL when the caller does not care for the text. */
#pragma once

#include <stdarg.h>
#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MUST_CHECK __attribute__((warn_unused_result))
#define PRINTF_LIKE(fmt, args) __attribute__((format(printf, fmt, args)))

enum error_code {
    ERR_NONE = 0,
    ERR_INVALID,     /* the user asked for something that is not valid */
    ERR_NOT_FOUND,   /* what was named does not exist */
    ERR_FORMAT,      /* a file or a body is malformed */
    ERR_UNSUPPORTED, /* well formed, but not something gptd does */
    ERR_TOO_LARGE,   /* over a stated limit */
    ERR_NO_FIT,      /* does not fit into memory (or the budget), ever */
    ERR_NO_ROOM,     /* valid, but this machine, or its operator, has not the memory for it */
    ERR_BUSY,        /* would fit, but not now: retry later */
    ERR_TIMEOUT,     /* the deadline passed */
    ERR_CANCELED,    /* the caller went away or asked to stop */
    ERR_UNAVAILABLE, /* draining, or not ready */
    ERR_UNAUTHENTICATED, /* who asks is not known: no key, or a wrong one */
    ERR_FORBIDDEN,   /* who asks is known, and may not */
    ERR_IO,          /* the system refused: open, read, write, map */
    ERR_MEMORY,      /* the allocator refused */
    ERR_DISK_FULL,   /* no room, or no quota, where something was to be written */
    ERR_DEVICE,      /* a GPU, or its driver, failed: nothing runs on it in this process any more */
    ERR_MODEL,       /* the model computes what is no number: broken weights, or too large ones */
    ERR_INTERNAL,    /* a bug; the text is for the log */
};

struct error {
    enum error_code code;
    char param[64];  /* the parameter or key at fault; "" when there is none */
    int retry_after_s; /* ERR_BUSY: when there may be room; 0: soon */
    char text[512];  /* one sentence; control bytes become '?'; truncated with "..." if longer */
};

/* Fills `err` (if not NULL) and returns false. `param` may be NULL. */
bool error_set(struct error *err, enum error_code code, const char *param, const char *fmt, ...)
    PRINTF_LIKE(4, 5);
bool error_setv(struct error *err, enum error_code code, const char *param, const char *fmt,
                va_list args);

/* As error_set, with ": strerror(errno)" appended; the code follows errno
 * (ENOENT: ERR_NOT_FOUND; ENOMEM, and EAGAIN for a thread or a process: ERR_MEMORY; ENOSPC, EDQUOT
 * and EFBIG, which RLIMIT_FSIZE gives: ERR_DISK_FULL; else ERR_IO). */
bool error_errno(struct error *err, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* "invalid", "not_found", ...: stable names for logs. */
const char *error_code_name(enum error_code code);

/* Ends the process with file and line: for broken invariants (bugs), in release builds too. */
__attribute__((noreturn)) void bug_at(const char *file, int line, const char *what);
#define ASSERT(cond) ((cond) ? (void)0 : bug_at(__FILE__, __LINE__, #cond))

#ifdef __cplusplus
}
#endif

/* Errors: see error.h. */
#include "base/error.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool error_setv(struct error *err, enum error_code code, const char *param, const char *fmt,
                va_list args)
{
    if (!err) return false;
    err->code = code;
    err->retry_after_s = 0;
    snprintf(err->param, sizeof err->param, "%s", param ? param : "");
    /* Format apart: an argument may be err->text itself. */
    char text[sizeof err->text];
    int n = vsnprintf(text, sizeof text, fmt, args);
    if (n >= (int)sizeof text) memcpy(text + sizeof text - 4, "...", 4);
    /* Names come from files and requests: a line break in one must not begin a line of the log. */
    for (char *c = text; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7F) *c = '?';
    memcpy(err->text, text, sizeof text);
    return false;
}

bool error_set(struct error *err, enum error_code code, const char *param, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    error_setv(err, code, param, fmt, args);
    va_end(args);
    return false;
}

static enum error_code code_of(int number)
{
    switch (number) {
    case ENOENT: return ERR_NOT_FOUND;
    case ENOMEM:
    case EAGAIN: return ERR_MEMORY;
    case ENOSPC:
    case EDQUOT:
    case EFBIG: return ERR_DISK_FULL;
    default: return ERR_IO;
    }
}

bool error_errno(struct error *err, const char *fmt, ...)
{
    int saved = errno;
    if (!err) return false;
    va_list args;
    va_start(args, fmt);
    error_setv(err, code_of(saved), NULL, fmt, args);
    va_end(args);
    size_t n = strlen(err->text);
    snprintf(err->text + n, sizeof err->text - n, ": %s", strerror(saved));
    return false;
}

const char *error_code_name(enum error_code code)
{
    switch (code) {
    case ERR_NONE: return "none";
    case ERR_INVALID: return "invalid";
    case ERR_NOT_FOUND: return "not_found";
    case ERR_FORMAT: return "format";
    case ERR_UNSUPPORTED: return "unsupported";
    case ERR_TOO_LARGE: return "too_large";
    case ERR_NO_FIT: return "no_fit";
    case ERR_NO_ROOM: return "no_room";
    case ERR_BUSY: return "busy";
    case ERR_TIMEOUT: return "timeout";
    case ERR_CANCELED: return "canceled";
    case ERR_UNAVAILABLE: return "unavailable";
    case ERR_UNAUTHENTICATED: return "unauthenticated";
    case ERR_FORBIDDEN: return "forbidden";
    case ERR_IO: return "io";
    case ERR_MEMORY: return "memory";
    case ERR_DISK_FULL: return "disk_full";
    case ERR_DEVICE: return "device";
    case ERR_MODEL: return "model";
    case ERR_INTERNAL: return "internal";
    }
    return "unknown";
}

_Noreturn void bug_at(const char *file, int line, const char *what)
{
    fprintf(stderr, "gptd: bug at %s:%d: %s does not hold\n", file, line, what);
    abort();
}

/* JSON out: see json_out.h. */
#include "api/json_out.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"

size_t json_out_bad_utf8(const char *s, size_t n)
{
    uint32_t cp;
    size_t len = 1;
    while (len < n && utf8_decode(s, len + 1, &cp) < 0) len++;
    return len;
}

/* The escape of one ASCII byte that may not stand for itself. */
static void escape_byte(struct buf *out, unsigned char c)
{
    switch (c) {
    case '"': buf_puts(out, "\\\""); break;
    case '\\': buf_puts(out, "\\\\"); break;
    case '\n': buf_puts(out, "\\n"); break;
    case '\r': buf_puts(out, "\\r"); break;
    case '\t': buf_puts(out, "\\t"); break;
    default: buf_printf(out, "\\u%04x", c);
    }
}

void json_out_escape(struct buf *out, const char *s, size_t n)
{
    size_t plain = 0; /* bytes since the last special one, appended in one go */
    for (size_t i = 0; i < n;) {
        unsigned char c = (unsigned char)s[i];
        uint32_t cp;
        int len = c < 0x80 ? 1 : utf8_decode(s + i, n - i, &cp);
        if (len > 0 && c >= ' ' && c != '"' && c != '\\' && c != 0x7F) {
            i += (size_t)len;
            continue;
        }
        buf_append(out, s + plain, i - plain);
        if (len > 0) {
            escape_byte(out, c);
            i++;
        } else {
            buf_puts(out, UTF8_REPLACEMENT);
            i += json_out_bad_utf8(s + i, n - i);
        }
        plain = i;
    }
    buf_append(out, s + plain, n - plain);
}

void json_out_string(struct buf *out, const char *s, size_t n)
{
    buf_putc(out, '"');
    json_out_escape(out, s, n);
    buf_putc(out, '"');
}

void json_out_text(struct buf *out, const char *s)
{
    if (s) json_out_string(out, s, strlen(s));
    else buf_puts(out, "null");
}

void json_out_float(struct buf *out, float value)
{
    if (!isfinite(value)) {
        buf_puts(out, "null");
        return;
    }
    char text[32];
    for (int digits = 6; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)value);
        if (strtof(text, NULL) == value) break;
    }
    buf_puts(out, text);
}

void json_out_double(struct buf *out, double value)
{
    if (!isfinite(value)) {
        buf_puts(out, "null");
        return;
    }
    char text[32];
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value) break;
    }
    buf_puts(out, text);
}

void json_out_logprob(struct buf *out, float value)
{
    if (value >= -9999.0f) json_out_float(out, value);
    else buf_puts(out, "-9999.0");
}

/* Numbers as people read them: see format.h. */
#include "server/format.h"

#include <inttypes.h>
#include <stdio.h>

enum { DIGITS = 40 };

static int group(int64_t n, char out[DIGITS])
{
    char digits[24];
    int len = snprintf(digits, sizeof digits, "%" PRId64, n), used = 0;
    for (int i = 0; i < len; i++) {
        if (i && (len - i) % 3 == 0 && digits[i - 1] != '-') out[used++] = ',';
        out[used++] = digits[i];
    }
    out[used] = 0;
    return used;
}

void format_grouped(struct buf *out, int64_t n)
{
    char text[DIGITS];
    group(n, text);
    buf_puts(out, text);
}

void format_grouped_right(struct buf *out, int64_t n, int width)
{
    char text[DIGITS];
    group(n, text);
    buf_printf(out, "%*s", width, text);
}

void format_size(struct buf *out, int64_t n)
{
    if (n >= 1 << 30) buf_printf(out, "%.2f GiB", (double)n / (1 << 30));
    else buf_printf(out, "%.1f MiB", (double)n / (1 << 20));
}

void format_bytes(struct buf *out, int64_t n)
{
    format_grouped(out, n);
    buf_puts(out, " bytes");
    if (n < 1 << 20) return;
    buf_puts(out, " (");
    format_size(out, n);
    buf_putc(out, ')');
}

#include "tests/model/safetensors_writer.h"

#include <string.h>

void safetensors_put(struct buf *b, const char *header, const void *data, size_t n)
{
    uint64_t length = strlen(header);
    buf_append(b, &length, sizeof length);
    buf_puts(b, header);
    for (size_t i = 0; !data && i < n; i++) buf_putc(b, 0);
    if (data) buf_append(b, data, n);
}

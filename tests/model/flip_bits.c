#include "tests/model/flip_bits.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

size_t flip_each_bit(struct buf *b, open_copy_fn open_copy)
{
    size_t refused = 0;
    for (size_t bit = 0; bit < b->len * 8; bit++) {
        struct error err = {0};
        b->data[bit / 8] ^= (char)(1 << bit % 8);
        if (!open_copy(b, &err)) {
            assert_true(err.text[0]);
            refused++;
        }
        b->data[bit / 8] ^= (char)(1 << bit % 8);
    }
    return refused;
}

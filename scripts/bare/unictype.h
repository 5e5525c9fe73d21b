/* No Unicode tables: see README.md. Letters are ASCII's. */
#pragma once

#include <ctype.h>
#include <stdbool.h>
#include <stdint.h>

enum { UC_CATEGORY_MASK_M = 1, UC_CATEGORY_MASK_Nd = 2, UC_CATEGORY_MASK_Pc = 4 };
static inline bool uc_is_property_alphabetic(uint32_t c) { return c < 128 && isalpha((int)c); }
static inline bool uc_is_property_white_space(uint32_t c) { return c < 128 && isspace((int)c); }
static inline bool uc_is_property_join_control(uint32_t c) { return false; }
static inline bool uc_is_general_category_withtable(uint32_t c, uint32_t mask)
{
    return c < 128 && (isdigit((int)c) || c == '_');
}

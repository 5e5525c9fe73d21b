/* No patterns: see README.md. Compiling one fails; objects that are made beforehand are not
 * NULL. */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

typedef size_t PCRE2_SIZE;
typedef unsigned char PCRE2_UCHAR;
typedef const PCRE2_UCHAR *PCRE2_SPTR;
typedef struct bare_pattern pcre2_code, pcre2_compile_context, pcre2_match_data,
    pcre2_match_context, pcre2_jit_stack;

enum {
    PCRE2_UTF = 1, PCRE2_USE_OFFSET_LIMIT = 2, PCRE2_LITERAL = 4, PCRE2_UCP = 8,
    PCRE2_MULTILINE = 16, PCRE2_NEVER_BACKSLASH_C = 32, PCRE2_NO_UTF_CHECK = 64,
    PCRE2_JIT_COMPLETE = 1, PCRE2_NEWLINE_LF = 1, PCRE2_ERROR_NOMATCH = -1,
    PCRE2_ERROR_JIT_STACKLIMIT = -46, PCRE2_ERROR_MATCHLIMIT = -47, PCRE2_ERROR_NOMEMORY = -48,
    PCRE2_ERROR_HEAP_FAILED = 120,
    BARE_NO_PATTERNS = 199,
};

#define BARE_OBJECT ((struct bare_pattern *)(uintptr_t)16)

static inline pcre2_compile_context *pcre2_compile_context_create(void *memory)
{
    return BARE_OBJECT;
}
static inline void pcre2_compile_context_free(pcre2_compile_context *c) {}
static inline int pcre2_set_newline(pcre2_compile_context *c, uint32_t newline) { return 0; }
static inline pcre2_code *pcre2_compile(PCRE2_SPTR pattern, size_t n, uint32_t options, int *error,
                                        PCRE2_SIZE *at, pcre2_compile_context *c)
{
    *error = BARE_NO_PATTERNS;
    *at = 0;
    return NULL;
}
static inline int pcre2_get_error_message(int error, PCRE2_UCHAR *out, size_t n)
{
    return snprintf((char *)out, n, "this build has no patterns");
}
static inline int pcre2_jit_compile(pcre2_code *c, uint32_t options) { return 0; }
static inline void pcre2_code_free(pcre2_code *c) {}
static inline pcre2_match_data *pcre2_match_data_create(uint32_t n, void *memory)
{
    return BARE_OBJECT;
}
static inline void pcre2_match_data_free(pcre2_match_data *m) {}
static inline pcre2_match_context *pcre2_match_context_create(void *memory) { return BARE_OBJECT; }
static inline void pcre2_match_context_free(pcre2_match_context *c) {}
static inline int pcre2_set_match_limit(pcre2_match_context *c, uint32_t n) { return 0; }
static inline int pcre2_set_heap_limit(pcre2_match_context *c, uint32_t n) { return 0; }
static inline int pcre2_set_offset_limit(pcre2_match_context *c, PCRE2_SIZE n) { return 0; }
static inline pcre2_jit_stack *pcre2_jit_stack_create(size_t a, size_t b, void *memory)
{
    return NULL;
}
static inline void pcre2_jit_stack_assign(pcre2_match_context *c, void *f, void *stack) {}
static inline void pcre2_jit_stack_free(pcre2_jit_stack *s) {}
static inline int pcre2_match(const pcre2_code *c, PCRE2_SPTR s, size_t n, size_t at,
                              uint32_t options, pcre2_match_data *m, pcre2_match_context *x)
{
    return PCRE2_ERROR_NOMATCH;
}
static inline const PCRE2_SIZE *pcre2_get_ovector_pointer(pcre2_match_data *m) { return NULL; }

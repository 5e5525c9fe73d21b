/* Pre-tokenizers: the patterns that cut a text into the pieces that merging works on. A tokenizer
 * has a few steps, each a compiled PCRE2 pattern; a step cuts a span and hands its parts to the
 * next, so that no list of pieces is ever built.
 *
 * tokenizer.json writes patterns in Oniguruma's Ruby syntax. What means something else in PCRE2 is
 * rewritten or refused by `translate`. The text was validated as UTF-8 once, so matching skips that
 * check: each match costs its own length. */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/utf8.h"
#include "model/tokenizer_internal.h"

#define CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define SPACES "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define LEAD "[^\\r\\n\\p{L}\\p{N}]?"

const char pretokenize_gpt2[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
static const char llama3[] = CONTRACTIONS "|" LEAD "\\p{L}+|\\p{N}{1,3}|"
    " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" SPACES;
static const char qwen2[] = CONTRACTIONS "|" LEAD "\\p{L}+|\\p{N}|"
    " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" SPACES;
static const char qwen35[] = CONTRACTIONS "|" LEAD "[\\p{L}\\p{M}]+|\\p{N}|"
    " ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|" SPACES;
static const char tekken[] = LEAD UPPER "*" LOWER "+|" LEAD UPPER "+" LOWER "*|\\p{N}|"
    " ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" SPACES;
static const char gpt4o[] = LEAD UPPER "*" LOWER "+" CONTRACTIONS "?|" LEAD UPPER "+" LOWER "*"
    CONTRACTIONS "?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" SPACES;
static const char bloom[] = " ?[^(\\s|.,!?…。，、।۔،)]+";
static const char digit[] = "\\p{N}";

/* The pre-tokenizers that GGUF files name (tokenizer.ggml.pre), each with the patterns of its
 * family; every step isolates its matches. */
static const struct {
    const char *family;
    const char *names; /* each between spaces */
    const char *steps[3];
} named[] = {
    {"gpt2",
     " gpt-2 phi-2 jina-es jina-de jina-v1-en jina-v2-es jina-v2-de jina-v2-code gigachat a.x-4.0 "
     "mellum modern-bert roberta-bpe exaone4 mpt olmo jais trillion granite-docling ",
     {pretokenize_gpt2}},
    {"smollm",
     " smollm starcoder refact command-r codeshell exaone minerva-7b mellum2 ",
     {digit, pretokenize_gpt2}},
    {"llama3",
     " llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 dbrx smaug-bpe "
     "chatglm-bpe glm4 ",
     {llama3}},
    {"qwen2", " qwen2 deepseek-r1-qwen stablelm2 hunyuan megrez solar-open ", {qwen2}},
    {"qwen35", " qwen35 ", {qwen35}},
    {"tekken", " tekken ", {tekken}},
    {"gpt4o", " gpt-4o llama4 kanana2 ", {gpt4o}},
    {"bloom", " bloom poro-chat gpt3-finnish ", {bloom}},
    {"viking", " viking ", {bloom, digit}},
    {"falcon", " falcon ", {"[\\p{P}\\$\\+<=>\\^~\\|`]+", pretokenize_gpt2, "[0-9][0-9][0-9]"}},
    {"default", " default ", {"[\\p{P}\\$\\+<=>\\^~\\|]+", pretokenize_gpt2, "[0-9][0-9][0-9]"}},
};
enum { N_NAMED = sizeof named / sizeof named[0] };

const char *pretokenize_family(const struct tokenizer *t)
{
    for (size_t i = 0; i < N_NAMED; i++) {
        int32_t k = 0;
        while (k < t->n_steps && k < 3 && named[i].steps[k] && !t->steps[k].invert &&
               t->steps[k].behavior == SPLIT_ISOLATED &&
               strcmp(named[i].steps[k], t->steps[k].pattern) == 0)
            k++;
        if (k > 0 && k == t->n_steps && (k == 3 || !named[i].steps[k])) return named[i].family;
    }
    return NULL;
}

static bool add_steps(struct tokenizer *t, size_t i, const char *where, struct error *err)
{
    for (size_t k = 0; k < 3 && named[i].steps[k]; k++) {
        const char *pattern = named[i].steps[k];
        if (!pretokenize_add(t, pattern, strlen(pattern), false, SPLIT_ISOLATED, false, where, err))
            return false;
    }
    return true;
}

bool pretokenize_add_family(struct tokenizer *t, const char *family, struct error *err)
{
    struct buf list;
    buf_init(&list, 1024);
    for (size_t i = 0; i < N_NAMED; i++) {
        if (strcmp(named[i].family, family) == 0) {
            buf_free(&list);
            return add_steps(t, i, family, err);
        }
        buf_printf(&list, "%s%s", i ? " " : "", named[i].family);
    }
    error_set(err, ERR_INVALID, NULL, "there is no pre-tokenizer \"%.60s\"; there are %s", family,
              list.data ? list.data : "");
    buf_free(&list);
    return false;
}

bool pretokenize_add_named(struct tokenizer *t, const char *name, size_t n, const char *where,
                           struct error *err)
{
    char spaced[64];
    int length = snprintf(spaced, sizeof spaced, " %.*s ", (int)(n < 60 ? n : 60), name);
    bool plain = n > 0 && n < 60 && !memchr(name, ' ', n) && strlen(spaced) == (size_t)length;
    for (size_t i = 0; plain && i < N_NAMED; i++) {
        if (strstr(named[i].names, spaced)) return add_steps(t, i, where, err);
    }
    return error_set(err, ERR_UNSUPPORTED, NULL,
                     "%s: the pre-tokenizer \"%.*s\" is not one that gptd knows", where,
                     (int)(n < 60 ? n : 60), name);
}

/* ---- Oniguruma's syntax to PCRE2's ---- */

static bool refuse(const char *where, const char *pattern, size_t n, const char *why,
                   struct error *err)
{
    return error_set(err, ERR_UNSUPPORTED, NULL, "%s: the pre-tokenizer's pattern \"%.*s\" %s",
                     where, (int)(n < 200 ? n : 200), pattern, why);
}

/* The escape \c, when it means something else in PCRE2: what to write for it, outside and inside a
 * [class]. NULL: as it is. \s there takes U+180E too; \w there lacks marks and circled letters (and
 * Oniguruma's has Latin-1's raised digits and fractions); \h there is a space. */
#define WORD "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{B2}\\x{B3}\\x{B9}\\x{BC}-\\x{BE}"
static const char *escape_for(char c, bool in_class)
{
    switch (c) {
    case 's': return "\\p{White_Space}";
    case 'S': return "\\P{White_Space}";
    case 'w': return in_class ? WORD : "[" WORD "]";
    case 'W': return in_class ? NULL : "[^" WORD "]";
    case 'h': return in_class ? "0-9A-Fa-f" : "[0-9A-Fa-f]";
    default: return NULL;
    }
}

static bool translate(const char *pattern, size_t n, const char *where, struct buf *out,
                      struct error *err)
{
    if (n >= 2 && memcmp(pattern, "(*", 2) == 0)
        return refuse(where, pattern, n, "begins with (*, which gptd does not take", err);
    bool in_class = false;
    size_t class_at = 0; /* where the class's first item would be */
    for (size_t i = 0; i < n; i++) {
        char c = pattern[i];
        if (c == '\\' && i + 1 < n) {
            char name = pattern[++i];
            if (name == 'H' || (name == 'W' && in_class))
                return refuse(where, pattern, n, "has an escape that gptd does not take", err);
            const char *to = escape_for(name, in_class);
            if (to) buf_puts(out, to);
            else buf_append(out, pattern + i - 1, 2);
            continue;
        }
        if (in_class && c == '[' && !(i + 1 < n && pattern[i + 1] == ':'))
            return refuse(where, pattern, n, "has a [class] within a [class]", err);
        if (in_class && c == '&' && i + 1 < n && pattern[i + 1] == '&')
            return refuse(where, pattern, n, "has an intersection (&&) of classes", err);
        if (in_class && c == '[') { /* [:alpha:] */
            const char *end = memmem(pattern + i, n - i, ":]", 2);
            if (!end) return refuse(where, pattern, n, "has a [: without its :]", err);
            buf_append(out, pattern + i, (size_t)(end + 2 - (pattern + i)));
            i = (size_t)(end + 1 - pattern);
            continue;
        }
        if (!in_class && c == '[') {
            in_class = true;
            class_at = i + 1 + (i + 1 < n && pattern[i + 1] == '^');
        } else if (in_class && c == ']' && i != class_at) {
            in_class = false;
        }
        buf_putc(out, c);
    }
    return buf_check(out, "the pre-tokenizer's pattern", err);
}

static bool compile(struct split_step *step, const struct buf *pattern, bool literal,
                    const char *where, struct error *err)
{
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    if (!context) return error_set(err, ERR_MEMORY, NULL, "%s: no memory for a pattern", where);
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    /* Ruby's ^ and $ are those of lines. */
    uint32_t options = PCRE2_UTF | PCRE2_USE_OFFSET_LIMIT;
    options |= literal ? PCRE2_LITERAL : PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
    int code;
    PCRE2_SIZE at;
    step->code = pcre2_compile((PCRE2_SPTR)pattern->data, pattern->len, options, &code, &at,
                               context);
    pcre2_compile_context_free(context);
    if (!step->code && code == PCRE2_ERROR_HEAP_FAILED)
        return error_set(err, ERR_MEMORY, NULL, "%s: no memory for a pattern", where);
    if (!step->code) {
        PCRE2_UCHAR why[120] = "";
        char text[160];
        pcre2_get_error_message(code, why, sizeof why);
        snprintf(text, sizeof text, "is not one that gptd can use (%s)", (char *)why);
        return refuse(where, pattern->data, pattern->len, text, err);
    }
    /* Without JIT (no executable memory on a hardened system) matching is slower, not different. */
    pcre2_jit_compile(step->code, PCRE2_JIT_COMPLETE);
    return true;
}

bool pretokenize_add(struct tokenizer *t, const char *pattern, size_t n, bool literal,
                     enum split_behavior behavior, bool invert, const char *where,
                     struct error *err)
{
    if (t->n_steps == TOKENIZER_MAX_STEPS)
        return error_set(err, ERR_UNSUPPORTED, NULL, "%s: over %d pre-tokenizer steps", where,
                         TOKENIZER_MAX_STEPS);
    if (n == 0) return refuse(where, pattern, n, "is empty", err);
    struct split_step step = {.behavior = behavior, .invert = invert};
    struct buf translated;
    buf_init(&translated, 1 << 16);
    bool ok;
    if (literal) {
        buf_append(&translated, pattern, n);
        ok = buf_check(&translated, "the pre-tokenizer's pattern", err);
    } else {
        ok = translate(pattern, n, where, &translated, err);
    }
    ok = ok && compile(&step, &translated, literal, where, err);
    buf_free(&translated);
    if (!ok) return false;
    step.pattern = arena_copy(&t->arena, pattern, n);
    if (!step.pattern) {
        pcre2_code_free(step.code);
        return error_set(err, ERR_MEMORY, NULL, "%s: no memory for a pattern", where);
    }
    t->steps[t->n_steps++] = step;
    if (behavior == SPLIT_REMOVED) t->drops_text = true;
    return true;
}

/* ---- Cutting ---- */

/* What a step has cut but not yet handed on: the next span may still join it. */
struct pending {
    size_t begin, end;
    bool is_match;
};

static bool run_steps(struct encoder *e, int32_t step, const char *s, size_t n);

/* Does a span join the one before it into one piece? */
static bool joins(enum split_behavior behavior, const struct pending *before, bool is_match)
{
    switch (behavior) {
    case SPLIT_CONTIGUOUS: return before->is_match == is_match;
    case SPLIT_MERGED_WITH_PREVIOUS: return is_match && !before->is_match;
    case SPLIT_MERGED_WITH_NEXT: return !is_match && before->is_match;
    case SPLIT_REMOVED:
    case SPLIT_ISOLATED: break;
    }
    return false;
}

static bool flush(struct encoder *e, int32_t step, const char *s, struct pending *p)
{
    bool drop = p->begin == p->end ||
                (e->t->steps[step].behavior == SPLIT_REMOVED && p->is_match);
    return drop || run_steps(e, step + 1, s + p->begin, p->end - p->begin);
}

/* The text from where p ends to `end` matched, or did not. An empty match still cuts. */
static bool cut(struct encoder *e, int32_t step, const char *s, struct pending *p, size_t end,
                bool is_match)
{
    size_t begin = p->end;
    if (begin == end && !is_match) return true;
    is_match ^= e->t->steps[step].invert;
    if (begin < end && p->begin < p->end && joins(e->t->steps[step].behavior, p, is_match)) {
        p->end = end;
        p->is_match = is_match;
        return true;
    }
    if (!flush(e, step, s, p)) return false;
    *p = (struct pending){.begin = begin, .end = end, .is_match = is_match};
    return true;
}

/* Tries to match from `at` up to `last` (the last place where a match may begin). PCRE2's
 * result. */
static int match_between(struct encoder *e, const struct split_step *step, const char *s, size_t n,
                         size_t at, size_t last)
{
    pcre2_set_offset_limit(e->match_context, last);
    int rc = pcre2_match(step->code, (PCRE2_SPTR)s, n, at, PCRE2_NO_UTF_CHECK, e->match,
                         e->match_context);
    if (rc != PCRE2_ERROR_JIT_STACKLIMIT || e->jit_stack) return rc;
    /* The 32 KiB that PCRE2 takes from our stack do for all but odd patterns. */
    e->jit_stack = pcre2_jit_stack_create(64 << 10, 8 << 20, NULL);
    if (!e->jit_stack) return rc;
    pcre2_jit_stack_assign(e->match_context, NULL, e->jit_stack);
    return match_between(e, step, s, n, at, last);
}

/* Has this call spent more of the processor on patterns than any sane one needs? The thread's own
 * time: a busy machine must not fail what is only waiting. */
static bool out_of_time(struct encoder *e)
{
    const int64_t allowed_ns = 1000 * 1000 * 1000 + (int64_t)e->n_text * 1000;
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    int64_t now_ns = (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
    if (e->deadline_ns == 0) e->deadline_ns = now_ns + allowed_ns;
    return now_ns > e->deadline_ns;
}

/* Finds the next match at or after `at`. Returns 1, 0 (none), or -1 with the error set.
 *
 * A pattern that fails at each place only after a long look ahead (\s+$ on a line of spaces) takes
 * the square of the text's length, which PCRE2's own limits do not see: they count for one place.
 * So the search goes by windows, with an eye on the clock between them, and now and then between
 * matches. The usual patterns match where they start. */
static int next_match(struct encoder *e, const struct split_step *step, const char *s, size_t n,
                      size_t at, size_t *begin, size_t *end)
{
    enum { WINDOW = 256 };
    int rc;
    size_t from = at;
    for (;;) {
        size_t last = n - from > WINDOW ? from + WINDOW : n;
        rc = match_between(e, step, s, n, from, last);
        bool ask = rc == PCRE2_ERROR_NOMATCH || ++e->n_matches % 1024 == 0;
        if (ask && out_of_time(e)) rc = PCRE2_ERROR_MATCHLIMIT;
        if (rc != PCRE2_ERROR_NOMATCH || last == n) break;
        for (from = last + 1; from < n && ((uint8_t)s[from] & 0xC0) == 0x80;) from++;
    }
    if (rc >= 0) {
        const PCRE2_SIZE *range = pcre2_get_ovector_pointer(e->match);
        *begin = range[0];
        *end = range[1];
        /* \K may leave these out of order; such a match splits nothing. */
        return *begin >= at && *end >= *begin;
    }
    if (rc == PCRE2_ERROR_NOMATCH) return 0;
    PCRE2_UCHAR why[120] = "";
    pcre2_get_error_message(rc, why, sizeof why);
    error_set(e->err, rc == PCRE2_ERROR_NOMEMORY ? ERR_MEMORY : ERR_TOO_LARGE, NULL,
              "the tokenizer's pattern gave up on the text (%s): it is too long or too regular",
              (char *)why);
    return -1;
}

static bool run_steps(struct encoder *e, int32_t step, const char *s, size_t n)
{
    if (step == e->t->n_steps) return e->piece(e, s, n);
    struct pending p = {0};
    for (size_t at = 0; at < n;) {
        size_t begin, end;
        int found = next_match(e, &e->t->steps[step], s, n, at, &begin, &end);
        if (found < 0) return false;
        if (!found) break;
        if (!cut(e, step, s, &p, begin, false) || !cut(e, step, s, &p, end, true)) return false;
        at = end;
        if (begin == end && at < n) { /* an empty match: look on behind the next character */
            uint32_t cp;
            at += (size_t)utf8_decode(s + at, n - at, &cp);
        }
    }
    return cut(e, step, s, &p, n, false) && flush(e, step, s, &p);
}

/* The prefix, and U+2581 for spaces where that is the pre-tokenizer's work. */
static bool put_prefix(struct encoder *e, const char **s, size_t *n)
{
    const struct tokenizer *t = e->t;
    bool there = (*n >= t->n_prefix && memcmp(*s, t->prefix, t->n_prefix) == 0) ||
                 (t->metaspace && **s == ' ');
    bool wanted = t->prefix_when == PREFIX_ALWAYS || (t->prefix_when == PREFIX_FIRST && !e->begun);
    if (!t->metaspace && (there || !wanted)) return true;
    buf_clear(&e->prefixed);
    if (wanted && !there) buf_append(&e->prefixed, t->prefix, t->n_prefix);
    if (t->metaspace) {
        const struct normalizer spaces = {NORMALIZE_REPLACE, " ", SPACE_MARK, 1, 3};
        if (!normalize_once(&spaces, *s, *n, &e->prefixed, e->err)) return false;
    } else {
        buf_append(&e->prefixed, *s, *n);
    }
    *s = e->prefixed.data;
    *n = e->prefixed.len;
    return buf_check(&e->prefixed, "the prefixed text", e->err);
}

bool pretokenize(struct encoder *e, const char *s, size_t n)
{
    if (n == 0) return true;
    bool changes = e->t->metaspace || e->t->prefix_when != PREFIX_NEVER;
    if (changes && !put_prefix(e, &s, &n)) return false;
    e->begun = true;
    return run_steps(e, 0, s, n);
}

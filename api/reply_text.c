/* Tokens to reply text: see reply_text.h. */
#include "api/reply_text.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "api/json_out.h"
#include "base/utf8.h"

void reply_part_init(struct reply_part *p, size_t limit)
{
    *p = (struct reply_part){0};
    buf_init(&p->text, limit);
    buf_init(&p->tokens, limit);
    buf_init(&p->logprobs, limit);
    buf_init(&p->top, limit);
    buf_init(&p->offsets, limit);
}

void reply_part_clear(struct reply_part *p)
{
    buf_clear(&p->text);
    buf_clear(&p->tokens);
    buf_clear(&p->logprobs);
    buf_clear(&p->top);
    buf_clear(&p->offsets);
    p->n_tokens = 0;
}

void reply_part_free(struct reply_part *p)
{
    buf_free(&p->text);
    buf_free(&p->tokens);
    buf_free(&p->logprobs);
    buf_free(&p->top);
    buf_free(&p->offsets);
}

bool reply_part_empty(const struct reply_part *p) { return p->text.len == 0 && p->n_tokens == 0; }

bool reply_part_failed(const struct reply_part *p)
{
    return p->text.failed || p->tokens.failed || p->logprobs.failed || p->top.failed ||
           p->offsets.failed;
}

/* ---- text ------------------------------------------------------------------------------------ */

static void show_replacement(struct reply_cursor *c, struct buf *text)
{
    buf_puts(text, UTF8_REPLACEMENT);
    c->n_chars++;
    c->n_carry = 0;
}

/* Appends n raw bytes: whole characters at once, what may still become one to the carry. The
 * outcome depends on the bytes only, not on how they are cut into calls. */
static void show_bytes(struct reply_cursor *c, struct buf *text, const char *s, size_t n)
{
    for (size_t i = 0; i < n;) {
        uint32_t cp;
        if (c->n_carry == 0 && (unsigned char)s[i] < 0x80) {
            json_out_escape(text, s + i, 1);
            c->n_chars++;
            i++;
            continue;
        }
        c->carry[c->n_carry] = s[i];
        int len = utf8_decode(c->carry, (size_t)c->n_carry + 1, &cp);
        if (len > 0) {
            json_out_escape(text, c->carry, (size_t)len);
            c->n_chars++;
            c->n_carry = 0;
            i++;
        } else if (len < 0) {
            c->n_carry++;
            i++;
        } else {
            /* What was carried ends here, unfinished; s[i] alone may begin something new. */
            if (c->n_carry == 0) i++;
            show_replacement(c, text);
        }
    }
}

/* ---- log-probabilities ----------------------------------------------------------------------- */

/* The name of a token in "tokens" and the keys of "top_logprobs": its text; "bytes:\xe2\x80" when
 * it is part of a character (as OpenAI writes it, so that different tokens keep different names);
 * "token_id:N" without a tokenizer. As the inside of a JSON string. */
static void token_name(const struct tokenizer *t, int32_t id, enum logprob_shape shape,
                       struct buf *out)
{
    size_t n = 0;
    const char *bytes = t ? tokenizer_token_bytes(t, id, &n) : NULL;
    if (!bytes) {
        buf_printf(out, "token_id:%d", id);
        return;
    }
    if (shape == LOGPROBS_CHAT || utf8_valid(bytes, n, NULL)) {
        json_out_escape(out, bytes, n);
        return;
    }
    buf_puts(out, "bytes:");
    for (size_t i = 0; i < n; i++) buf_printf(out, "\\\\x%02x", (unsigned char)bytes[i]);
}

/* Two tokens whose names in "top_logprobs" would be equal? */
static bool same_name(const struct tokenizer *t, int32_t a, int32_t b)
{
    if (a == b || !t) return a == b;
    size_t na, nb;
    const char *bytes_a = tokenizer_token_bytes(t, a, &na);
    const char *bytes_b = tokenizer_token_bytes(t, b, &nb);
    return bytes_a && bytes_b && na == nb && memcmp(bytes_a, bytes_b, na) == 0;
}

/* {"name":logprob,...}: the alternatives, and the token itself when it is not among them. Names are
 * keys here: of several tokens with one name the most probable (the first) stays. */
static void completions_top(const struct tokenizer *t, struct token_logprob self,
                            const struct token_logprob *top, int32_t n_top, struct buf *out)
{
    buf_putc(out, '{');
    const char *comma = "";
    bool has_self = false;
    for (int32_t i = 0; i <= n_top; i++) {
        struct token_logprob item = i < n_top ? top[i] : self;
        if (item.id < 0 || (i == n_top && has_self)) continue;
        bool seen = false;
        for (int32_t j = 0; j < i && !seen; j++) seen = same_name(t, top[j].id, item.id);
        has_self |= same_name(t, item.id, self.id);
        if (seen) continue;
        buf_printf(out, "%s\"", comma);
        token_name(t, item.id, LOGPROBS_COMPLETIONS, out);
        buf_puts(out, "\":");
        json_out_logprob(out, item.logprob);
        comma = ",";
    }
    buf_putc(out, '}');
}

/* "token":...,"logprob":...,"bytes":[...] */
static void chat_token(const struct tokenizer *t, struct token_logprob item, struct buf *out)
{
    buf_puts(out, "\"token\":\"");
    token_name(t, item.id, LOGPROBS_CHAT, out);
    buf_puts(out, "\",\"logprob\":");
    json_out_logprob(out, item.logprob);
    size_t n = 0;
    const char *bytes = t ? tokenizer_token_bytes(t, item.id, &n) : NULL;
    buf_puts(out, bytes ? ",\"bytes\":[" : ",\"bytes\":null");
    if (!bytes) return;
    for (size_t i = 0; i < n; i++)
        buf_printf(out, "%s%d", i ? "," : "", (unsigned char)bytes[i]);
    buf_putc(out, ']');
}

/* One token's entry. `scored` is false for a text's first token, which nothing precedes. */
static void show_logprob(const struct reply_cursor *c, const struct reply_source *s,
                         struct token_logprob item, bool scored, const struct token_logprob *top,
                         struct reply_part *part)
{
    int32_t n_top = s->request->params.n_top;
    const char *comma = part->n_tokens++ ? "," : "";
    if (s->shape == LOGPROBS_CHAT) {
        buf_printf(&part->tokens, "%s{", comma);
        chat_token(s->tokenizer, item, &part->tokens);
        buf_puts(&part->tokens, ",\"top_logprobs\":[");
        for (int32_t i = 0; i < n_top && top[i].id >= 0; i++) {
            buf_puts(&part->tokens, i ? ",{" : "{");
            chat_token(s->tokenizer, top[i], &part->tokens);
            buf_putc(&part->tokens, '}');
        }
        buf_puts(&part->tokens, "]}");
        return;
    }
    buf_printf(&part->tokens, "%s\"", comma);
    token_name(s->tokenizer, item.id, s->shape, &part->tokens);
    buf_putc(&part->tokens, '"');
    buf_puts(&part->logprobs, comma);
    buf_puts(&part->top, comma);
    if (scored) json_out_logprob(&part->logprobs, item.logprob);
    else buf_puts(&part->logprobs, "null");
    if (scored && n_top > 0) completions_top(s->tokenizer, item, top, n_top, &part->top);
    else buf_puts(&part->top, "null");
    buf_printf(&part->offsets, "%s%lld", comma, (long long)c->n_chars);
}

/* ---- walking --------------------------------------------------------------------------------- */

void reply_cursor_init(struct reply_cursor *c, const struct reply_source *s, int32_t choice)
{
    *c = (struct reply_cursor){.choice = choice};
    /* A reply goes on from the prompt and keeps its leading space; an echo loses its own. */
    c->decode_ahead.started = !s->text_start;
    c->decode_shown.started = !s->text_start && !s->echo;
}

static const char *decode(const struct reply_source *s, struct token_decoder *d, int32_t id,
                          size_t *n)
{
    *n = 0;
    return s->tokenizer ? token_decode(s->tokenizer, d, id, n) : "";
}

/* Shows the prompt (echo), as far as it is scored where scores are wanted. */
static int32_t advance_prompt(struct reply_cursor *c, const struct reply_source *s, int32_t max,
                              struct reply_part *part)
{
    const struct engine_request *r = s->request;
    bool scores = s->shape != LOGPROBS_NONE;
    int32_t ready = scores ? atomic_load_explicit(&r->n_prompt_scored, memory_order_acquire)
                           : r->params.n_prompt;
    if (ready < 1) ready = 1; /* nothing precedes the first token: it has no score */
    int32_t n = 0;
    for (; n < max && c->n_prompt < ready; n++, c->n_prompt++) {
        int32_t i = c->n_prompt, id = r->params.prompt[i];
        if (scores) {
            struct token_logprob item = {id, r->prompt_scores[i].logprob};
            const struct token_logprob *top =
                r->params.n_top ? r->prompt_top + (size_t)i * (size_t)r->params.n_top : NULL;
            show_logprob(c, s, item, i > 0, top, part);
        }
        size_t len;
        const char *bytes = decode(s, &c->decode_shown, id, &len);
        show_bytes(c, &part->text, bytes, len);
    }
    if (c->n_prompt == r->params.n_prompt) c->decode_shown.started = true;
    return n;
}

/* Feeds the stop matcher. */
static int32_t advance_ahead(struct reply_cursor *c, const struct reply_source *s, int32_t max,
                             int32_t n_tokens)
{
    const struct engine_choice *choice = &s->request->choices[c->choice];
    int32_t n = 0;
    for (; n < max && c->n_ahead < n_tokens && !c->stop.matched; n++, c->n_ahead++) {
        const struct engine_token *token = &choice->tokens[c->n_ahead];
        if (token->is_stop) continue;
        size_t len;
        const char *bytes = decode(s, &c->decode_ahead, token->id, &len);
        stop_push(&s->request->params.stops, &c->stop, bytes, len);
    }
    return n;
}

/* How many of a token's n bytes are to be shown now; -1: not the token itself either (yet, or
 * never). `cut` is where a stop string begins, `safe` where one might. */
static int64_t bytes_to_show(const struct reply_cursor *c, int64_t n, int64_t safe, int64_t cut)
{
    int64_t begin = c->shown_bytes, end = begin + n;
    if (end <= safe) return n;
    if (cut < 0 || begin >= cut) return -1;
    return cut - begin;
}

static int32_t advance_shown(struct reply_cursor *c, const struct reply_source *s, int32_t max,
                             int32_t n_tokens, bool final, struct reply_part *part)
{
    const struct engine_choice *choice = &s->request->choices[c->choice];
    bool stops = s->request->params.stops.n > 0 && s->tokenizer;
    int64_t safe = !stops || (final && !c->stop.matched) ? INT64_MAX : c->stop.safe;
    int64_t cut = final && c->stop.matched ? c->stop.safe : -1;
    int32_t n = 0, n_top = s->request->params.n_top;
    for (; n < max && c->n_shown < n_tokens; n++, c->n_shown++) {
        int32_t i = c->n_shown;
        struct token_logprob item = {choice->tokens[i].id, choice->tokens[i].logprob};
        if (choice->tokens[i].is_stop) continue;
        struct token_decoder decoder = c->decode_shown;
        size_t len;
        const char *bytes = decode(s, &decoder, item.id, &len);
        int64_t show = bytes_to_show(c, (int64_t)len, safe, cut);
        if (show < 0) {
            if (final) c->n_shown = n_tokens; /* the rest belongs to the stop string */
            break;
        }
        const struct token_logprob *top =
            n_top ? choice->top + (size_t)i * (size_t)n_top : NULL;
        if (s->shape != LOGPROBS_NONE) show_logprob(c, s, item, true, top, part);
        show_bytes(c, &part->text, bytes, (size_t)show);
        c->shown_bytes += show;
        c->decode_shown = decoder;
        if (show < (int64_t)len) c->n_shown = n_tokens - 1; /* the last one: cut here */
    }
    return n;
}

bool reply_in_prompt(const struct reply_cursor *c, const struct reply_source *s)
{
    return s->echo && c->n_prompt < s->request->params.n_prompt;
}

int32_t reply_advance(struct reply_cursor *c, const struct reply_source *s, int32_t max_tokens,
                      struct reply_part *part)
{
    if (c->ended) return 0;
    const struct engine_choice *choice = &s->request->choices[c->choice];
    /* Finish first: once it is set the number of tokens is final. */
    int32_t finish = atomic_load_explicit(&choice->finish, memory_order_acquire);
    int32_t n_tokens = atomic_load_explicit(&choice->n_tokens, memory_order_acquire);
    if (reply_in_prompt(c, s)) return advance_prompt(c, s, max_tokens, part);
    int32_t n = 0;
    bool stops = s->request->params.stops.n > 0 && s->tokenizer;
    if (stops) n += advance_ahead(c, s, max_tokens, n_tokens);
    else c->n_ahead = n_tokens;
    bool final = finish != FINISH_NONE && (c->n_ahead == n_tokens || c->stop.matched);
    n += advance_shown(c, s, max_tokens, c->n_ahead, final, part);
    if (final && c->n_shown >= c->n_ahead) {
        if (c->n_carry > 0) show_replacement(c, &part->text);
        c->ended = true;
    }
    return n;
}

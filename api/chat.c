/* Chat templates: see chat.h. The families' official templates, as each model's publisher wrote
 * them, rendered straight to token ids: markers become special tokens where the tokenizer has them;
 * everything between two special tokens is encoded as one text, without looking for special tokens
 * in it. */
#include "api/chat.h"

#include <stdio.h>
#include <string.h>

#include "base/utf8.h"

/* ---- recognition ----------------------------------------------------------------------------- */

static bool has(const char *text, const char *what) { return strstr(text, what) != NULL; }

static int count(const char *text, const char *what)
{
    int n = 0;
    for (const char *p = text; (p = strstr(p, what)); p += strlen(what)) n++;
    return n;
}

static enum chat_family recognise(const char *jinja)
{
    /* Other formats on the same markers: "<|im_sep|>" is Phi-4's, "## Metadata" SmolLM3's,
     * "[SYSTEM_PROMPT]" later Mistrals'. */
    if (has(jinja, "<|im_start|>"))
        return has(jinja, "<|im_sep|>") || has(jinja, "## Metadata") ? CHAT_UNKNOWN : CHAT_CHATML;
    if (has(jinja, "<|start_header_id|>")) return CHAT_LLAMA3;
    if (has(jinja, "<start_of_turn>")) return CHAT_GEMMA;
    if (has(jinja, "[INST]")) {
        if (has(jinja, "[SYSTEM_PROMPT]")) return CHAT_UNKNOWN;
        return has(jinja, "<<SYS>>") ? CHAT_LLAMA2 : CHAT_MISTRAL;
    }
    /* Each of the three roles' texts ends with EOS; others use these markers differently. */
    if (has(jinja, "<|user|>") && has(jinja, "<|assistant|>") && !has(jinja, "<|end|>") &&
        count(jinja, "eos_token") + count(jinja, "</s>") >= 3)
        return CHAT_ZEPHYR;
    return CHAT_UNKNOWN;
}

/* Copies the inside of a Jinja string literal with its escapes resolved; false when it does not
 * fit. */
static bool unescape(const char *s, size_t n, char *out, size_t size)
{
    size_t used = 0;
    for (size_t i = 0; i < n; i++) {
        char c = s[i];
        if (c == '\\' && i + 1 < n) {
            c = s[++i];
            if (c == 'n') c = '\n';
            else if (c == 't') c = '\t';
        }
        if (used + 1 >= size) return false;
        out[used++] = c;
    }
    out[used] = 0;
    return true;
}

/* The system message that a ChatML template writes itself when there is none: a literal
 * "<|im_start|>system\n...
 * <|im_end|>", where templates that write the caller's own close the literal after "\n". */
static void find_default_system(struct chat_template *ct, const char *jinja)
{
    static const char begin[] = "<|im_start|>system";
    for (const char *p = jinja; (p = strstr(p, begin));) {
        p += sizeof begin - 1;
        if (p[0] == '\\' && p[1] == 'n') p += 2;
        else if (p[0] == '\n') p += 1;
        else continue;
        const char *end = strstr(p, "<|im_end|>");
        if (!end || *p == '\'' || *p == '"' || *p == '{') continue;
        ct->adds_default_system =
            unescape(p, (size_t)(end - p), ct->default_system, sizeof ct->default_system);
        if (!ct->adds_default_system) ct->family = CHAT_UNKNOWN;
        return;
    }
}

/* Mistral's templates differ in the spaces around markers, which are part of what the model
 * learned. */
static void find_mistral_style(struct chat_template *ct, const char *jinja)
{
    bool open_space = has(jinja, "\" [INST] \"") || has(jinja, "' [INST] '");
    bool close_bare = has(jinja, "\"[/INST]\"") || has(jinja, "'[/INST]'");
    bool reply_space = has(jinja, "\" \" + message[\"content\"]") ||
                       has(jinja, "' ' + message['content']") || has(jinja, "{{- \" \" + content");
    snprintf(ct->inst_open, sizeof ct->inst_open, "%s", open_space ? " [INST] " : "[INST] ");
    snprintf(ct->inst_close, sizeof ct->inst_close, "%s", close_bare ? "[/INST]" : " [/INST]");
    snprintf(ct->reply_open, sizeof ct->reply_open, "%s", reply_space ? " " : "");
    snprintf(ct->reply_close, sizeof ct->reply_close, "%s",
             has(jinja, "eos_token + ' '") || has(jinja, "eos_token + \" \"") ||
             has(jinja, "eos_token+' '") ? " " : "");
    ct->trims_reply = has(jinja, "|trim") || has(jinja, "| trim");
    ct->takes_system = has(jinja, "system_message");
    ct->system_at_last = has(jinja, "loop.last and system_message");
}

void chat_template_init(struct chat_template *ct, const char *jinja)
{
    *ct = (struct chat_template){.family = CHAT_PLAIN};
    if (!jinja || !jinja[0]) return;
    ct->family = recognise(jinja);
    ct->emits_bos = has(jinja, "bos_token") || has(jinja, "<s>");
    ct->drops_thinking = has(jinja, "</think>");
    ct->keeps_last_thinking = ct->drops_thinking && has(jinja, "last_query_index");
    ct->states_dates = has(jinja, "Cutting Knowledge Date");
    if (ct->family == CHAT_CHATML) find_default_system(ct, jinja);
    if (ct->family == CHAT_GEMMA) ct->takes_system = has(jinja, "first_user_prefix");
    if (ct->family == CHAT_MISTRAL) find_mistral_style(ct, jinja);
}

const char *chat_family_name(enum chat_family f)
{
    switch (f) {
    case CHAT_PLAIN: return "plain";
    case CHAT_CHATML: return "chatml";
    case CHAT_LLAMA2: return "llama2";
    case CHAT_LLAMA3: return "llama3";
    case CHAT_MISTRAL: return "mistral";
    case CHAT_GEMMA: return "gemma";
    case CHAT_ZEPHYR: return "zephyr";
    case CHAT_UNKNOWN: return "unknown";
    }
    return "unknown";
}

const char *chat_stop_string(const struct chat_template *ct)
{
    return ct->family == CHAT_PLAIN ? "\nUser:" : NULL;
}

/* ---- writing --------------------------------------------------------------------------------- */

/* Text on its way to ids: collected in `text` up to the next special token. */
struct writer {
    const struct chat_template *ct;
    const struct tokenizer *t;
    struct buf text;
    size_t max_ids;
    struct token_ids *out;
    struct buf *loss; /* a byte for each id: 1 where the assistant speaks; NULL: a prompt, which
                         ends where the assistant is to speak */
    bool speaks;      /* the assistant, now, and it is to be learned */
    struct error *err;
    bool ok; /* false: *err is set, and the rest does nothing */
};

static void fail(struct writer *w, enum error_code code, const char *text)
{
    if (w->ok) error_set(w->err, code, "messages", "%s", text);
    w->ok = false;
}

/* Marks the ids that have come since. */
static void mark(struct writer *w)
{
    while (w->ok && w->loss && !w->loss->failed && w->loss->len < w->out->n)
        buf_putc(w->loss, w->speaks);
}

static void flush(struct writer *w)
{
    if (!w->ok) return;
    if (w->text.failed) {
        fail(w, ERR_MEMORY, "no memory for the chat's text");
        return;
    }
    if (w->text.len > 0)
        w->ok = tokenizer_encode(w->t, w->text.data, w->text.len, 0, w->max_ids, w->out, w->err);
    buf_clear(&w->text);
    mark(w);
}

/* Around what the model is to write itself. When it learns, that is encoded apart, as it is when it
 * replies: the prompt ends before it. */
static void reply_begin(struct writer *w, struct chat_message m)
{
    if (w->loss) flush(w);
    w->speaks = !m.unlearned;
}
static void reply_end(struct writer *w)
{
    if (w->loss) flush(w);
    w->speaks = false;
}

static void put_bytes(struct writer *w, const char *s, size_t n)
{
    if (w->ok) buf_append(&w->text, s, n);
}

static void put(struct writer *w, const char *s) { put_bytes(w, s, strlen(s)); }

/* A token by its id; nothing when the tokenizer has none (-1). */
static void put_id(struct writer *w, int32_t id)
{
    if (id < 0) return;
    flush(w);
    if (w->ok && !token_ids_push(w->out, id))
        fail(w, ERR_MEMORY, "no memory for the chat's tokens");
    mark(w);
}

/* A marker: its special token, or its text in a tokenizer that has no such token. */
static void put_marker(struct writer *w, const char *marker)
{
    int32_t id = tokenizer_special_id(w->t, marker, strlen(marker));
    if (id >= 0) put_id(w, id);
    else put(w, marker);
}

static void put_bos(struct writer *w) { put_id(w, tokenizer_bos(w->t)); }
static void put_eos(struct writer *w) { put_id(w, tokenizer_eos(w->t)); }

/* What Python's str.strip() takes for white space: Jinja's trim. */
static bool is_space(uint32_t cp)
{
    return (cp >= 0x09 && cp <= 0x0D) || (cp >= 0x1C && cp <= 0x20) || cp == 0x85 || cp == 0xA0 ||
           cp == 0x1680 || (cp >= 0x2000 && cp <= 0x200A) || cp == 0x2028 || cp == 0x2029 ||
           cp == 0x202F || cp == 0x205F || cp == 0x3000;
}

static struct chat_message trimmed(struct chat_message m)
{
    const char *begin = m.content, *end = m.content + m.n_content, *last = begin;
    bool inside = false;
    for (const char *p = begin; p < end;) {
        uint32_t cp;
        int len = utf8_decode(p, (size_t)(end - p), &cp);
        bool space = len > 0 && is_space(cp);
        if (len <= 0) len = 1;
        if (!space && !inside) {
            begin = p;
            inside = true;
        }
        p += len;
        if (!space) last = p;
    }
    m.content = begin;
    m.n_content = inside ? (size_t)(last - begin) : 0;
    return m;
}

static void put_content(struct writer *w, struct chat_message m)
{
    put_bytes(w, m.content, m.n_content);
}
static void put_trimmed(struct writer *w, struct chat_message m) { put_content(w, trimmed(m)); }

/* ---- families -------------------------------------------------------------------------------- */

/* Templates know "system"; OpenAI renamed it "developer". */
static const char *role_of(const struct chat_message *m)
{
    return strcmp(m->role, "developer") == 0 ? "system" : m->role;
}

static bool is_role(const struct chat_message *m, const char *role)
{
    return strcmp(role_of(m), role) == 0;
}

static void bad_role(struct writer *w, size_t i, const char *why)
{
    char path[40];
    snprintf(path, sizeof path, "messages[%zu].role", i);
    if (w->ok)
        error_set(w->err, ERR_INVALID, path, "'%s': this model's chat template %s", path, why);
    w->ok = false;
}

/* Families whose turns alternate from `first` on: user, assistant, user ... */
static bool check_turns(struct writer *w, const struct chat_message *m, size_t n, size_t first)
{
    for (size_t i = first; i < n; i++) {
        if (is_role(&m[i], "system"))
            bad_role(w, i, "takes a system message only as the first one, if at all");
        else if (is_role(&m[i], "user") != ((i - first) % 2 == 0))
            bad_role(w, i, "needs user and assistant in turn, beginning with user");
    }
    if (w->ok && first == n) bad_role(w, n - 1, "needs a user message after the system message");
    return w->ok;
}

static bool is_newline(char c) { return c == '\n'; }

/* A reply in two: what is thought, up to the first "</think>", and what is said, after the last.
 * Newlines around both are dropped. Without "</think>" all is said. */
static void split_thinking(struct chat_message m, struct chat_message *thought,
                           struct chat_message *said)
{
    static const char open[] = "<think>", close[] = "</think>";
    enum { N_OPEN = sizeof open - 1, N_CLOSE = sizeof close - 1 };
    const char *begin = m.content, *end = m.content + m.n_content;
    const char *first = memmem(begin, m.n_content, close, N_CLOSE);
    *thought = (struct chat_message){.content = begin};
    *said = m;
    if (!first) return;
    const char *p = first, *hit;
    for (; (hit = memmem(p, (size_t)(end - p), close, N_CLOSE)); p = hit + N_CLOSE) continue;
    while (p < end && is_newline(*p)) p++;
    *said = (struct chat_message){.content = p, .n_content = (size_t)(end - p)};
    while (first > begin && is_newline(first[-1])) first--;
    while ((hit = memmem(begin, (size_t)(first - begin), open, N_OPEN))) begin = hit + N_OPEN;
    while (begin < first && is_newline(*begin)) begin++;
    *thought = (struct chat_message){.content = begin, .n_content = (size_t)(first - begin)};
}

static void put_chatml_turn(struct writer *w, const char *role, struct chat_message m)
{
    put_marker(w, "<|im_start|>");
    put(w, role);
    put(w, "\n");
    if (strcmp(role, "assistant") == 0) reply_begin(w, m);
    put_content(w, m);
    put_marker(w, "<|im_end|>");
    reply_end(w);
    put(w, "\n");
}

/* An assistant's turn where the template parts thoughts from replies. */
static void put_thoughtful_turn(struct writer *w, struct chat_message m, bool after_question,
                                bool last)
{
    struct chat_message thought, said;
    split_thinking(m, &thought, &said);
    put_marker(w, "<|im_start|>");
    put(w, "assistant\n");
    reply_begin(w, m);
    if (after_question && (last || thought.n_content > 0)) {
        put(w, "<think>\n");
        put_content(w, thought);
        put(w, "\n</think>\n\n");
        while (said.n_content > 0 && is_newline(*said.content)) {
            said.content++;
            said.n_content--;
        }
    }
    put_content(w, said);
    put_marker(w, "<|im_end|>");
    reply_end(w);
    put(w, "\n");
}

static void encode_chatml(struct writer *w, const struct chat_message *m, size_t n)
{
    const struct chat_template *ct = w->ct;
    size_t question = n - 1; /* the last one; the last message when there is none */
    for (size_t i = 0; i < n; i++)
        if (is_role(&m[i], "user")) question = i;
    if (ct->emits_bos) put_bos(w);
    if (ct->adds_default_system && !is_role(&m[0], "system"))
        put_chatml_turn(w, "system",
                        (struct chat_message){.content = ct->default_system,
                                              .n_content = strlen(ct->default_system)});
    for (size_t i = 0; i < n; i++) {
        if (ct->drops_thinking && is_role(&m[i], "assistant"))
            put_thoughtful_turn(w, m[i], ct->keeps_last_thinking && i > question, i == n - 1);
        else
            put_chatml_turn(w, role_of(&m[i]), m[i]);
    }
    if (w->loss) return;
    put_marker(w, "<|im_start|>");
    put(w, "assistant\n");
}

static void put_llama3_header(struct writer *w, const char *role)
{
    put_marker(w, "<|start_header_id|>");
    put(w, role);
    put_marker(w, "<|end_header_id|>");
    put(w, "\n\n");
}

static void encode_llama3(struct writer *w, const struct chat_message *m, size_t n)
{
    size_t first = 0;
    put_bos(w);
    if (w->ct->states_dates) {
        /* The template's own fixed date: a prompt that changes daily would not be reproducible. */
        put_llama3_header(w, "system");
        put(w, "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n");
        if (is_role(&m[0], "system")) put_trimmed(w, m[first++]);
        put_marker(w, "<|eot_id|>");
    }
    for (size_t i = first; i < n; i++) {
        put_llama3_header(w, role_of(&m[i]));
        if (is_role(&m[i], "assistant")) reply_begin(w, m[i]);
        put_trimmed(w, m[i]);
        put_marker(w, "<|eot_id|>");
        reply_end(w);
    }
    if (!w->loss) put_llama3_header(w, "assistant");
}

/* The system message inside the first user's. The template strips the whole: behind <<SYS>> only
 * its end. */
static void put_llama2_system(struct writer *w, struct chat_message system,
                              struct chat_message user)
{
    struct chat_message inner = trimmed(user);
    put(w, "<<SYS>>\n");
    put_content(w, system);
    put(w, "\n<</SYS>>");
    if (inner.n_content == 0) return;
    put(w, "\n\n");
    user.n_content = (size_t)(inner.content + inner.n_content - user.content);
    put_content(w, user);
}

static void encode_llama2(struct writer *w, const struct chat_message *m, size_t n)
{
    size_t first = is_role(&m[0], "system") ? 1 : 0;
    if (!check_turns(w, m, n, first)) return;
    for (size_t i = first; i < n; i++) {
        if (is_role(&m[i], "assistant")) {
            reply_begin(w, m[i]);
            put(w, " ");
            put_trimmed(w, m[i]);
            put(w, " ");
            put_eos(w);
            reply_end(w);
            continue;
        }
        put_bos(w);
        put(w, "[INST] ");
        if (i == 1 && first == 1) put_llama2_system(w, m[0], m[1]);
        else put_trimmed(w, m[i]);
        put(w, " [/INST]");
    }
}

/* "[INST] " with its marker as a special token where there is one (Mistral v3). */
static void put_inst(struct writer *w, const char *text)
{
    const char *open = strchr(text, '['), *close = strchr(text, ']');
    char marker[12];
    snprintf(marker, sizeof marker, "%.*s", (int)(close + 1 - open), open);
    put_bytes(w, text, (size_t)(open - text));
    put_marker(w, marker);
    put(w, close + 1);
}

static void encode_mistral(struct writer *w, const struct chat_message *m, size_t n)
{
    const struct chat_template *ct = w->ct;
    size_t first = is_role(&m[0], "system") ? 1 : 0;
    if (first && !ct->takes_system) {
        bad_role(w, 0, "has no place for a system message");
        return;
    }
    if (!check_turns(w, m, n, first)) return;
    /* A conversation to learn from ends with a reply, which its prompt did not have. */
    size_t last = w->loss ? n - 2 : n - 1;
    put_bos(w);
    for (size_t i = first; i < n; i++) {
        if (is_role(&m[i], "user")) {
            put_inst(w, ct->inst_open);
            if (first && i == (ct->system_at_last ? last : 1)) {
                put_content(w, m[0]);
                put(w, "\n\n");
            }
            put_content(w, m[i]);
            put_inst(w, ct->inst_close);
        } else {
            reply_begin(w, m[i]);
            put(w, ct->reply_open);
            put_content(w, ct->trims_reply ? trimmed(m[i]) : m[i]);
            put_eos(w);
            reply_end(w);
            put(w, ct->reply_close);
        }
    }
}

static void encode_gemma(struct writer *w, const struct chat_message *m, size_t n)
{
    size_t first = is_role(&m[0], "system") ? 1 : 0;
    if (first && !w->ct->takes_system) {
        bad_role(w, 0, "has no place for a system message");
        return;
    }
    if (!check_turns(w, m, n, first)) return;
    put_bos(w);
    for (size_t i = first; i < n; i++) {
        put_marker(w, "<start_of_turn>");
        put(w, is_role(&m[i], "assistant") ? "model\n" : "user\n");
        if (first && i == 1) {
            put_content(w, m[0]);
            put(w, "\n\n");
        }
        if (is_role(&m[i], "assistant")) reply_begin(w, m[i]);
        put_trimmed(w, m[i]);
        put_marker(w, "<end_of_turn>");
        reply_end(w);
        put(w, "\n");
    }
    if (w->loss) return;
    put_marker(w, "<start_of_turn>");
    put(w, "model\n");
}

static void encode_zephyr(struct writer *w, const struct chat_message *m, size_t n)
{
    if (w->ct->emits_bos) put_bos(w);
    for (size_t i = 0; i < n; i++) {
        char marker[32];
        snprintf(marker, sizeof marker, "<|%s|>", role_of(&m[i]));
        put_marker(w, marker);
        put(w, "\n");
        if (is_role(&m[i], "assistant")) reply_begin(w, m[i]);
        put_content(w, m[i]);
        put_eos(w);
        reply_end(w);
        put(w, "\n");
    }
    if (w->loss) return;
    put_marker(w, "<|assistant|>");
    put(w, "\n");
}

static void encode_plain(struct writer *w, const struct chat_message *m, size_t n)
{
    if (tokenizer_adds_bos(w->t)) put_bos(w);
    for (size_t i = 0; i < n; i++) {
        if (is_role(&m[i], "user")) put(w, "User: ");
        if (is_role(&m[i], "assistant")) {
            put(w, "Assistant:");
            reply_begin(w, m[i]);
            put(w, " ");
        }
        put_content(w, m[i]);
        put(w, is_role(&m[i], "system") ? "\n\n" : "\n");
        if (w->loss && i == n - 1) put_eos(w);
        reply_end(w);
    }
    if (!w->loss) put(w, "Assistant:");
}

/* Renders the messages; w has everything but its own text. */
static bool render(struct writer *w, const struct chat_message *messages, size_t n)
{
    buf_init(&w->text, SIZE_MAX / 4); /* the messages bound it */
    switch (w->ct->family) {
    case CHAT_PLAIN: encode_plain(w, messages, n); break;
    case CHAT_CHATML: encode_chatml(w, messages, n); break;
    case CHAT_LLAMA2: encode_llama2(w, messages, n); break;
    case CHAT_LLAMA3: encode_llama3(w, messages, n); break;
    case CHAT_MISTRAL: encode_mistral(w, messages, n); break;
    case CHAT_GEMMA: encode_gemma(w, messages, n); break;
    case CHAT_ZEPHYR: encode_zephyr(w, messages, n); break;
    case CHAT_UNKNOWN:
        fail(w, ERR_UNSUPPORTED,
             "the model's chat template is of no known family: render the chat yourself and use "
             "/v1/completions");
        break;
    }
    flush(w);
    if (w->ok && w->out->n > w->max_ids)
        fail(w, ERR_TOO_LARGE, "the chat has too many tokens");
    if (w->ok && w->loss && w->loss->failed) fail(w, ERR_MEMORY, "no memory for the chat's mask");
    buf_free(&w->text);
    return w->ok;
}

bool chat_encode(const struct chat_template *ct, const struct tokenizer *t,
                 const struct chat_message *messages, size_t n, size_t max_ids,
                 struct token_ids *out, struct error *err)
{
    struct writer w = {.ct = ct, .t = t, .max_ids = max_ids, .out = out, .err = err, .ok = true};
    if (n == 0) return error_set(err, ERR_INVALID, "messages", "'messages' is empty");
    return render(&w, messages, n);
}

bool chat_encode_conversation(const struct chat_template *ct, const struct tokenizer *t,
                              const struct chat_message *messages, size_t n,
                              struct token_ids *out, struct buf *loss, struct error *err)
{
    struct writer w = {.ct = ct, .t = t, .max_ids = SIZE_MAX, .out = out, .loss = loss, .err = err,
                       .ok = true};
    while (n > 0 && !is_role(&messages[n - 1], "assistant")) n--;
    if (n < 2 || is_role(&messages[0], "assistant"))
        return error_set(err, ERR_INVALID, "messages", "a conversation needs an assistant's "
                         "message, and another one before the first of them");
    ASSERT(loss->len == out->n);
    return render(&w, messages, n);
}

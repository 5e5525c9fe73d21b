/* Chat templates of the common families, recognised by the text of the model's own (Jinja)
 * template: ChatML, Llama-2, Llama-3, Mistral, Gemma, Zephyr; plain ("User: ...\nAssistant:") for a
 * model that has none. A template that is not recognised is not guessed at: chat requests get
 * ERR_UNSUPPORTED that says so. */
#pragma once

#include "base/buf.h"
#include "base/error.h"
#include "model/tokenizer.h"

enum chat_family { CHAT_PLAIN, CHAT_CHATML, CHAT_LLAMA2, CHAT_LLAMA3, CHAT_MISTRAL, CHAT_GEMMA,
                   CHAT_ZEPHYR, CHAT_UNKNOWN };

struct chat_template {
    enum chat_family family;
    bool adds_default_system;   /* some ChatML templates begin with a system message of their own */
    char default_system[512];
    /* Where templates of one family differ. */
    bool emits_bos;         /* ChatML, Zephyr, plain: begins with BOS (others always do) */
    bool drops_thinking;    /* ChatML: replies lose what precedes </think>, ... */
    bool keeps_last_thinking; /* ... those after the last question excepted (Qwen3) */
    bool states_dates;      /* Llama-3.1 and later: a system message with dates comes first */
    bool takes_system;      /* Mistral, Gemma: a system message is put before a user's text */
    bool system_at_last;    /* Mistral: before the last one's, else the first one's */
    bool trims_reply;       /* Mistral: white space around an assistant's text is dropped */
    char inst_open[12], inst_close[12]; /* Mistral: around a user's text, spaces included */
    char reply_open[4], reply_close[4]; /* Mistral: around an assistant's text and its EOS */
};

struct chat_message {
    const char *role, *content;
    size_t n_content;
    bool unlearned; /* an assistant's, in a conversation to learn from: context alone */
};

/* Looks at the tokenizer's template (NULL: plain). Cannot fail: an unknown one is CHAT_UNKNOWN. */
void chat_template_init(struct chat_template *ct, const char *jinja);
const char *chat_family_name(enum chat_family f);

/* The prompt's ids for the messages, ending where the assistant's reply begins. Template markers
 * become special tokens; the same text inside a message's content stays text. */
bool chat_encode(const struct chat_template *ct, const struct tokenizer *t,
                 const struct chat_message *messages, size_t n, size_t max_ids,
                 struct token_ids *out, struct error *err) MUST_CHECK;
/* A conversation to learn from: as it would have been rendered message by message, up to the
 * assistant's last. Appends its ids, and for each a byte to `loss` (as long as *out before, too): 1
 * for what the model is to write itself, the end of its turn included. */
bool chat_encode_conversation(const struct chat_template *ct, const struct tokenizer *t,
                              const struct chat_message *messages, size_t n,
                              struct token_ids *out, struct buf *loss, struct error *err)
    MUST_CHECK;
/* Extra stop ids or strings that the family implies ("\nUser:" for plain). Returns NULL or a
 * string. */
const char *chat_stop_string(const struct chat_template *ct);

/* See chat_data.h. */
#include "server/chat_data.h"

#include <stdlib.h>

static bool encode(void *ctx, const struct dataset_message *messages, size_t n,
                   struct token_ids *ids, struct buf *loss, struct error *err)
{
    const struct chat_data *data = ctx;
    struct chat_message *chat = calloc(n, sizeof *chat);
    if (!chat) return error_set(err, ERR_MEMORY, NULL, "no memory for %zu messages", n);
    for (size_t i = 0; i < n; i++)
        chat[i] = (struct chat_message){messages[i].role, messages[i].content,
                                        messages[i].n_content, messages[i].unlearned};
    bool ok = chat_encode_conversation(&data->template, data->tokenizer, chat, n, ids, loss, err);
    free(chat);
    return ok;
}

void chat_data_init(struct chat_data *data, const struct tokenizer *t, struct dataset_chat *chat)
{
    data->tokenizer = t;
    chat_template_init(&data->template, tokenizer_chat_template(t));
    *chat = (struct dataset_chat){.encode = encode, .ctx = data};
}

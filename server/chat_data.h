/* Conversations as training data: joins model/dataset.h, which knows no chat templates, to
 * api/chat.h, which does. */
#pragma once

#include "api/chat.h"
#include "model/dataset.h"

struct chat_data {
    const struct tokenizer *tokenizer; /* borrowed */
    struct chat_template template;
};

/* The template is the tokenizer's own. `chat` refers to *data, which must outlive it. */
void chat_data_init(struct chat_data *data, const struct tokenizer *t, struct dataset_chat *chat);

/* libFuzzer: any bytes as a text file, as JSON lines and as the manifest of token shards. What is
 * taken must hold together: a mask as long as its document, every id the tokenizer's. */
#include "model/dataset_internal.h"
#include "model/token_shards.h"
#include "tests/fuzz/scratch.h"

/* 'a' to 'z' and an end of text: enough to take some texts and to refuse others. */
static struct tokenizer *letters(void)
{
    char json[2048];
    struct tokenizer *t;
    struct error err;
    int n = snprintf(json, sizeof json, "{\"added_tokens\": [{\"id\": 0, \"content\": "
                     "\"<|endoftext|>\", \"special\": true}], \"model\": {\"type\": \"BPE\", "
                     "\"merges\": [], \"vocab\": {\"<|endoftext|>\": 0, \"\\n\": 27");
    for (int i = 0; i < 26; i++)
        n += snprintf(json + n, sizeof json - (size_t)n, ", \"%c\": %d", 'a' + i, 1 + i);
    n += snprintf(json + n, sizeof json - (size_t)n, "}}}");
    ASSERT(tokenizer_open_json(json, (size_t)n, "letters", &t, &err));
    return t;
}

static bool encode_chat(void *ctx, const struct dataset_message *messages, size_t n,
                        struct token_ids *ids, struct buf *loss, struct error *err)
{
    for (size_t i = 0; i < n; i++) {
        if (!tokenizer_encode(ctx, messages[i].content, messages[i].n_content, 0, 1 << 20, ids,
                              err))
            return false;
        while (loss->len < ids->n) buf_putc(loss, i % 2 == 1);
    }
    return true;
}

static bool check_document(void *ctx, enum dataset_split split, const struct document *d,
                           struct error *err)
{
    int64_t *n_documents = ctx;
    ASSERT(split == SPLIT_TRAIN || split == SPLIT_VALIDATION);
    ASSERT(d->n > 0);
    for (int64_t i = 0; i < d->n; i++) {
        ASSERT(d->ids[i] >= 0 && d->ids[i] < 28);
        ASSERT(!d->loss || d->loss[i] <= 1);
    }
    ++*n_documents;
    return true;
}

static void read_documents(const char *path, const struct tokenizer *t)
{
    int64_t n_documents = 0;
    struct error err;
    struct dataset_counts counts;
    const struct dataset_chat chat = {encode_chat, (void *)t};
    const struct dataset_sink sink = {check_document, &n_documents};
    const struct dataset_options o = {.inputs = &path, .n_inputs = 1, .tokenizer = t, .chat = &chat,
                                      .val_fraction = 0.3, .block_size = 4, .vocab_size = 28};
    if (!dataset_read(&o, &sink, &counts, &err)) return;
    /* A document may be split in two. */
    ASSERT(counts.documents <= n_documents && n_documents <= 2 * counts.documents);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct tokenizer *t;
    static const char *const names[] = {"a.txt", "a.jsonl", "manifest.json"};
    char path[64];
    struct token_shards shards;
    struct error err;
    if (!t) {
        t = letters();
        scratch_make();
    }
    for (int i = 0; i < 3; i++) {
        scratch_write(names[i], data, size);
        snprintf(path, sizeof path, "%s/%s", scratch, names[i]);
        if (i < 2) read_documents(path, t);
    }
    if (token_shards_open(scratch, false, &shards, &err)) token_shards_close(&shards);
    return 0;
}

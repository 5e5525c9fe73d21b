/* Fuzzes the tokenizer: bytes up to the first NUL are a tokenizer.json (or the whole input is a
 * GGUF file), bytes after it are text. Nothing may crash, hang or read out of bounds; what
 * encodes must decode. */
#include <string.h>

#include "base/error.h"
#include "model/gguf.h"
#include "model/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char own_text[] =
    "It's  <s>a b\tab\n\n12 \xC3\xA9\xE2\x96\x81\xF0\x9F\x98\x80 aaaaaaaaaaaaaaaaaaaaaaa"
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa</s>";

static void decode_all(const struct tokenizer *t, const struct token_ids *ids)
{
    struct token_decoder d = {.keep_special = true};
    volatile char sink = 0;
    for (size_t i = 0; i < ids->n; i++) {
        size_t n;
        ASSERT(ids->ids[i] >= 0 && ids->ids[i] < tokenizer_vocab_size(t));
        const char *bytes = token_decode(t, &d, ids->ids[i], &n);
        if (n > 0) sink ^= bytes[0] ^ bytes[n - 1];
    }
}

static void encode_all(const struct tokenizer *t, const char *text, size_t n)
{
    for (int flags = 0; flags < 4; flags++) {
        struct token_ids ids = {0};
        struct error err = {0};
        if (tokenizer_encode(t, text, n, flags, 1 << 16, &ids, &err)) decode_all(t, &ids);
        else ASSERT(err.code != ERR_NONE && err.text[0] && ids.n == 0);
        ASSERT(ids.n <= 1 << 16);
        token_ids_free(&ids);
    }
}

static bool open_input(const char *bytes, size_t n, struct tokenizer **t, struct error *err)
{
    struct gguf *g;
    if (n < 4 || memcmp(bytes, "GGUF", 4) != 0)
        return tokenizer_open_json(bytes, n, "fuzz", t, err);
    if (!gguf_open_bytes((const uint8_t *)bytes, n, "fuzz", &g, err)) return false;
    bool ok = tokenizer_open_gguf(g, t, err);
    gguf_close(g);
    return ok;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *bytes = (const char *)data;
    bool gguf = size >= 4 && memcmp(bytes, "GGUF", 4) == 0;
    const char *nul = gguf || size == 0 ? NULL : memchr(bytes, 0, size);
    size_t n_file = nul ? (size_t)(nul - bytes) : size;
    struct tokenizer *t = NULL;
    struct error err = {0};
    if (!open_input(bytes, n_file, &t, &err)) {
        ASSERT(err.code != ERR_NONE && err.text[0]);
        return 0;
    }
    if (!t) return 0;
    encode_all(t, own_text, sizeof own_text - 1);
    if (nul) encode_all(t, nul + 1, size - n_file - 1);
    int32_t stops[16];
    int n_stops = tokenizer_stop_ids(t, stops, 16);
    for (int i = 0; i < n_stops; i++) ASSERT(stops[i] >= 0 && stops[i] < tokenizer_vocab_size(t));
    tokenizer_free(t);
    return 0;
}

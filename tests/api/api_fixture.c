/* See api_fixture.h. */
#include "tests/api/api_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/json.h"
#include "base/utf8.h"

static void must(bool ok, const struct error *err)
{
    if (!ok) fail_msg("%s", err->text);
}

/* ---- tokenizers ------------------------------------------------------------------------------ */

/* GPT-2's printable stand-in for a byte, as tokenizer.json writes it. */
static void put_byte(struct buf *json, unsigned char byte)
{
    uint32_t cp = byte, next = 256;
    for (uint32_t b = 0; b < 256; b++) {
        bool itself = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
        if (b == byte && !itself) cp = next;
        next += !itself;
    }
    char text[4];
    int n = utf8_encode(cp, text);
    if (byte == '"' || byte == '\\') buf_putc(json, '\\');
    buf_append(json, text, (size_t)n);
}

static void put_token(struct buf *json, const char *bytes, size_t n, int32_t id)
{
    buf_printf(json, "%s\"", id ? "," : "");
    for (size_t i = 0; i < n; i++) put_byte(json, (unsigned char)bytes[i]);
    buf_printf(json, "\":%d", id);
}

static void put_special(struct buf *json, const char *text, int32_t id, bool first)
{
    buf_printf(
        json,
        "%s{\"id\":%d,\"content\":\"%s\",\"special\":true,\"single_word\":false,\"lstrip\":false,"
        "\"rstrip\":false,\"normalized\":false}",
        first ? "" : ",", id, text);
}

static struct tokenizer *open_json(struct buf *json)
{
    struct tokenizer *t = NULL;
    struct error err;
    must(tokenizer_open_json(json->data, json->len, "the test's tokenizer", &t, &err), &err);
    buf_free(json);
    return t;
}

static const char head[] = "{\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false},"
                           "\"decoder\":{\"type\":\"ByteLevel\"},"
                           "\"model\":{\"type\":\"BPE\",\"merges\":[],\"vocab\":{";

static int32_t put_ascii(struct buf *json)
{
    for (char c = ' '; c <= '~'; c++) put_token(json, &c, 1, c - ' ');
    put_token(json, "\n", 1, 95);
    return 96;
}

/* Pieces of characters of two, three and four bytes, alone and with neighbours. */
static struct tokenizer *broken_tokenizer(void)
{
    static const char *const pieces[] = {
        "\xC3", "\xA9", "\xE2", "\x82", "\xAC", "\xE2\x82", "\x82\xAC", "\xF0\x9F", "\x98\x80",
        "\xF0", "\x9F", "\x98", "\x80", "x\xC3", "\xA9y", "\xC3\xA9", "\xE2\x82\xAC",
        "\xF0\x9F\x98\x80", "ab", "bc", "the", " the", "a\xF0\x9F\x98", "\x80z", "\xED", "\xFF"};
    struct buf json;
    buf_init(&json, 1 << 20);
    buf_puts(&json, head);
    int32_t id = put_ascii(&json);
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++)
        put_token(&json, pieces[i], strlen(pieces[i]), id++);
    char filler[4] = "qa";
    for (; id < TOKEN_EOS; id++, filler[1]++) put_token(&json, filler, 2, id);
    buf_puts(&json, "}},\"added_tokens\":[");
    put_special(&json, "<|endoftext|>", TOKEN_EOS, true);
    put_special(&json, "<|im_start|>", TOKEN_IM_START, false);
    put_special(&json, "<|im_end|>", TOKEN_IM_END, false);
    buf_puts(&json, "]}");
    return open_json(&json);
}

struct tokenizer *tokenizer_with_specials(const char *const *specials)
{
    struct buf json;
    buf_init(&json, 1 << 20);
    buf_puts(&json, head);
    int32_t id = put_ascii(&json);
    put_token(&json, "\xC3", 1, id++);
    put_token(&json, "\xA9", 1, id++);
    put_token(&json, "\xC2", 1, id++);
    put_token(&json, "\xA0", 1, id++);
    put_token(&json, "\t", 1, id++);
    buf_puts(&json, "}},\"added_tokens\":[");
    int32_t n = 0;
    for (; specials[n]; n++) put_special(&json, specials[n], id++, n == 0);
    /* The first is BOS. */
    buf_printf(
        &json,
        "],\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":"
        "{\"id\":\"%s\",\"type_id\":0}},{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}],"
        "\"special_tokens\":{\"%s\":{\"id\":\"%s\",\"ids\":[%d],\"tokens\":[\"%s\"]}}}}",
        specials[0], specials[0], specials[0], id - n, specials[0]);
    return open_json(&json);
}

/* ---- the fixture ----------------------------------------------------------------------------- */

void api_fixture_open(struct api_fixture *f, bool with_tokenizer, const char *jinja)
{
    *f = (struct api_fixture){0};
    struct error err;
    struct engine_fixture *e = &f->engine;
    fixture_open(e, "tests/golden/gpt2", NULL);
    /* The same engine, on our tokenizer. */
    engine_close(e->engine);
    tokenizer_free(e->tokenizer);
    e->tokenizer = with_tokenizer ? broken_tokenizer() : NULL;
    struct engine_options o = fixture_options();
    o.kv_bytes = 4 << 20;
    must(engine_open(e->device, e->checkpoint, e->tokenizer, &o, &e->engine, &err), &err);
    chat_template_init(&f->chat, jinja);
    f->api = (struct api_context){.engine = e->engine, .model_id = "tiny", .created = 1700000000,
                                  .chat = with_tokenizer ? &f->chat : NULL};
    api_limits_init(&f->api.limits);
    pthread_mutex_init(&f->lock, NULL);
    pthread_cond_init(&f->news, NULL);
}

void api_fixture_close(struct api_fixture *f)
{
    fixture_assert_clean(&f->engine);
    fixture_close(&f->engine);
    pthread_mutex_destroy(&f->lock);
    pthread_cond_destroy(&f->news);
}

void api_fixture_notify(void *ctx)
{
    struct api_fixture *f = ctx;
    pthread_mutex_lock(&f->lock);
    f->n_news++;
    pthread_cond_signal(&f->news);
    pthread_mutex_unlock(&f->lock);
}

/* ---- completions ----------------------------------------------------------------------------- */

char *api_read_all(struct api_fixture *f, struct completion *c, struct error *err)
{
    struct buf out;
    buf_init(&out, 64 << 20);
    *err = (struct error){0};
    for (int64_t seen = 0;;) {
        size_t before = out.len;
        enum completion_status status = completion_read(c, &out, err);
        assert_false(out.failed);
        if (status == COMPLETION_ENDED) break;
        if (status == COMPLETION_DATA) {
            assert_true(out.len > before);
            continue;
        }
        assert_int_equal(out.len, before);
        pthread_mutex_lock(&f->lock);
        while (f->n_news == seen) pthread_cond_wait(&f->news, &f->lock);
        seen = f->n_news;
        pthread_mutex_unlock(&f->lock);
    }
    assert_int_equal(completion_read(c, &out, NULL), COMPLETION_ENDED); /* and stays so */
    if (err->code != ERR_NONE) {
        assert_int_equal(out.len, 0);
        buf_free(&out);
        return NULL;
    }
    return buf_take(&out, NULL);
}

static char *run(struct api_fixture *f, enum completion_kind kind, const char *body, bool stream)
{
    struct completion *c = NULL;
    struct error err = {0};
    f->n_news = 0;
    must(completion_open(&f->api, kind, body, strlen(body), NULL, api_fixture_notify, f, &c,
                         &err), &err);
    assert_int_equal(completion_is_stream(c), stream);
    char *reply = api_read_all(f, c, &err);
    must(reply != NULL, &err);
    completion_free(c);
    return reply;
}

static struct cJSON *parse(const char *text, size_t n)
{
    struct error err;
    struct cJSON *root = json_parse(text, n, 32, "the reply", &err);
    must(root != NULL, &err);
    return root;
}

struct cJSON *api_complete(struct api_fixture *f, enum completion_kind kind, const char *body)
{
    char *reply = run(f, kind, body, false);
    struct cJSON *root = parse(reply, strlen(reply));
    free(reply);
    return root;
}

struct cJSON *api_stream(struct api_fixture *f, enum completion_kind kind, const char *body)
{
    char *reply = run(f, kind, body, true);
    struct cJSON *events = cJSON_CreateArray();
    bool done = false;
    for (const char *p = reply; *p;) {
        const char *end = strstr(p, "\n\n");
        assert_non_null(end);
        assert_memory_equal(p, "data: ", 6);
        assert_false(done);
        done = strncmp(p + 6, "[DONE]\n", 7) == 0;
        if (!done) cJSON_AddItemToArray(events, parse(p + 6, (size_t)(end - p - 6)));
        p = end + 2;
    }
    assert_true(done);
    free(reply);
    return events;
}

struct error api_refused(struct api_fixture *f, enum completion_kind kind, const char *body)
{
    struct completion *c = NULL;
    struct error err = {0};
    if (completion_open(&f->api, kind, body, strlen(body), NULL, api_fixture_notify, f, &c,
                         &err))
        fail_msg("not refused: %s", body);
    assert_null(c);
    assert_int_not_equal(err.code, ERR_NONE);
    return err;
}

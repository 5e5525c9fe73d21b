/* Completions end to end on a tiny random model: what each parameter means in the reply, and that a
 * stream says exactly what the whole reply says. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/json.h"
#include "base/utf8.h"
#include "tests/api/api_fixture.h"

static struct api_fixture fixture;

/* ---- helpers --------------------------------------------------------------------------------- */

static const struct cJSON *get(const struct cJSON *node, const char *key)
{
    const struct cJSON *item = json_get(node, key);
    if (!item) fail_msg("no \"%s\" in the reply", key);
    return item;
}

static const char *string_of(const struct cJSON *node, const char *key)
{
    const struct cJSON *item = get(node, key);
    assert_true(cJSON_IsString(item));
    return item->valuestring;
}

static int number_of(const struct cJSON *node, const char *key)
{
    const struct cJSON *item = get(node, key);
    assert_true(cJSON_IsNumber(item));
    return (int)item->valuedouble;
}

static const struct cJSON *choice_of(const struct cJSON *reply, int i)
{
    const struct cJSON *choice = cJSON_GetArrayItem(get(reply, "choices"), i);
    assert_non_null(choice);
    assert_int_equal(number_of(choice, "index"), i);
    return choice;
}

/* A body from a format, as a whole request; `stream` adds "stream":true. To be freed. */
static char *body_of(bool stream, const char *fmt, va_list args)
{
    struct buf b;
    buf_init(&b, 1 << 20);
    va_list copy;
    va_copy(copy, args);
    int n = vsnprintf(NULL, 0, fmt, copy);
    va_end(copy);
    char *inside = malloc((size_t)n + 1);
    vsnprintf(inside, (size_t)n + 1, fmt, args);
    buf_printf(&b, "{%s%s}", stream ? "\"stream\":true," : "", inside);
    free(inside);
    return buf_take(&b, NULL);
}

static struct cJSON *complete(const char *fmt, ...) PRINTF_LIKE(1, 2);
static struct cJSON *complete(const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    char *body = body_of(false, fmt, args);
    va_end(args);
    struct cJSON *reply = api_complete(&fixture, COMPLETION_TEXT, body);
    free(body);
    return reply;
}

/* The text of the only choice; to be freed. */
static char *text_of(const char *fmt, ...) PRINTF_LIKE(1, 2);
static char *text_of(const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    char *body = body_of(false, fmt, args);
    va_end(args);
    struct cJSON *reply = api_complete(&fixture, COMPLETION_TEXT, body);
    char *text = strdup(string_of(choice_of(reply, 0), "text"));
    cJSON_Delete(reply);
    free(body);
    return text;
}

static void append_items(struct cJSON *to, const struct cJSON *from)
{
    const struct cJSON *item;
    cJSON_ArrayForEach(item, from) cJSON_AddItemToArray(to, cJSON_Duplicate(item, true));
}

static void assert_same(const struct cJSON *a, const struct cJSON *b, const char *what)
{
    if (cJSON_Compare(a, b, true)) return;
    char *text_a = cJSON_PrintUnformatted(a), *text_b = cJSON_PrintUnformatted(b);
    fail_msg("%s: %s is not %s", what, text_a, text_b);
}

/* ---- stream against whole reply -------------------------------------------------------------- */

struct joined {
    struct buf text;
    struct cJSON *logprobs[4];
    int n_finish, n_roles;
    char finish[16];
};

static const char *const logprob_keys[] = {"tokens", "token_logprobs", "top_logprobs",
                                           "text_offset"};

static void join_choice(struct joined *j, const struct cJSON *choice, enum completion_kind kind)
{
    assert_int_equal(j->n_finish, 0); /* nothing after the finish */
    const struct cJSON *text, *finish = get(choice, "finish_reason");
    const struct cJSON *logprobs = get(choice, "logprobs");
    if (kind == COMPLETION_CHAT) {
        text = json_get(get(choice, "delta"), "content");
        if (json_get(get(choice, "delta"), "role")) {
            assert_string_equal(string_of(get(choice, "delta"), "role"), "assistant");
            assert_int_equal(j->text.len, 0);
            j->n_roles++;
        }
    } else {
        text = get(choice, "text");
    }
    if (text) {
        assert_true(utf8_valid(text->valuestring, strlen(text->valuestring), NULL));
        buf_puts(&j->text, text->valuestring);
    }
    if (cJSON_IsObject(logprobs) && kind == COMPLETION_CHAT)
        append_items(j->logprobs[0], get(logprobs, "content"));
    for (int k = 0; cJSON_IsObject(logprobs) && kind == COMPLETION_TEXT && k < 4; k++)
        append_items(j->logprobs[k], get(logprobs, logprob_keys[k]));
    if (cJSON_IsString(finish)) {
        snprintf(j->finish, sizeof j->finish, "%s", finish->valuestring);
        j->n_finish++;
    }
}

static void compare_choice(struct joined *j, const struct cJSON *whole, enum completion_kind kind)
{
    const struct cJSON *logprobs = get(whole, "logprobs");
    const char *text = kind == COMPLETION_CHAT ? string_of(get(whole, "message"), "content")
                                               : string_of(whole, "text");
    assert_string_equal(j->text.data ? j->text.data : "", text);
    assert_string_equal(j->finish, string_of(whole, "finish_reason"));
    assert_int_equal(j->n_finish, 1);
    assert_int_equal(j->n_roles, kind == COMPLETION_CHAT);
    if (cJSON_IsObject(logprobs) && kind == COMPLETION_CHAT)
        assert_same(j->logprobs[0], get(logprobs, "content"), "content");
    for (int k = 0; cJSON_IsObject(logprobs) && kind == COMPLETION_TEXT && k < 4; k++)
        if (cJSON_IsArray(get(logprobs, logprob_keys[k])))
            assert_same(j->logprobs[k], get(logprobs, logprob_keys[k]), logprob_keys[k]);
}

static void check_events(const struct cJSON *events, const struct cJSON *whole,
                         enum completion_kind kind)
{
    struct joined j[16] = {0};
    int n = cJSON_GetArraySize(get(whole, "choices"));
    bool usage = false;
    assert_true(n <= 16);
    for (int i = 0; i < n; i++) {
        buf_init(&j[i].text, 1 << 20);
        for (int k = 0; k < 4; k++) j[i].logprobs[k] = cJSON_CreateArray();
    }
    const struct cJSON *event, *choice;
    cJSON_ArrayForEach(event, events) {
        assert_false(usage); /* the usage comes last */
        assert_string_equal(string_of(event, "id"),
                            string_of(cJSON_GetArrayItem(events, 0), "id"));
        usage = cJSON_IsObject(json_get(event, "usage"));
        if (usage) {
            assert_int_equal(cJSON_GetArraySize(get(event, "choices")), 0);
            assert_int_equal(number_of(get(event, "usage"), "completion_tokens"),
                             number_of(get(whole, "usage"), "completion_tokens"));
            assert_int_equal(number_of(get(event, "usage"), "prompt_tokens"),
                             number_of(get(whole, "usage"), "prompt_tokens"));
        }
        cJSON_ArrayForEach(choice, get(event, "choices"))
            join_choice(&j[number_of(choice, "index")], choice, kind);
    }
    for (int i = 0; i < n; i++) {
        compare_choice(&j[i], choice_of(whole, i), kind);
        buf_free(&j[i].text);
        for (int k = 0; k < 4; k++) cJSON_Delete(j[i].logprobs[k]);
    }
}

static void check_stream(enum completion_kind kind, const char *fmt, ...) PRINTF_LIKE(2, 3);
static void check_stream(enum completion_kind kind, const char *fmt, ...)
{
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    char *body = body_of(false, fmt, args), *streamed = body_of(true, fmt, again);
    va_end(again);
    va_end(args);
    struct cJSON *whole = api_complete(&fixture, kind, body);
    struct cJSON *events = api_stream(&fixture, kind, streamed);
    check_events(events, whole, kind);
    cJSON_Delete(events);
    cJSON_Delete(whole);
    free(streamed);
    free(body);
}

#define TEXT "\"prompt\":\"the cat\",\"seed\":%d,\"max_tokens\":60,\"temperature\":1.5"
#define CHAT "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"seed\":%d,\"temperature\":1.5"

static void test_stream_equals_whole(void **state)
{
    for (int seed = 0; seed < 12; seed++) {
        check_stream(COMPLETION_TEXT, TEXT, seed);
        check_stream(COMPLETION_TEXT, TEXT ",\"logprobs\":3,\"n\":3", seed);
        check_stream(COMPLETION_TEXT, TEXT ",\"echo\":true,\"logprobs\":0", seed);
        check_stream(COMPLETION_TEXT, TEXT ",\"stop\":[\"e\",\"ab\",\"xy\"],\"logprobs\":1,"
                                           "\"n\":4", seed);
        check_stream(COMPLETION_TEXT, TEXT ",\"stop\":[\"\xE2\x82\xAC\",\"z\xC3\xA9\"],"
                                           "\"n\":4", seed);
        check_stream(COMPLETION_TEXT, "\"prompt\":[\"a\",[1,2,3],\"\\n\"],\"seed\":%d,"
                                      "\"n\":2", seed);
        check_stream(COMPLETION_CHAT, CHAT, seed);
        check_stream(COMPLETION_CHAT, CHAT ",\"logprobs\":true,\"top_logprobs\":2,\"n\":2", seed);
        check_stream(COMPLETION_CHAT, CHAT ",\"stop\":\"q\",\"logprobs\":true", seed);
    }
}

/* Chunks are made by token, however late the reader comes: a slow reader sees the same events. */
static void test_chunks_do_not_depend_on_the_reader(void **state)
{
    struct error err;
    int counts[2];
    for (int slow = 0; slow < 2; slow++) {
        const char *body = "{\"prompt\":\"a\",\"seed\":4,\"max_tokens\":90,\"ignore_eos\":true,"
                           "\"stream\":true,\"logprobs\":0}";
        struct completion *c = NULL;
        fixture.n_news = 0;
        assert_true(completion_open(&fixture.api, COMPLETION_TEXT, body, strlen(body), NULL,
                                    api_fixture_notify, &fixture, &c, &err));
        while (slow && !engine_idle(fixture.api.engine)) usleep(1000);
        char *events = api_read_all(&fixture, c, &err);
        counts[slow] = 0;
        for (const char *p = events; (p = strstr(p, "data: ")); p++) counts[slow]++;
        free(events);
        completion_free(c);
    }
    assert_int_equal(counts[0], 90 + 2); /* the finish and [DONE] */
    assert_int_equal(counts[1], counts[0]);
}

/* A reader that calls only when it is told to gets everything too, though a call's work is bounded.
 */
static void test_notified_reader_misses_nothing(void **state)
{
    struct error err;
    struct completion *c = NULL;
    struct buf out;
    buf_init(&out, 1 << 20);
    const char *body = "{\"prompt\":[\"a\",\"b\"],\"n\":2,\"seed\":4,\"max_tokens\":90,"
                       "\"ignore_eos\":true,\"stream\":true}";
    fixture.n_news = 0;
    assert_true(completion_open(&fixture.api, COMPLETION_TEXT, body, strlen(body), NULL,
                                api_fixture_notify, &fixture, &c, &err));
    while (!engine_idle(fixture.api.engine)) usleep(1000);
    bool ended = false;
    while (!ended) {
        pthread_mutex_lock(&fixture.lock);
        assert_true(fixture.n_news > 0); /* nobody else will ring any more */
        fixture.n_news = 0;
        pthread_mutex_unlock(&fixture.lock);
        ended = completion_read(c, &out, &err) == COMPLETION_ENDED;
    }
    assert_string_equal(out.data + out.len - 14, "data: [DONE]\n\n");
    buf_free(&out);
    completion_free(c);
}

static void test_stream_options(void **state)
{
    struct cJSON *whole = complete("\"prompt\":\"a\",\"seed\":1");
    struct cJSON *events = api_stream(&fixture, COMPLETION_TEXT,
                                      "{\"prompt\":\"a\",\"seed\":1,\"stream\":true,"
                                      "\"stream_options\":{\"include_usage\":true}}");
    check_events(events, whole, COMPLETION_TEXT);
    int n = cJSON_GetArraySize(events);
    for (int i = 0; i < n; i++) {
        const struct cJSON *usage = get(cJSON_GetArrayItem(events, i), "usage");
        assert_true(i == n - 1 ? cJSON_IsObject(usage) : cJSON_IsNull(usage));
    }
    cJSON_Delete(events);
    cJSON_Delete(whole);
}

/* ---- shapes ---------------------------------------------------------------------------------- */

static void test_completion_shape(void **state)
{
    struct cJSON *reply = complete("\"prompt\":\"the\",\"seed\":5,\"model\":\"tiny\"");
    assert_string_equal(string_of(reply, "object"), "text_completion");
    assert_string_equal(string_of(reply, "model"), "tiny");
    assert_string_equal(string_of(reply, "system_fingerprint"),
                        engine_fingerprint(fixture.api.engine));
    const char *id = string_of(reply, "id");
    assert_memory_equal(id, "cmpl-", 5);
    assert_int_equal(strlen(id), 5 + 24);
    assert_int_equal(strspn(id + 5, "0123456789abcdef"), 24);
    const struct cJSON *usage = get(reply, "usage");
    assert_int_equal(number_of(usage, "prompt_tokens"), 3);
    assert_true(number_of(usage, "completion_tokens") <= 16);
    assert_int_equal(number_of(usage, "total_tokens"), 3 + number_of(usage, "completion_tokens"));
    assert_int_equal(number_of(get(usage, "prompt_tokens_details"), "cached_tokens"), 0);
    assert_true(cJSON_IsNull(get(choice_of(reply, 0), "logprobs")));
    cJSON_Delete(reply);
}

static void test_chat_shape(void **state)
{
    struct cJSON *reply = api_complete(
        &fixture, COMPLETION_CHAT,
        "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"max_completion_tokens\":5,"
        "\"ignore_eos\":true,\"seed\":3,\"logprobs\":true,\"top_logprobs\":2}");
    assert_string_equal(string_of(reply, "object"), "chat.completion");
    assert_memory_equal(string_of(reply, "id"), "chatcmpl-", 9);
    const struct cJSON *choice = choice_of(reply, 0);
    assert_string_equal(string_of(get(choice, "message"), "role"), "assistant");
    assert_string_equal(string_of(choice, "finish_reason"), "length");
    const struct cJSON *content = get(get(choice, "logprobs"), "content"), *entry, *byte;
    assert_int_equal(cJSON_GetArraySize(content), 5);
    struct buf bytes, shown;
    buf_init(&bytes, 1000);
    buf_init(&shown, 1000);
    cJSON_ArrayForEach(entry, content) {
        assert_int_equal(cJSON_GetArraySize(get(entry, "top_logprobs")), 2);
        cJSON_ArrayForEach(byte, get(entry, "bytes")) buf_putc(&bytes, (char)byte->valueint);
        assert_true(get(entry, "logprob")->valuedouble <= 0);
    }
    /* The reply's text is these bytes, where they are UTF-8. */
    if (utf8_valid(bytes.data, bytes.len, NULL))
        assert_string_equal(string_of(get(choice, "message"), "content"), bytes.data);
    buf_free(&bytes);
    buf_free(&shown);
    cJSON_Delete(reply);
}

static void test_without_max_tokens_a_chat_has_the_context(void **state)
{
    struct cJSON *reply = api_complete(&fixture, COMPLETION_CHAT,
                                       "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],"
                                       "\"ignore_eos\":true,\"seed\":3,"
                                       "\"logit_bias\":{\"7\":100}}");
    assert_int_equal(number_of(get(reply, "usage"), "total_tokens"), FIXTURE_CONTEXT);
    cJSON_Delete(reply);
}

/* ---- parameters ------------------------------------------------------------------------------ */

static void test_seed(void **state)
{
    char *a = text_of(TEXT, 1), *b = text_of(TEXT, 1), *c = text_of(TEXT, 2);
    assert_string_equal(a, b);
    assert_string_not_equal(a, c);
    free(a);
    free(b);
    free(c);
    a = text_of("\"prompt\":\"a\",\"max_tokens\":40,\"temperature\":1.5");
    b = text_of("\"prompt\":\"a\",\"max_tokens\":40,\"temperature\":1.5");
    assert_string_not_equal(a, b);
    free(a);
    free(b);
    /* Without a seed two equal prompts of one request differ as well. */
    struct cJSON *reply = complete("\"prompt\":[\"a\",\"a\"],\"max_tokens\":40,"
                                   "\"temperature\":1.5");
    assert_string_not_equal(string_of(choice_of(reply, 0), "text"),
                            string_of(choice_of(reply, 1), "text"));
    cJSON_Delete(reply);
}

static void test_choices_are_numbered_by_prompt(void **state)
{
    static const char *const prompts[] = {"a", "b", "c"};
    struct cJSON *all = complete("\"prompt\":[\"a\",\"b\",\"c\"],\"n\":2,\"seed\":9,"
                                 "\"max_tokens\":20");
    assert_int_equal(cJSON_GetArraySize(get(all, "choices")), 6);
    int tokens = 0;
    for (int i = 0; i < 3; i++) {
        struct cJSON *one = complete("\"prompt\":\"%s\",\"n\":2,\"seed\":9,"
                                     "\"max_tokens\":20", prompts[i]);
        tokens += number_of(get(one, "usage"), "completion_tokens");
        for (int j = 0; j < 2; j++)
            assert_string_equal(string_of(choice_of(all, 2 * i + j), "text"),
                                string_of(choice_of(one, j), "text"));
        cJSON_Delete(one);
    }
    assert_int_equal(number_of(get(all, "usage"), "completion_tokens"), tokens);
    assert_int_equal(number_of(get(all, "usage"), "prompt_tokens"), 3);
    cJSON_Delete(all);
}

static double mean_logprob(const struct cJSON *choice)
{
    const struct cJSON *scores = get(get(choice, "logprobs"), "token_logprobs"), *score;
    double sum = 0;
    cJSON_ArrayForEach(score, scores) sum += score->valuedouble;
    int n = cJSON_GetArraySize(scores);
    return n ? sum / n : 0;
}

static void test_best_of(void **state)
{
    for (int seed = 0; seed < 5; seed++) {
        struct cJSON *four = complete(TEXT ",\"n\":4,\"logprobs\":0", seed);
        struct cJSON *two = complete(TEXT ",\"n\":2,\"best_of\":4,\"logprobs\":0", seed);
        int best = 0, second = -1;
        for (int i = 1; i < 4; i++)
            if (mean_logprob(choice_of(four, i)) > mean_logprob(choice_of(four, best))) best = i;
        for (int i = 0; i < 4; i++)
            if (i != best && (second < 0 || mean_logprob(choice_of(four, i)) >
                                                mean_logprob(choice_of(four, second))))
                second = i;
        assert_int_equal(cJSON_GetArraySize(get(two, "choices")), 2);
        assert_string_equal(string_of(choice_of(two, 0), "text"),
                            string_of(choice_of(four, best), "text"));
        assert_string_equal(string_of(choice_of(two, 1), "text"),
                            string_of(choice_of(four, second), "text"));
        assert_int_equal(number_of(get(two, "usage"), "completion_tokens"),
                         number_of(get(four, "usage"), "completion_tokens"));
        cJSON_Delete(two);
        cJSON_Delete(four);
    }
}

static void test_logit_bias(void **state)
{
    char *text = text_of("\"prompt\":\"a\",\"temperature\":0,\"max_tokens\":4,"
                         "\"logit_bias\":{\"33\":100}");
    assert_string_equal(text, "AAAA");
    free(text);
    text = text_of("\"prompt\":\"a\",\"temperature\":0,\"max_tokens\":4,"
                   "\"logit_bias\":{\"%d\":100}",
                   TOKEN_EOS);
    assert_string_equal(text, "");
    free(text);
}

static void test_end_token_is_not_shown(void **state)
{
    struct cJSON *reply = complete("\"prompt\":\"a\",\"temperature\":0,\"max_tokens\":4,"
                                   "\"logprobs\":2,"
                                   "\"logit_bias\":{\"%d\":100}", TOKEN_EOS);
    const struct cJSON *choice = choice_of(reply, 0);
    assert_string_equal(string_of(choice, "finish_reason"), "stop");
    assert_int_equal(cJSON_GetArraySize(get(get(choice, "logprobs"), "tokens")), 0);
    cJSON_Delete(reply);
}

static void test_stop_by_a_special_tokens_text(void **state)
{
    struct cJSON *reply = complete("\"prompt\":\"a\",\"temperature\":0,\"max_tokens\":9,"
                                   "\"logprobs\":0,"
                                   "\"stop\":\"<|im_start|>\",\"logit_bias\":{\"%d\":100}",
                                   TOKEN_IM_START);
    assert_string_equal(string_of(choice_of(reply, 0), "finish_reason"), "stop");
    assert_int_equal(number_of(get(reply, "usage"), "completion_tokens"), 1);
    cJSON_Delete(reply);
}

/* Every place in a text where a stop string may begin. */
static void test_stop_cuts_the_text(void **state)
{
    for (int seed = 0; seed < 4; seed++) {
        char *full = text_of(TEXT, seed);
        size_t n = strlen(full);
        for (size_t i = 0; i + 3 < n; i += 5) {
            size_t from = i, to = i + 3;
            while (((unsigned char)full[from] & 0xC0) == 0x80) from++;
            while (((unsigned char)full[to] & 0xC0) == 0x80) to++;
            char stop[16] = {0};
            memcpy(stop, full + from, to - from);
            /* U+FFFD in the text stands for bytes that no stop string is. */
            if (from == to || strpbrk(stop, "\"\\\n") || strstr(stop, "\xEF\xBF\xBD")) continue;
            const char *at = strstr(full, stop);
            char *cut = text_of(TEXT ",\"stop\":\"%s\"", seed, stop);
            assert_int_equal(strlen(cut), at - full);
            assert_memory_equal(cut, full, (size_t)(at - full));
            free(cut);
        }
        free(full);
    }
}

/* ---- log-probabilities and echo -------------------------------------------------------------- */

static void test_text_offsets_count_code_points(void **state)
{
    struct cJSON *reply = complete("\"prompt\":\"\xC3\xA9x\",\"echo\":true,\"max_tokens\":0,"
                                   "\"logprobs\":1");
    const struct cJSON *logprobs = get(choice_of(reply, 0), "logprobs");
    const struct cJSON *tokens = get(logprobs, "tokens"), *offsets = get(logprobs, "text_offset");
    assert_string_equal(string_of(choice_of(reply, 0), "text"), "\xC3\xA9x");
    assert_string_equal(string_of(choice_of(reply, 0), "finish_reason"), "length");
    assert_int_equal(cJSON_GetArraySize(tokens), 3); /* the letter comes in two bytes */
    assert_string_equal(cJSON_GetArrayItem(tokens, 0)->valuestring, "bytes:\\xc3");
    assert_string_equal(cJSON_GetArrayItem(tokens, 1)->valuestring, "bytes:\\xa9");
    assert_string_equal(cJSON_GetArrayItem(tokens, 2)->valuestring, "x");
    assert_int_equal(cJSON_GetArrayItem(offsets, 0)->valueint, 0);
    assert_int_equal(cJSON_GetArrayItem(offsets, 1)->valueint, 0);
    assert_int_equal(cJSON_GetArrayItem(offsets, 2)->valueint, 1);
    assert_true(cJSON_IsNull(cJSON_GetArrayItem(get(logprobs, "token_logprobs"), 0)));
    assert_true(cJSON_IsNull(cJSON_GetArrayItem(get(logprobs, "top_logprobs"), 0)));
    for (int i = 1; i < 3; i++) {
        double score = cJSON_GetArrayItem(get(logprobs, "token_logprobs"), i)->valuedouble;
        const struct cJSON *top = cJSON_GetArrayItem(get(logprobs, "top_logprobs"), i);
        const char *name = cJSON_GetArrayItem(tokens, i)->valuestring;
        assert_true(score < 0);
        assert_true(cJSON_GetArraySize(top) >= 1 && cJSON_GetArraySize(top) <= 2);
        assert_true(json_get(top, name) && json_get(top, name)->valuedouble == score);
    }
    assert_int_equal(number_of(get(reply, "usage"), "completion_tokens"), 0);
    cJSON_Delete(reply);
}

/* What generation reported for its tokens, scoring the same tokens reports again. */
static void test_scoring_gives_the_same_bits(void **state)
{
    struct cJSON *reply = complete("\"prompt\":[5,6,7],\"temperature\":0,\"max_tokens\":20,"
                                   "\"logprobs\":0,"
                                   "\"ignore_eos\":true,\"logit_bias\":{\"33\":3}");
    const struct cJSON *scores = get(get(choice_of(reply, 0), "logprobs"), "token_logprobs");
    const struct cJSON *names = get(get(choice_of(reply, 0), "logprobs"), "tokens"), *name;
    struct buf ids;
    buf_init(&ids, 10000);
    buf_puts(&ids, "5,6,7");
    cJSON_ArrayForEach(name, names) {
        int32_t id = 0;
        size_t n;
        for (; id < FIXTURE_VOCAB; id++) {
            const char *bytes = tokenizer_token_bytes(fixture.engine.tokenizer, id, &n);
            if (n == strlen(name->valuestring) && memcmp(bytes, name->valuestring, n) == 0) break;
        }
        if (id == FIXTURE_VOCAB) break; /* part of a character: compare up to here */
        buf_printf(&ids, ",%d", id);
    }
    struct cJSON *scored = complete("\"prompt\":[%s],\"max_tokens\":0,\"echo\":true,"
                                    "\"logprobs\":0", ids.data);
    const struct cJSON *again = get(get(choice_of(scored, 0), "logprobs"), "token_logprobs");
    int n = cJSON_GetArraySize(again) - 3;
    assert_true(n > 0);
    for (int i = 0; i < n; i++)
        assert_true(cJSON_GetArrayItem(again, 3 + i)->valuedouble ==
                    cJSON_GetArrayItem(scores, i)->valuedouble);
    buf_free(&ids);
    cJSON_Delete(scored);
    cJSON_Delete(reply);
}

static void test_echo_is_prompt_and_reply(void **state)
{
    char *plain = text_of(TEXT, 4), *echo = text_of(TEXT ",\"echo\":true", 4);
    assert_memory_equal(echo, "the cat", 7);
    assert_string_equal(echo + 7, plain);
    free(plain);
    free(echo);
    plain = text_of("\"prompt\":\"only\",\"echo\":true,\"max_tokens\":0");
    assert_string_equal(plain, "only");
    free(plain);
}

/* ---- refusals -------------------------------------------------------------------------------- */

struct refusal { const char *body; enum error_code code; const char *param; const char *says; };

static void test_refusals(void **state)
{
    static const struct refusal cases[] = {
        {"{\"prompt\":\"a\",\"model\":\"other\"}", ERR_NOT_FOUND, "model", "'other'"},
        {"{\"prompt\":[150]}", ERR_INVALID, "prompt", "150"},
        {"{\"prompt\":[[1],[2,149,150]]}", ERR_INVALID, "prompt[1]", "150"},
        {"{\"prompt\":[[1],[]]}", ERR_INVALID, "prompt[1]", "no tokens"},
        {"{\"prompt\":\"a\",\"logit_bias\":{\"150\":1}}", ERR_INVALID, "logit_bias", "150"},
        {"{\"prompt\":\"aaa\",\"max_tokens\":94}", ERR_NO_FIT, "prompt", "96"},
        {"{\"prompt\":\"a\",\"n\":9}", ERR_INVALID, "n", "8"},
        {"{\"prompt\":\"a\",\"best_of\":9}", ERR_INVALID, "best_of", "8"},
        {"{\"prompt\":\"\xE6\x97\xA5\"}", ERR_INVALID, "prompt", ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct error err = api_refused(&fixture, COMPLETION_TEXT, cases[i].body);
        if (err.code != cases[i].code || strcmp(err.param, cases[i].param) != 0 ||
            !strstr(err.text, cases[i].says))
            fail_msg("%s: %d %s: %s", cases[i].body, err.code, err.param, err.text);
    }
}

static void test_long_prompts_are_refused_with_the_numbers(void **state)
{
    char body[4096];
    char letters[2000];
    memset(letters, 'q', sizeof letters);
    for (int n = 97; n < 2000; n += 700) {
        snprintf(body, sizeof body, "{\"prompt\":\"%.*s\"}", n, letters);
        struct error err = api_refused(&fixture, COMPLETION_TEXT, body);
        assert_int_equal(err.code, ERR_NO_FIT);
        assert_string_equal(err.param, "prompt");
        assert_non_null(strstr(err.text, "96"));
        snprintf(body, sizeof body, "{\"messages\":[{\"role\":\"user\","
                                    "\"content\":\"%.*s\"}]}", n, letters);
        err = api_refused(&fixture, COMPLETION_CHAT, body);
        assert_int_equal(err.code, ERR_NO_FIT);
        assert_string_equal(err.param, "messages");
    }
    /* 96 tokens leave no room, 95 leave room for one, though the default is 16. */
    snprintf(body, sizeof body, "{\"prompt\":\"%.*s\"}", 96, letters);
    assert_int_equal(api_refused(&fixture, COMPLETION_TEXT, body).code, ERR_NO_FIT);
    snprintf(body, sizeof body, "{\"prompt\":\"%.*s\",\"ignore_eos\":true}", 95, letters);
    struct cJSON *reply = api_complete(&fixture, COMPLETION_TEXT, body);
    assert_int_equal(number_of(get(reply, "usage"), "completion_tokens"), 1);
    cJSON_Delete(reply);
}

static void test_what_a_reply_may_hold_is_limited(void **state)
{
    fixture.api.limits.reply_bytes = 4000;
    struct error err = api_refused(&fixture, COMPLETION_TEXT,
                                   "{\"prompt\":\"a\",\"n\":4,\"max_tokens\":90}");
    assert_int_equal(err.code, ERR_INVALID);
    assert_string_equal(err.param, "max_tokens");
    err = api_refused(&fixture, COMPLETION_TEXT,
                      "{\"prompt\":[\"a\",\"b\",\"c\",\"d\"],\"max_tokens\":90}");
    assert_string_equal(err.param, "max_tokens");
    err = api_refused(&fixture, COMPLETION_TEXT,
                      "{\"prompt\":\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\",\"max_tokens\":0,"
                      "\"echo\":true,"
                      "\"logprobs\":20}");
    assert_string_equal(err.param, "max_tokens");
    cJSON_Delete(complete("\"prompt\":\"a\",\"n\":2,\"max_tokens\":90"));
    api_limits_init(&fixture.api.limits);
}

static void test_all_prompts_or_none(void **state)
{
    struct engine_stats s;
    struct error err = api_refused(&fixture, COMPLETION_TEXT, "{\"prompt\":[\"a\",\"b\",[150]]}");
    assert_string_equal(err.param, "prompt[2]");
    engine_stats(fixture.api.engine, &s);
    assert_int_equal(s.queued + s.running, 0);
    assert_true(engine_idle(fixture.api.engine));
}

/* ---- endings --------------------------------------------------------------------------------- */

static struct completion *open_held(const char *body)
{
    struct completion *c = NULL;
    struct error err;
    fixture.n_news = 0;
    fixture_hold(&fixture.engine);
    if (!completion_open(&fixture.api, COMPLETION_TEXT, body, strlen(body), NULL,
                         api_fixture_notify, &fixture, &c, &err))
        fail_msg("%s", err.text);
    fixture_wait_step(&fixture.engine, 1);
    return c;
}

static void test_cancel(void **state)
{
    struct completion *c = open_held("{\"prompt\":\"a\",\"max_tokens\":50,\"ignore_eos\":true}");
    completion_cancel(c);
    fixture_unhold(&fixture.engine);
    struct error err;
    assert_null(api_read_all(&fixture, c, &err));
    assert_int_equal(err.code, ERR_CANCELED);
    completion_free(c);
    fixture_assert_clean(&fixture.engine);
}

static void test_cancel_of_a_stream_is_an_event(void **state)
{
    struct completion *c = open_held("{\"prompt\":\"a\",\"max_tokens\":50,\"ignore_eos\":true,"
                                     "\"stream\":true}");
    completion_cancel(c);
    fixture_unhold(&fixture.engine);
    struct error err;
    char *events = api_read_all(&fixture, c, &err);
    assert_int_equal(err.code, ERR_NONE);
    assert_non_null(strstr(events, "data: {\"error\":{\"message\":\"the request was canceled\""));
    assert_null(strstr(events, "\"finish_reason\":\""));
    assert_string_equal(events + strlen(events) - strlen("data: [DONE]\n\n"), "data: [DONE]\n\n");
    free(events);
    completion_free(c);
}

static void test_free_while_running(void **state)
{
    struct completion *c = open_held("{\"prompt\":[\"a\",\"b\"],\"n\":2,\"max_tokens\":50,"
                                     "\"stream\":true}");
    fixture_unhold(&fixture.engine);
    completion_free(c);
    fixture_assert_clean(&fixture.engine);
}

static void test_deadline(void **state)
{
    fixture.api.limits.deadline_ms = 1;
    struct completion *c = open_held("{\"prompt\":\"a\",\"max_tokens\":50,\"ignore_eos\":true}");
    usleep(5000);
    fixture_unhold(&fixture.engine);
    struct error err;
    assert_null(api_read_all(&fixture, c, &err));
    assert_int_equal(err.code, ERR_TIMEOUT);
    completion_free(c);
    api_limits_init(&fixture.api.limits);
}

static void test_summary(void **state)
{
    struct completion *c = open_held("{\"prompt\":[\"abc\",\"de\"],\"n\":2,\"max_tokens\":7,"
                                     "\"ignore_eos\":true}");
    fixture_unhold(&fixture.engine);
    struct error err;
    char *reply = api_read_all(&fixture, c, &err);
    assert_non_null(reply);
    struct completion_summary s;
    completion_summary(c, &s);
    assert_int_equal(s.prompt_tokens, 5);
    assert_int_equal(s.completion_tokens, 28);
    assert_string_equal(s.finish, "length");
    assert_memory_equal(s.id, "cmpl-", 5);
    assert_true(s.first_token_ns > 0 && s.total_ns >= s.first_token_ns && s.queued_ns >= 0);
    free(reply);
    completion_free(c);
}

/* ---- callers --------------------------------------------------------------------------------- */

struct purse { int64_t charged, refunded; int n_charges, n_refunds; bool empty; };

static bool charge(void *ctx, int64_t tokens, struct error *err)
{
    struct purse *p = ctx;
    p->n_charges++;
    if (p->empty) return error_set(err, ERR_BUSY, NULL, "nothing is left");
    p->charged += tokens;
    return true;
}

static void refund(void *ctx, int64_t tokens)
{
    struct purse *p = ctx;
    p->n_refunds++;
    p->refunded += tokens;
}

static struct completion *open_for(struct purse *p, const char *body, struct error *err)
{
    struct completion_caller caller = {.charge = charge, .refund = refund, .ctx = p};
    struct completion *c = NULL;
    fixture.n_news = 0;
    if (completion_open(&fixture.api, COMPLETION_TEXT, body, strlen(body), &caller,
                        api_fixture_notify, &fixture, &c, err))
        return c;
    assert_null(c);
    return NULL;
}

static void test_callers_pay_for_what_they_take(void **state)
{
    static const char *const bodies[] = {
        "{\"prompt\":[\"abc\",\"de\"],\"n\":2,\"max_tokens\":7,\"stop\":[\"e\",\" \",\"a\"]}",
        "{\"prompt\":[\"abc\",\"de\"],\"n\":2,\"max_tokens\":7,\"stream\":true,\"stop\":\"e\"}",
    };
    for (int i = 0; i < 2; i++) {
        struct purse purse = {0};
        struct error err;
        struct completion *c = open_for(&purse, bodies[i], &err);
        assert_non_null(c);
        assert_int_equal(purse.charged, 5 + 4 * 7);
        free(api_read_all(&fixture, c, &err));
        struct completion_summary s;
        completion_summary(c, &s);
        assert_int_equal(purse.charged - purse.refunded, s.prompt_tokens + s.completion_tokens);
        completion_free(c);
        assert_int_equal(purse.n_charges, 1);
        assert_int_equal(purse.n_refunds, 1);
    }
}

static void test_who_leaves_pays_for_what_was_made(void **state)
{
    struct purse purse = {0};
    struct error err;
    fixture_hold(&fixture.engine);
    struct completion *c = open_for(&purse, "{\"prompt\":\"abc\",\"max_tokens\":90,"
                                            "\"ignore_eos\":true}", &err);
    assert_non_null(c);
    completion_cancel(c);
    fixture_unhold(&fixture.engine);
    completion_free(c);
    assert_int_equal(purse.n_refunds, 1);
    assert_in_range(purse.refunded, 1, 90);
    fixture_assert_clean(&fixture.engine);
}

static void test_who_cannot_pay_starts_nothing(void **state)
{
    struct purse purse = {.empty = true};
    struct error err;
    assert_null(open_for(&purse, "{\"prompt\":\"a\",\"max_tokens\":5}", &err));
    assert_string_equal(err.text, "nothing is left");
    assert_int_equal(purse.n_refunds, 0);
    purse.empty = false;
    assert_null(open_for(&purse, "{\"prompt\":\"a\",\"max_tokens\":5,\"nonsense\":1}", &err));
    assert_int_equal(purse.n_charges, 1); /* only of what would have run */
    fixture_assert_clean(&fixture.engine);
}

/* ---- a model without a tokenizer --------------------------------------------------------------
 */

static void test_token_ids_only(void **state)
{
    struct cJSON *reply = complete("\"prompt\":[1,2],\"max_tokens\":3,\"seed\":1,\"logprobs\":1");
    const struct cJSON *choice = choice_of(reply, 0);
    assert_string_equal(string_of(choice, "text"), "");
    const struct cJSON *tokens = get(get(choice, "logprobs"), "tokens");
    assert_int_equal(cJSON_GetArraySize(tokens), 3);
    assert_memory_equal(cJSON_GetArrayItem(tokens, 0)->valuestring, "token_id:", 9);
    cJSON_Delete(reply);
    struct error err = api_refused(&fixture, COMPLETION_TEXT, "{\"prompt\":\"a\"}");
    assert_int_equal(err.code, ERR_UNSUPPORTED);
    err = api_refused(&fixture, COMPLETION_TEXT, "{\"prompt\":[1],\"stop\":\"a\"}");
    assert_string_equal(err.param, "stop");
    err = api_refused(&fixture, COMPLETION_CHAT, "{\"messages\":[{\"role\":\"user\","
                                                 "\"content\":\"a\"}]}");
    assert_int_equal(err.code, ERR_UNSUPPORTED);
}

static int open_fixture(void **state)
{
    api_fixture_open(&fixture, true, NULL);
    return 0;
}

static int open_bare(void **state)
{
    api_fixture_open(&fixture, false, NULL);
    return 0;
}

static int close_fixture(void **state)
{
    api_fixture_close(&fixture);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stream_equals_whole),
        cmocka_unit_test(test_chunks_do_not_depend_on_the_reader),
        cmocka_unit_test(test_notified_reader_misses_nothing),
        cmocka_unit_test(test_stream_options),
        cmocka_unit_test(test_completion_shape),
        cmocka_unit_test(test_chat_shape),
        cmocka_unit_test(test_without_max_tokens_a_chat_has_the_context),
        cmocka_unit_test(test_seed),
        cmocka_unit_test(test_choices_are_numbered_by_prompt),
        cmocka_unit_test(test_best_of),
        cmocka_unit_test(test_logit_bias),
        cmocka_unit_test(test_end_token_is_not_shown),
        cmocka_unit_test(test_stop_by_a_special_tokens_text),
        cmocka_unit_test(test_stop_cuts_the_text),
        cmocka_unit_test(test_text_offsets_count_code_points),
        cmocka_unit_test(test_scoring_gives_the_same_bits),
        cmocka_unit_test(test_echo_is_prompt_and_reply),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_long_prompts_are_refused_with_the_numbers),
        cmocka_unit_test(test_what_a_reply_may_hold_is_limited),
        cmocka_unit_test(test_all_prompts_or_none),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_cancel_of_a_stream_is_an_event),
        cmocka_unit_test(test_free_while_running),
        cmocka_unit_test(test_deadline),
        cmocka_unit_test(test_summary),
        cmocka_unit_test(test_callers_pay_for_what_they_take),
        cmocka_unit_test(test_who_leaves_pays_for_what_was_made),
        cmocka_unit_test(test_who_cannot_pay_starts_nothing),
    };
    const struct CMUnitTest bare[] = {cmocka_unit_test(test_token_ids_only)};
    int failed = cmocka_run_group_tests(tests, open_fixture, close_fixture);
    return failed + cmocka_run_group_tests(bare, open_bare, close_fixture);
}

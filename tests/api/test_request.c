/* Parsing of completion bodies: every parameter with good, ill-typed and out-of-range values. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "api/request.h"
#include "base/buf.h"

static struct api_limits limits;

/* A parsed body; `arena` keeps what it points to. */
struct parsed { struct arena arena; struct completion_params p; struct error err; bool ok; };

static struct parsed parse_bytes(enum completion_kind kind, const char *body, size_t n)
{
    struct parsed r = {0};
    api_limits_init(&limits);
    arena_init(&r.arena, completion_parse_arena(n));
    r.ok = completion_parse(&limits, kind, body, n, &r.arena, &r.p, &r.err);
    return r;
}

/* `members` beside what the route requires, unless they begin with '!': then alone. */
static struct parsed parse(enum completion_kind kind, const char *members)
{
    struct buf b;
    buf_init(&b, 1 << 20);
    const char *required = kind == COMPLETION_CHAT
                               ? "\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]"
                               : "\"prompt\":\"x\"";
    if (members[0] == '!') buf_printf(&b, "{%s}", members + 1);
    else buf_printf(&b, "{%s%s%s}", required, members[0] ? "," : "", members);
    struct parsed r = parse_bytes(kind, b.data, b.len);
    buf_free(&b);
    return r;
}

static void accept(enum completion_kind kind, const char *members)
{
    struct parsed r = parse(kind, members);
    if (!r.ok) fail_msg("refused: %s: %s", members, r.err.text);
    arena_free(&r.arena);
}

static void refuse(enum completion_kind kind, const char *members, enum error_code code,
                   const char *param)
{
    struct parsed r = parse(kind, members);
    if (r.ok) fail_msg("accepted: %s", members);
    if (r.err.code != code || strcmp(r.err.param, param) != 0)
        fail_msg("%s: %s of '%s': "
                 "%s", members, error_code_name(r.err.code), r.err.param, r.err.text);
    assert_true(r.err.text[0] != 0);
    arena_free(&r.arena);
}

enum { TEXT = 1, CHAT = 2, BOTH = 3 };

static void each(int kinds, const char *members, enum error_code code, const char *param)
{
    for (int kind = TEXT; kind <= CHAT; kind++) {
        if (!(kinds & kind)) continue;
        enum completion_kind k = kind == CHAT ? COMPLETION_CHAT : COMPLETION_TEXT;
        if (code == ERR_NONE) accept(k, members);
        else refuse(k, members, code, param);
    }
}

/* ---- scalars --------------------------------------------------------------------------------- */

/* name, routes, values that are accepted and refused; comma-separated JSON. */
struct scalar { const char *name; int kinds; const char *good, *bad; };

static const struct scalar scalars[] = {
    {"temperature", BOTH, "0,1,0.5,100,null,1e-3,2.0", "-0.1,100.1,\"1\",true,[],{}"},
    {"top_p", BOTH, "1,0.1,1e-6,null", "0,1.1,-1,\"1\",false,1e-60"},
    {"top_k", BOTH, "0,1,50,2147483647,5.0,null", "-1,1.5,2147483648,\"5\",true"},
    {"min_p", BOTH, "0,1,0.05,null", "-0.1,1.1,\"0\""},
    {"repetition_penalty", BOTH, "1,1.3,0.5,100,null", "0,-1,101,\"1\""},
    {"presence_penalty", BOTH, "0,2,-2,null", "2.1,-2.1,\"0\""},
    {"frequency_penalty", BOTH, "0,2,-2,null", "2.1,-2.1,true"},
    {"max_tokens", TEXT, "1,100,7.0,2147483647,null", "-1,1.5,\"16\",1e30,2147483648,true"},
    {"max_tokens", CHAT, "1,100,null", "0,-1,1.5,\"16\""},
    {"max_completion_tokens", CHAT, "1,100,null", "0,-1,1.5,\"16\""},
    {"n", BOTH, "1,16,2.0,null", "0,17,-1,1.5,\"1\",true"},
    {"best_of", TEXT, "1,16,null", "0,17,1.5,\"1\""},
    {"stream", BOTH, "true,false,null", "1,\"true\",[]"},
    {"echo", TEXT, "true,false,null", "1,\"true\""},
    {"ignore_eos", BOTH, "true,false,null", "1,0,\"no\""},
    {"logprobs", TEXT, "0,5,20,null", "-1,21,1.5,true,\"5\""},
    {"logprobs", CHAT, "true,false,null", "0,5,\"true\""},
    {"seed", BOTH, "0,1,-1,9223372036854775807,-9223372036854775808,18014398509481984,1e3,null",
     "1.5,\"1\",1e19,-1e19,true,[]"},
    {"user", BOTH, "\"me\",\"\",null", "5,true,[]"},
    {"safety_identifier", CHAT, "\"me\",null", "5"},
    {"model", BOTH, "\"tiny\",\"\",null", "5,[],true"},
    {"stop", BOTH, "null,\"x\"", "\"\",5,true"},
};

static void each_value(const struct scalar *s, const char *values, enum error_code code)
{
    char list[256], member[320];
    snprintf(list, sizeof list, "%s", values);
    for (char *save, *value = strtok_r(list, ",", &save); value;
         value = strtok_r(NULL, ",", &save)) {
        snprintf(member, sizeof member, "\"%s\":%s", s->name, value);
        each(s->kinds, member, code, s->name);
    }
}

static void test_scalars(void **state)
{
    for (size_t i = 0; i < sizeof scalars / sizeof *scalars; i++) {
        each_value(&scalars[i], scalars[i].good, ERR_NONE);
        each_value(&scalars[i], scalars[i].bad, ERR_INVALID);
    }
}

static void test_values_arrive(void **state)
{
    struct parsed r = parse(COMPLETION_TEXT,
                            "\"temperature\":0.5,\"top_p\":0.25,\"top_k\":7,\"min_p\":0.125,"
                            "\"repetition_penalty\":1.5,\"presence_penalty\":-1,"
                            "\"frequency_penalty\":2,"
                            "\"max_tokens\":9,\"n\":2,\"best_of\":3,\"echo\":true,"
                            "\"ignore_eos\":true,"
                            "\"logprobs\":4,\"seed\":-5,\"model\":\"m\",\"stop\":[\"a\","
                            "\"\xC3\xA9\"],"
                            "\"logit_bias\":{\"5\":-100,\"0\":1.5}");
    const struct completion_params *p = &r.p;
    assert_true(r.ok);
    assert_true(p->sampling.temperature == 0.5f && p->sampling.top_p == 0.25f);
    assert_true(p->sampling.min_p == 0.125f && p->sampling.repetition_penalty == 1.5f);
    assert_true(p->sampling.presence_penalty == -1 && p->sampling.frequency_penalty == 2);
    assert_int_equal(p->sampling.top_k, 7);
    assert_int_equal(p->max_tokens, 9);
    assert_int_equal(p->n, 2);
    assert_int_equal(p->best_of, 3);
    assert_true(p->echo && p->ignore_eos && p->has_seed && !p->stream);
    assert_int_equal(p->logprobs, 4);
    assert_true(p->sampling.seed == (uint64_t)-5);
    assert_string_equal(p->model, "m");
    assert_int_equal(p->stops.n, 2);
    assert_int_equal(p->stops.at[1].n, 2);
    assert_memory_equal(p->stops.at[1].bytes, "\xC3\xA9", 2);
    assert_int_equal(p->sampling.n_bias, 2);
    assert_int_equal(p->sampling.bias[0].id, 5);
    assert_true(p->sampling.bias[0].bias == -100 && p->sampling.bias[1].bias == 1.5f);
    arena_free(&r.arena);
}

static void test_defaults(void **state)
{
    struct parsed r = parse(COMPLETION_TEXT, "");
    const struct completion_params *p = &r.p;
    assert_true(r.ok);
    assert_true(p->sampling.temperature == 1 && p->sampling.top_p == 1 && p->sampling.top_k == 0);
    assert_true(p->sampling.repetition_penalty == 1 && p->sampling.n_bias == 0);
    assert_int_equal(p->n, 1);
    assert_int_equal(p->best_of, 1);
    assert_int_equal(p->max_tokens, -1);
    assert_int_equal(p->logprobs, -1);
    assert_int_equal(p->stops.n, 0);
    assert_null(p->model);
    assert_false(p->has_seed || p->stream || p->echo || p->ignore_eos || p->include_usage);
    arena_free(&r.arena);
}

static void test_largest_seeds(void **state)
{
    struct parsed r = parse(COMPLETION_TEXT, "\"seed\":9223372036854775807");
    assert_true(r.p.sampling.seed == INT64_MAX);
    arena_free(&r.arena);
    r = parse(COMPLETION_TEXT, "\"seed\":-9223372036854775808");
    assert_true(r.p.sampling.seed == (uint64_t)INT64_MIN);
    arena_free(&r.arena);
}

/* ---- structures ------------------------------------------------------------------------------ */

struct structured { int kinds; const char *members; enum error_code code; const char *param; };

static const struct structured structures[] = {
    {TEXT, "!\"prompt\":\"\"", ERR_NONE, ""},
    {TEXT, "!\"prompt\":[\"a\",\"b\"]", ERR_NONE, ""},
    {TEXT, "!\"prompt\":[1,2,3]", ERR_NONE, ""},
    {TEXT, "!\"prompt\":[[1],[2,3],\"x\"]", ERR_NONE, ""},
    {TEXT, "!\"max_tokens\":1", ERR_INVALID, "prompt"},
    {TEXT, "!\"prompt\":null", ERR_INVALID, "prompt"},
    {TEXT, "!\"prompt\":5", ERR_INVALID, "prompt"},
    {TEXT, "!\"prompt\":{}", ERR_INVALID, "prompt"},
    {TEXT, "!\"prompt\":[]", ERR_INVALID, "prompt"},
    {TEXT, "!\"prompt\":[1,\"a\"]", ERR_INVALID, "prompt[1]"},
    {TEXT, "!\"prompt\":[\"a\",1]", ERR_INVALID, "prompt[1]"},
    {TEXT, "!\"prompt\":[1.5]", ERR_INVALID, "prompt[0]"},
    {TEXT, "!\"prompt\":[0,-1]", ERR_INVALID, "prompt[1]"},
    {TEXT, "!\"prompt\":[[0],[1,true]]", ERR_INVALID, "prompt[1][1]"},
    {TEXT, "!\"prompt\":[[0,4294967296]]", ERR_INVALID, "prompt[0][1]"},
    {TEXT, "!\"prompt\":[null]", ERR_INVALID, "prompt[0]"},
    {TEXT, "\"messages\":[]", ERR_INVALID, "messages"},
    {CHAT, "!\"messages\":[]", ERR_INVALID, "messages"},
    {CHAT, "!\"messages\":null", ERR_INVALID, "messages"},
    {CHAT, "!\"messages\":\"x\"", ERR_INVALID, "messages"},
    {CHAT, "!\"messages\":[5]", ERR_INVALID, "messages[0]"},
    {CHAT, "!\"messages\":[{}]", ERR_INVALID, "messages[0].role"},
    {CHAT, "!\"messages\":[{\"role\":\"user\"}]", ERR_INVALID, "messages[0].content"},
    {CHAT, "!\"messages\":[{\"role\":\"king\",\"content\":\"\"}]", ERR_INVALID, "messages[0].role"},
    {CHAT, "!\"messages\":[{\"role\":\"tool\",\"content\":\"\"}]", ERR_INVALID, "messages[0].role"},
    {CHAT, "!\"messages\":[{\"role\":1,\"content\":\"\"}]", ERR_INVALID, "messages[0].role"},
    {CHAT, "!\"messages\":[{\"role\":\"user\",\"content\":5}]", ERR_INVALID, "messages[0].content"},
    {CHAT, "!\"messages\":[{\"role\":\"user\","
           "\"content\":null}]", ERR_INVALID, "messages[0].content"},
    {CHAT, "!\"messages\":[{\"role\":\"user\","
           "\"content\":[]}]", ERR_INVALID, "messages[0].content"},
    {CHAT, "!\"messages\":[{\"role\":\"user\","
           "\"content\":[5]}]", ERR_INVALID, "messages[0].content[0]"},
    {CHAT, "!\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\","
           "\"text\":\"\"}]}]",
     ERR_UNSUPPORTED, "messages[0].content[0].type"},
    {CHAT, "!\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}]", ERR_INVALID,
     "messages[0].content[0].text"},
    {CHAT, "!\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"\","
           "\"x\":1}]}]",
     ERR_INVALID, "messages[0].content[0].x"},
    {CHAT, "!\"messages\":[{\"role\":\"user\",\"content\":\"\",\"mood\":1}]", ERR_INVALID,
     "messages[0].mood"},
    {CHAT, "!\"messages\":[{\"role\":\"user\",\"content\":\"\",\"name\":\"Bob\"}]", ERR_UNSUPPORTED,
     "messages[0].name"},
    {CHAT, "!\"messages\":[{\"role\":\"assistant\",\"content\":\"\",\"refusal\":null,"
           "\"audio\":null,"
           "\"tool_calls\":null,\"function_call\":null,\"annotations\":[]}]", ERR_NONE, ""},
    {CHAT, "!\"messages\":[{\"role\":\"developer\",\"content\":\"\"},{\"role\":\"system\","
           "\"content\":\"\"}]",
     ERR_NONE, ""},
    {BOTH, "\"stop\":[]", ERR_NONE, ""},
    {BOTH, "\"stop\":[\"a\",null]", ERR_INVALID, "stop[1]"},
    {BOTH, "\"stop\":[\"a\",\"b\",\"c\",\"\"]", ERR_INVALID, "stop[3]"},
    {BOTH, "\"stop\":{}", ERR_INVALID, "stop"},
    {BOTH, "\"stop\":[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]", ERR_INVALID, "stop"},
    {BOTH, "\"logit_bias\":null", ERR_NONE, ""},
    {BOTH, "\"logit_bias\":[]", ERR_INVALID, "logit_bias"},
    {BOTH, "\"logit_bias\":{\"a\":1}", ERR_INVALID, "logit_bias"},
    {BOTH, "\"logit_bias\":{\"\":1}", ERR_INVALID, "logit_bias"},
    {BOTH, "\"logit_bias\":{\"-1\":1}", ERR_INVALID, "logit_bias"},
    {BOTH, "\"logit_bias\":{\"01\":1}", ERR_INVALID, "logit_bias"},
    {BOTH, "\"logit_bias\":{\"1.0\":1}", ERR_INVALID, "logit_bias"},
    {BOTH, "\"logit_bias\":{\"2147483648\":1}", ERR_INVALID, "logit_bias"},
    {BOTH, "\"logit_bias\":{\"99999999999\":1}", ERR_INVALID, "logit_bias"},
    {BOTH, "\"logit_bias\":{\"1\":100.5}", ERR_INVALID, "logit_bias"},
    {BOTH, "\"logit_bias\":{\"1\":\"1\"}", ERR_INVALID, "logit_bias"},
    {BOTH, "\"logit_bias\":{\"1\":null}", ERR_INVALID, "logit_bias"},
    {BOTH, "\"stream\":true,\"stream_options\":{}", ERR_NONE, ""},
    {BOTH, "\"stream\":true,\"stream_options\":{\"include_usage\":true}", ERR_NONE, ""},
    {BOTH, "\"stream\":true,\"stream_options\":{\"include_usage\":1}", ERR_INVALID,
     "stream_options.include_usage"},
    {BOTH, "\"stream\":true,\"stream_options\":{\"more\":1}", ERR_INVALID, "stream_options.more"},
    {BOTH, "\"stream\":true,\"stream_options\":[]", ERR_INVALID, "stream_options"},
    {BOTH, "\"stream_options\":{\"include_usage\":true}", ERR_INVALID, "stream_options"},
    {TEXT, "\"n\":3,\"best_of\":2", ERR_INVALID, "best_of"},
    {TEXT, "\"n\":2,\"best_of\":3,\"stream\":true", ERR_INVALID, "best_of"},
    {TEXT, "\"n\":2,\"best_of\":2,\"stream\":true", ERR_NONE, ""},
    {TEXT, "\"max_tokens\":0", ERR_INVALID, "max_tokens"},
    {TEXT, "\"max_tokens\":0,\"echo\":true", ERR_NONE, ""},
    {CHAT, "\"top_logprobs\":3", ERR_INVALID, "top_logprobs"},
    {CHAT, "\"logprobs\":true,\"top_logprobs\":21", ERR_INVALID, "top_logprobs"},
    {CHAT, "\"logprobs\":true,\"top_logprobs\":20", ERR_NONE, ""},
    {CHAT, "\"max_tokens\":5,\"max_completion_tokens\":6", ERR_INVALID, "max_completion_tokens"},
    {CHAT, "\"max_tokens\":5,\"max_completion_tokens\":5", ERR_NONE, ""},
    {CHAT, "\"response_format\":{\"type\":\"text\"}", ERR_NONE, ""},
    {CHAT, "\"response_format\":null", ERR_NONE, ""},
    {CHAT, "\"response_format\":{\"type\":\"json_object\"}", ERR_UNSUPPORTED, "response_format"},
    {CHAT, "\"response_format\":{}", ERR_UNSUPPORTED, "response_format"},
    {CHAT, "\"echo\":true", ERR_INVALID, "echo"},
    {CHAT, "\"best_of\":1", ERR_INVALID, "best_of"},
    {TEXT, "\"suffix\":null", ERR_NONE, ""},
    {TEXT, "\"suffix\":\"\"", ERR_UNSUPPORTED, "suffix"},
    {CHAT, "\"tools\":null,\"tool_choice\":\"none\",\"store\":false,\"metadata\":{},"
           "\"functions\":[],"
           "\"service_tier\":\"auto\",\"parallel_tool_calls\":null", ERR_NONE, ""},
    {CHAT, "\"tools\":[{}]", ERR_UNSUPPORTED, "tools"},
    {CHAT, "\"tool_choice\":\"auto\"", ERR_UNSUPPORTED, "tool_choice"},
    {CHAT, "\"store\":true", ERR_UNSUPPORTED, "store"},
    {CHAT, "\"metadata\":{\"a\":\"b\"}", ERR_UNSUPPORTED, "metadata"},
    {CHAT, "\"service_tier\":\"aut\"", ERR_UNSUPPORTED, "service_tier"},
    {CHAT, "\"service_tier\":\"auto\\\",\\\"default\"", ERR_UNSUPPORTED, "service_tier"},
    {CHAT, "\"reasoning_effort\":\"high\"", ERR_UNSUPPORTED, "reasoning_effort"},
    {BOTH, "\"temprature\":1", ERR_INVALID, "temprature"},
    {BOTH, "\"Temperature\":1", ERR_INVALID, "Temperature"},
    {BOTH, "\"\":1", ERR_INVALID, ""},
    {BOTH, "\"seed\":1,\"seed\":1", ERR_FORMAT, "seed"},
    {BOTH, "\"logit_bias\":{\"5\":1,\"5\":2}", ERR_FORMAT, "5"},
};

static void test_structures(void **state)
{
    for (size_t i = 0; i < sizeof structures / sizeof *structures; i++)
        each(structures[i].kinds, structures[i].members, structures[i].code, structures[i].param);
}

static void test_prompts_arrive(void **state)
{
    struct parsed r = parse(COMPLETION_TEXT, "!\"prompt\":[\"ab\",[7,8],\"\"]");
    assert_true(r.ok);
    assert_int_equal(r.p.n_prompts, 3);
    assert_string_equal(r.p.prompts[0].text, "ab");
    assert_int_equal(r.p.prompts[0].n_text, 2);
    assert_null(r.p.prompts[1].text);
    assert_int_equal(r.p.prompts[1].n_ids, 2);
    assert_int_equal(r.p.prompts[1].ids[1], 8);
    assert_int_equal(r.p.prompts[2].n_text, 0);
    arena_free(&r.arena);
    r = parse(COMPLETION_TEXT, "!\"prompt\":[7,8]");
    assert_int_equal(r.p.n_prompts, 1);
    assert_int_equal(r.p.prompts[0].n_ids, 2);
    arena_free(&r.arena);
}

static void test_messages_arrive(void **state)
{
    struct parsed r = parse(COMPLETION_CHAT,
                            "!\"messages\":[{\"role\":\"developer\",\"content\":\"be \\u00e9\"},"
                            "{\"content\":[{\"type\":\"text\",\"text\":\"one\"},"
                            "{\"type\":\"text\",\"text\":\"\"},"
                            "{\"type\":\"text\",\"text\":\"two\"}],\"role\":\"user\"}]");
    assert_true(r.ok);
    assert_int_equal(r.p.n_messages, 2);
    assert_int_equal(r.p.n_prompts, 1);
    assert_string_equal(r.p.messages[0].role, "developer");
    assert_string_equal(r.p.messages[0].content, "be \xC3\xA9");
    assert_string_equal(r.p.messages[1].content, "one\n\ntwo");
    assert_int_equal(r.p.messages[1].n_content, 8);
    arena_free(&r.arena);
}

static void test_chat_logprobs(void **state)
{
    static const struct { const char *members; int32_t logprobs; } cases[] = {
        {"", -1}, {"\"logprobs\":false", -1}, {"\"logprobs\":true", 0},
        {"\"logprobs\":true,\"top_logprobs\":4", 4}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct parsed r = parse(COMPLETION_CHAT, cases[i].members);
        assert_true(r.ok);
        assert_int_equal(r.p.logprobs, cases[i].logprobs);
        arena_free(&r.arena);
    }
}

static void test_unknown_names_get_a_hint(void **state)
{
    struct parsed r = parse(COMPLETION_TEXT, "\"temprature\":1");
    assert_non_null(strstr(r.err.text, "'temperature'"));
    arena_free(&r.arena);
    r = parse(COMPLETION_TEXT, "\"messages\":1"); /* known, but elsewhere */
    assert_non_null(strstr(r.err.text, "not a parameter of this route"));
    arena_free(&r.arena);
}

/* ---- limits and malformed bodies ------------------------------------------------------------- */

static void test_malformed(void **state)
{
    static const char *const bodies[] = {"", "{", "null", "5", "[]", "\"x\"", "{}x",
                                         "{\"prompt\":\"a\",}",
                                         "{\"prompt\":\"a\",\"seed\":NaN}", "{\"prompt\":\"\xFF\"}",
                                         "{\"prompt\":\"a\\u0000\"}", "{\"prompt\":\"\\ud800\"}",
                                         "{\"prompt\":\"a\",\"temperature\":1e999}"};
    for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++) {
        struct parsed r = parse_bytes(COMPLETION_TEXT, bodies[i], strlen(bodies[i]));
        if (r.ok) fail_msg("accepted: %s", bodies[i]);
        assert_true(r.err.code == ERR_FORMAT || r.err.code == ERR_INVALID);
        arena_free(&r.arena);
    }
}

static void test_depth(void **state)
{
    struct buf b;
    buf_init(&b, 1 << 20);
    buf_puts(&b, "{\"prompt\":");
    for (int i = 0; i < 50000; i++) buf_putc(&b, '[');
    struct parsed r = parse_bytes(COMPLETION_TEXT, b.data, b.len);
    assert_false(r.ok);
    assert_int_equal(r.err.code, ERR_FORMAT);
    arena_free(&r.arena);
    buf_free(&b);
}

static void test_counts_are_limited(void **state)
{
    struct buf b;
    buf_init(&b, 1 << 20);
    buf_puts(&b, "{\"prompt\":[");
    for (int i = 0; i < 65; i++) buf_puts(&b, i ? ",\"a\"" : "\"a\"");
    buf_puts(&b, "]}");
    struct parsed r = parse_bytes(COMPLETION_TEXT, b.data, b.len);
    assert_string_equal(r.err.param, "prompt");
    assert_non_null(strstr(r.err.text, "64"));
    arena_free(&r.arena);
    buf_clear(&b);
    buf_puts(&b, "{\"prompt\":\"a\",\"logit_bias\":{");
    for (int i = 0; i < 1025; i++) buf_printf(&b, "%s\"%d\":1", i ? "," : "", i);
    buf_puts(&b, "}}");
    r = parse_bytes(COMPLETION_TEXT, b.data, b.len);
    assert_string_equal(r.err.param, "logit_bias");
    arena_free(&r.arena);
    buf_clear(&b);
    buf_puts(&b, "{\"prompt\":\"a\",\"stop\":\"");
    for (int i = 0; i < 257; i++) buf_putc(&b, 'x');
    buf_puts(&b, "\"}");
    r = parse_bytes(COMPLETION_TEXT, b.data, b.len);
    assert_string_equal(r.err.param, "stop");
    arena_free(&r.arena);
    buf_free(&b);
}

/* The densest bodies fit the arena that is made for them. */
static void test_arena_is_enough(void **state)
{
    static const struct { enum completion_kind kind; const char *head, *item, *tail; } shapes[] = {
        {COMPLETION_TEXT, "{\"prompt\":[", "0", "]}"},
        {COMPLETION_TEXT, "{\"prompt\":\"", "xxxxxxxxx", "\"}"},
        {COMPLETION_CHAT, "{\"messages\":[", "{\"role\":\"user\",\"content\":\"\"}", "]}"},
        {COMPLETION_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":[",
         "{\"type\":\"text\",\"text\":\"\"}", "]}]}"}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        struct buf b;
        buf_init(&b, 4 << 20);
        buf_puts(&b, shapes[i].head);
        bool string = shapes[i].item[0] == 'x';
        for (int k = 0; k < 50000; k++)
            buf_printf(&b, "%s%s", k && !string ? "," : "", shapes[i].item);
        buf_puts(&b, shapes[i].tail);
        struct parsed r = parse_bytes(shapes[i].kind, b.data, b.len);
        if (!r.ok) fail_msg("%zu: %s", i, r.err.text);
        arena_free(&r.arena);
        buf_free(&b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scalars),
        cmocka_unit_test(test_values_arrive),
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_largest_seeds),
        cmocka_unit_test(test_structures),
        cmocka_unit_test(test_prompts_arrive),
        cmocka_unit_test(test_messages_arrive),
        cmocka_unit_test(test_chat_logprobs),
        cmocka_unit_test(test_unknown_names_get_a_hint),
        cmocka_unit_test(test_malformed),
        cmocka_unit_test(test_depth),
        cmocka_unit_test(test_counts_are_limited),
        cmocka_unit_test(test_arena_is_enough),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

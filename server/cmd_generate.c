/* `gptd generate`: text on the command line, from the same engine that serves. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/random.h>

#include "api/chat.h"
#include "api/json_out.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/utf8.h"
#include "server/command.h"
#include "server/model.h"
#include "server/process.h"
#include "server/signals.h"

enum { N_GENERATE_OPTIONS = 24, PROMPT_LIMIT = 64 << 20, MAX_STOP_IDS = 16, TEXT_LIMIT = 1 << 28 };
/* The engine's KV pool holds one full sequence for each four that may run: so each text has one. */
enum { SEQS_PER_TEXT = 4 };

struct generate_options {
    struct model_options model;
    const char *model_spec, *prompt, *prompt_file, *token_ids, *system;
    struct option_list stops;
    int64_t max_new_tokens, top_k, seed, n;
    double temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty;
    bool chat, ignore_eos, json, stats, verbose;
};

static void options_init(struct generate_options *o)
{
    *o = (struct generate_options){
        .max_new_tokens = 100, .temperature = 0.8, .top_k = 50, .top_p = 0.95, .seed = -1, .n = 1,
        .repetition_penalty = 1,
    };
    model_options_init(&o->model);
    o->model.max_queue = 1;
    o->model.max_seqs = SEQS_PER_TEXT;
}

/* Fills table[]; returns how many entries. */
static size_t options_table(struct generate_options *o, struct option *table)
{
    const struct option entries[] = {
        {"model", OPTION_STRING, &o->model_spec, 0, 0, "PATH",
         "A Hugging Face directory or a .gguf file."},
        {"prompt", OPTION_STRING, &o->prompt, 0, 0, "TEXT", "What to continue."},
        {"prompt-file", OPTION_STRING, &o->prompt_file, 0, 0, "FILE", "The same, from a file."},
        {"token-ids", OPTION_STRING, &o->token_ids, 0, 0, "1,2,3",
         "The same, as token ids."},
        {"chat", OPTION_FLAG, &o->chat, 0, 0, NULL,
         "The prompt is a user's message in the model's chat template."},
        {"system", OPTION_STRING, &o->system, 0, 0, "TEXT", "The system message; with --chat."},
        {"max-new-tokens", OPTION_INT, &o->max_new_tokens, 1, CONFIG_MAX_CONTEXT, "N",
         "The most tokens to generate."},
        {"temperature", OPTION_DOUBLE, &o->temperature, 0, 100, "T",
         "0: always the most probable token."},
        {"top-k", OPTION_INT, &o->top_k, 0, CONFIG_MAX_VOCAB, "N",
         "Draw from the N most probable tokens; 0: from all."},
        {"top-p", OPTION_DOUBLE, &o->top_p, 0, 1, "P",
         "Draw from the fewest tokens whose probabilities sum to P."},
        {"min-p", OPTION_DOUBLE, &o->min_p, 0, 1, "P",
         "Leave out tokens less probable than P times the most probable."},
        {"repetition-penalty", OPTION_DOUBLE, &o->repetition_penalty, 0, 100, "X",
         "Above 1: makes tokens of the prompt and the text less likely."},
        {"presence-penalty", OPTION_DOUBLE, &o->presence_penalty, -2, 2, "X",
         "Taken off the logits of tokens of the text, once."},
        {"frequency-penalty", OPTION_DOUBLE, &o->frequency_penalty, -2, 2, "X",
         "The same, for each time."},
        {"seed", OPTION_INT, &o->seed, -1, 9007199254740992.0, "N",
         "The same seed gives the same text; -1: a random one."},
        {"stop", OPTION_LIST, &o->stops, 0, 0, "TEXT", "End before this text; up to 16 times."},
        {"n", OPTION_INT, &o->n, 1, 64, "N", "How many texts."},
        {"ignore-eos", OPTION_FLAG, &o->ignore_eos, 0, 0, NULL,
         "Go on where the model would end."},
        {"json", OPTION_FLAG, &o->json, 0, 0, NULL,
         "Print one JSON object at the end, with token ids and log-probabilities."},
        {"stats", OPTION_FLAG, &o->stats, 0, 0, NULL, "Speed and memory on stderr."},
        {"verbose", OPTION_FLAG, &o->verbose, 0, 0, NULL, "What serve logs, on stderr."},
    };
    enum { N_ENTRIES = sizeof entries / sizeof *entries };
    _Static_assert((int)N_ENTRIES <= (int)N_GENERATE_OPTIONS, "the table's size");
    memcpy(table, entries, sizeof entries);
    model_options_table(&o->model, table + N_ENTRIES);
    return N_ENTRIES + N_MODEL_OPTIONS;
}

/* What single options cannot check on their own. */
static bool options_check(struct generate_options *o, struct error *err)
{
    if (!o->model_spec)
        return error_set(err, ERR_INVALID, "model", "say with which model: --model PATH");
    if (!!o->prompt + !!o->prompt_file + !!o->token_ids != 1)
        return error_set(err, ERR_INVALID, "prompt",
                         "give one of --prompt, --prompt-file and --token-ids");
    if (o->chat && o->token_ids)
        return error_set(err, ERR_INVALID, "chat", "--chat needs a text, not --token-ids");
    if (o->system && !o->chat)
        return error_set(err, ERR_INVALID, "system", "--system is part of a chat: add --chat");
    for (int i = 0; i < o->stops.n; i++)
        if (!o->stops.at[i][0] || strlen(o->stops.at[i]) > STOP_MAX_BYTES)
            return error_set(err, ERR_INVALID, "stop", "--stop must be 1 to %d bytes long",
                             STOP_MAX_BYTES);
    if (o->top_p <= 0 || o->repetition_penalty <= 0)
        return error_set(err, ERR_INVALID, o->top_p <= 0 ? "top-p" : "repetition-penalty",
                         "--top-p and --repetition-penalty must be above 0");
    if (o->model.max_seqs < SEQS_PER_TEXT * o->n) o->model.max_seqs = SEQS_PER_TEXT * o->n;
    return model_options_check(&o->model, err);
}

/* ---- The prompt ---- */

/* "1,2,3" or "[1, 2, 3]". */
static bool parse_ids(const char *text, struct token_ids *out, struct error *err)
{
    const char *s = text + strspn(text, " [");
    for (;;) {
        char *end;
        long id = strtol(s, &end, 10);
        if (end == s || id < 0 || id > INT32_MAX)
            return error_set(err, ERR_INVALID, "token-ids",
                             "--token-ids %.100s: must be ids separated by commas", text);
        if (!token_ids_push(out, (int32_t)id))
            return error_set(err, ERR_MEMORY, NULL, "no memory for the prompt");
        s = end + strspn(end, " ]");
        if (!*s) return true;
        s += *s == ',';
    }
}

static bool encode_chat(const struct generate_options *o, const struct tokenizer *t,
                        const char *text, size_t n, size_t max_ids, struct token_ids *out,
                        struct error *err)
{
    struct chat_template chat;
    struct chat_message messages[2];
    size_t n_messages = 0;
    chat_template_init(&chat, tokenizer_chat_template(t));
    if (o->system)
        messages[n_messages++] =
            (struct chat_message){"system", o->system, strlen(o->system), false};
    messages[n_messages++] = (struct chat_message){"user", text, n, false};
    return chat_encode(&chat, t, messages, n_messages, max_ids, out, err);
}

static bool encode_prompt(const struct generate_options *o, const struct model *m,
                          struct token_ids *out, struct error *err)
{
    if (o->token_ids) return parse_ids(o->token_ids, out, err);
    if (!m->tokenizer)
        return error_set(err, ERR_UNSUPPORTED, NULL,
                         "%s has no tokenizer; give the prompt as --token-ids", m->path);
    struct buf file;
    buf_init(&file, PROMPT_LIMIT);
    if (o->prompt_file && !file_read(o->prompt_file, &file, err)) return false;
    const char *text = o->prompt ? o->prompt : file.data ? file.data : "";
    size_t n = o->prompt ? strlen(o->prompt) : file.len;
    size_t max_ids = (size_t)engine_max_context(m->engine);
    bool ok = o->chat ? encode_chat(o, m->tokenizer, text, n, max_ids, out, err)
                      : tokenizer_encode(m->tokenizer, text, n, ENCODE_ADD_BOS, max_ids, out, err);
    buf_free(&file);
    if (ok && out->n == 0) return error_set(err, ERR_INVALID, "prompt", "the prompt is empty");
    return ok;
}

/* ---- Text as it comes ---- */

/* One choice's text: decoded, cut at stop strings, whole characters only. */
struct text_reader {
    struct token_decoder decoder;
    struct stop_matcher matcher;
    struct buf text;     /* all decoded bytes */
    int32_t n_read;      /* tokens taken in */
    size_t n_shown;      /* bytes of text printed */
};

/* Takes in what the choice has published; returns how many bytes of text may be shown by now. */
static size_t text_reader_read(struct text_reader *t, const struct tokenizer *tokenizer,
                               const struct stop_list *stops, const struct engine_choice *c)
{
    int32_t finish = atomic_load_explicit(&c->finish, memory_order_acquire);
    int32_t n = atomic_load_explicit(&c->n_tokens, memory_order_acquire);
    for (; t->n_read < n; t->n_read++) {
        const struct engine_token *token = &c->tokens[t->n_read];
        if (token->is_stop) continue;
        size_t len;
        const char *bytes = token_decode(tokenizer, &t->decoder, token->id, &len);
        buf_append(&t->text, bytes, len);
        stop_push(stops, &t->matcher, bytes, len);
    }
    if (finish == FINISH_NONE) return utf8_complete(t->text.data ? t->text.data : "",
                                                    (size_t)t->matcher.safe);
    return c->text_bytes >= 0 ? (size_t)c->text_bytes : t->text.len;
}

/* Invalid bytes (a character that was never finished) become U+FFFD. */
static void print_text(const char *s, size_t n)
{
    uint32_t cp;
    for (size_t i = 0, len; i < n; i += len) {
        int valid = utf8_decode(s + i, n - i, &cp);
        len = valid > 0 ? (size_t)valid : json_out_bad_utf8(s + i, n - i);
        if (valid > 0) fwrite(s + i, 1, len, stdout);
        else fputs(UTF8_REPLACEMENT, stdout);
    }
}

static void text_reader_print(struct text_reader *t, size_t end)
{
    if (end <= t->n_shown) return;
    print_text(t->text.data + t->n_shown, end - t->n_shown);
    fflush(stdout);
    t->n_shown = end;
}

static void print_ids(const struct engine_choice *c, int32_t *n_shown)
{
    int32_t n = atomic_load_explicit(&c->n_tokens, memory_order_acquire);
    for (; *n_shown < n; (*n_shown)++)
        printf("%s%d", *n_shown ? "," : "", c->tokens[*n_shown].id);
    fflush(stdout);
}

/* ---- One generation ---- */

struct generation {
    const struct generate_options *options;
    const struct model *model;
    struct token_ids prompt;
    int32_t stop_ids[MAX_STOP_IDS];
    struct engine_request *request;
    /* Guarded by mutex: the engine and the signal thread wake the main thread. */
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    bool news, interrupted;
};

static void on_news(void *ctx)
{
    struct generation *g = ctx;
    pthread_mutex_lock(&g->mutex);
    g->news = true;
    pthread_cond_signal(&g->cond);
    pthread_mutex_unlock(&g->mutex);
}

/* The first Ctrl-C ends the text; the second one, or one while the model loads, the process. */
static void on_signal(void *ctx, int number, int count)
{
    struct generation *g = ctx;
    pthread_mutex_lock(&g->mutex);
    if (count > 1 || !g->request) _Exit(128 + number);
    g->interrupted = g->news = true;
    pthread_cond_signal(&g->cond);
    pthread_mutex_unlock(&g->mutex);
}

static uint64_t random_seed(void)
{
    uint64_t seed;
    return getrandom(&seed, sizeof seed, 0) == sizeof seed ? seed >> 11 : (uint64_t)clock_ns();
}

static bool submit(struct generation *g, struct error *err)
{
    const struct generate_options *o = g->options;
    struct engine *e = g->model->engine;
    struct engine_params p = {
        .prompt = g->prompt.ids,
        .n_prompt = (int32_t)g->prompt.n,
        .n = (int32_t)o->n,
        .ignore_eos = o->ignore_eos,
        .stop_ids = g->stop_ids,
        .notify = on_news,
        .ctx = g,
    };
    sample_params_init(&p.sampling);
    p.sampling.temperature = (float)o->temperature;
    p.sampling.top_k = (int32_t)o->top_k;
    p.sampling.top_p = (float)o->top_p;
    p.sampling.min_p = (float)o->min_p;
    p.sampling.repetition_penalty = (float)o->repetition_penalty;
    p.sampling.presence_penalty = (float)o->presence_penalty;
    p.sampling.frequency_penalty = (float)o->frequency_penalty;
    p.sampling.seed = o->seed < 0 ? random_seed() : (uint64_t)o->seed;
    /* A text may end where the context does. */
    int64_t room = engine_max_context(e) - (int64_t)g->prompt.n;
    p.max_tokens = (int32_t)(o->max_new_tokens < room || room < 1 ? o->max_new_tokens : room);
    if (g->model->tokenizer)
        p.n_stop_ids = tokenizer_stop_ids(g->model->tokenizer, g->stop_ids, MAX_STOP_IDS);
    for (int i = 0; i < o->stops.n; i++, p.stops.n++) {
        p.stops.at[i].bytes = o->stops.at[i];
        p.stops.at[i].n = strlen(o->stops.at[i]);
    }
    struct engine_request *r;
    if (!engine_request_new(e, &p, &r, err)) return false;
    pthread_mutex_lock(&g->mutex);
    g->request = r;
    pthread_mutex_unlock(&g->mutex);
    return engine_submit(e, r, err);
}

static bool is_done(const struct engine_request *r)
{
    return atomic_load_explicit(&r->state, memory_order_acquire) == REQUEST_DONE;
}

/* Blocks until the engine or the user did something. */
static void wait_for_news(struct generation *g)
{
    pthread_mutex_lock(&g->mutex);
    while (!g->news) pthread_cond_wait(&g->cond, &g->mutex);
    g->news = false;
    bool interrupted = g->interrupted;
    pthread_mutex_unlock(&g->mutex);
    if (interrupted) engine_cancel(g->model->engine, g->request);
}

/* The first choice as it comes, the others after it. */
static void print_choices(struct generation *g, struct text_reader *readers)
{
    struct engine_request *r = g->request;
    const struct tokenizer *t = g->model->tokenizer;
    bool quiet = g->options->json;
    for (int32_t i = 0; i < r->params.n; i++) {
        const struct engine_choice *c = &r->choices[i];
        int32_t n_ids = 0;
        if (i > 0 && !quiet) printf("----\n");
        for (bool done = false; !done;) {
            done = is_done(r);
            size_t end = t ? text_reader_read(&readers[i], t, &r->params.stops, c) : 0;
            if (t && !quiet) text_reader_print(&readers[i], end);
            if (!t && !quiet) print_ids(c, &n_ids);
            readers[i].n_shown = end;
            if (ferror(stdout)) engine_cancel(g->model->engine, r); /* nobody reads any more */
            if (!done) wait_for_news(g);
        }
        if (!quiet) printf("\n");
    }
}

/* ---- Results ---- */

static void json_choice(struct buf *out, const struct generation *g, const struct engine_choice *c,
                        const struct text_reader *t)
{
    buf_puts(out, "{\"text\":");
    if (g->model->tokenizer) json_out_string(out, t->text.data ? t->text.data : "", t->n_shown);
    else buf_puts(out, "null");
    buf_puts(out, ",\"tokens\":[");
    for (int32_t i = 0; i < c->n_tokens; i++)
        buf_printf(out, "%s%d", i ? "," : "", c->tokens[i].id);
    buf_puts(out, "],\"logprobs\":[");
    for (int32_t i = 0; i < c->n_tokens; i++) {
        if (i) buf_putc(out, ',');
        json_out_logprob(out, c->tokens[i].logprob);
    }
    buf_puts(out, "],\"finish_reason\":");
    json_out_text(out, finish_reason_name((enum finish_reason)c->finish));
    buf_putc(out, '}');
}

static bool print_json(const struct generation *g, const struct text_reader *readers,
                       struct error *err)
{
    struct buf out;
    buf_init(&out, TEXT_LIMIT);
    buf_puts(&out, "{\"model\":");
    json_out_text(&out, g->model->id);
    buf_printf(&out, ",\"seed\":%llu,\"prompt_tokens\":[",
               (unsigned long long)g->request->params.sampling.seed);
    for (size_t i = 0; i < g->prompt.n; i++)
        buf_printf(&out, "%s%d", i ? "," : "", g->prompt.ids[i]);
    buf_puts(&out, "],\"choices\":[");
    for (int32_t i = 0; i < g->request->params.n; i++) {
        if (i) buf_putc(&out, ',');
        json_choice(&out, g, &g->request->choices[i], &readers[i]);
    }
    buf_puts(&out, "]}\n");
    bool ok = buf_check(&out, "the result", err);
    if (ok) fwrite(out.data, 1, out.len, stdout);
    buf_free(&out);
    return ok;
}

static void print_stats(const struct generation *g)
{
    const struct engine_request *r = g->request;
    int64_t n = 0;
    for (int32_t i = 0; i < r->params.n; i++) n += r->choices[i].n_tokens;
    double prefill_s = (double)(r->first_token_ns - r->submitted_ns) / 1e9;
    double decode_s = (double)(r->done_ns - r->first_token_ns) / 1e9;
    struct engine_stats stats;
    int64_t rss = 0, peak = 0;
    engine_stats(g->model->engine, &stats);
    (void)process_memory_of(getpid(), &rss, &peak);
    if (r->first_token_ns > 0)
        fprintf(stderr, "prompt: %zu tokens, first token after %.3f s (%.1f tokens/s)\n",
                g->prompt.n, prefill_s, (double)g->prompt.n / prefill_s);
    if (n > r->params.n && decode_s > 0)
        fprintf(stderr, "text: %lld tokens, %.1f tokens/s\n", (long long)n,
                (double)(n - r->params.n) / decode_s);
    fprintf(stderr, "memory: %.1f MiB planned, %.1f MiB allocated, %.1f MiB resident at most\n",
            (double)stats.memory.planned_bytes / (1 << 20),
            (double)stats.memory.allocated_bytes / (1 << 20),
            (double)peak / (1 << 20));
}

static bool generate(struct generation *g, struct error *err)
{
    if (!encode_prompt(g->options, g->model, &g->prompt, err) || !submit(g, err)) return false;
    int32_t n = g->request->params.n;
    struct text_reader *readers = calloc((size_t)n, sizeof *readers);
    if (!readers) {
        engine_cancel(g->model->engine, g->request);
        engine_wait(g->model->engine, g->request);
        return error_set(err, ERR_MEMORY, NULL, "no memory for %d texts", n);
    }
    for (int32_t i = 0; i < n; i++) buf_init(&readers[i].text, TEXT_LIMIT);
    print_choices(g, readers);
    bool ok = g->request->error.code == ERR_NONE;
    if (!ok) *err = g->request->error;
    if (ok && g->options->json) ok = print_json(g, readers, err);
    if (ok && (fflush(stdout) != 0 || ferror(stdout)))
        ok = error_set(err, ERR_IO, NULL, "cannot write to stdout");
    if (ok && g->options->stats) print_stats(g);
    for (int32_t i = 0; i < n; i++) buf_free(&readers[i].text);
    free(readers);
    return ok;
}

static int run(const struct generate_options *o)
{
    struct error err;
    struct model m = {0};
    struct signals *signals = NULL;
    struct generation g = {.options = o, .model = &m};
    pthread_mutex_init(&g.mutex, NULL);
    pthread_cond_init(&g.cond, NULL);
    int code = EXIT_DONE;
    if (!signals_start(HANGUP_DEFAULT, on_signal, &g, &signals, &err)
        || !model_open(o->model_spec, &o->model, &m, &err) || !generate(&g, &err))
        code = command_fail("generate", &err);
    signals_stop(signals);
    engine_request_free(g.request);
    token_ids_free(&g.prompt);
    model_close(&m);
    pthread_cond_destroy(&g.cond);
    pthread_mutex_destroy(&g.mutex);
    return code;
}

int cmd_generate(int argc, char **argv)
{
    struct generate_options o;
    struct option table[N_GENERATE_OPTIONS + N_MODEL_OPTIONS];
    options_init(&o);
    size_t n = options_table(&o, table);
    bool help;
    struct error err;
    if (!options_parse(table, n, argc, argv, 2, NULL, 0, NULL, &help, &err))
        return command_usage("generate", &err);
    if (help) {
        options_print_help(stdout, "gptd generate --model PATH --prompt TEXT [OPTIONS]",
                           "Prints how the model continues a prompt.", table, n);
        return EXIT_DONE;
    }
    if (!options_check(&o, &err)) return command_usage("generate", &err);
    log_set_level(o.verbose ? LOG_INFO : LOG_WARN);
    return run(&o);
}

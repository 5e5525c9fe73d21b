/* JSON lines: each line that is not blank is an object with one document's text. Three shapes,
 * told apart by their keys. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "model/dataset_internal.h"

enum {
    MAX_DEPTH = 16, /* of what other keys may hold */
    MAX_LINE = 256 << 20,
    MAX_MESSAGES = 1 << 16,
};

struct line {
    const char *text;
    size_t n, number; /* from 1 */
    char where[300];  /* "data.jsonl: line 3" */
};

/* The next line that is not blank, without its line break. */
static bool next_line(const struct dataset_file *f, size_t *at, struct line *line)
{
    while (*at < f->n) {
        const char *begin = f->text + *at, *end = memchr(begin, '\n', f->n - *at);
        size_t n = end ? (size_t)(end - begin) : f->n - *at;
        *at += n + (end != NULL);
        line->number++;
        while (n > 0 && (begin[n - 1] == '\r' || begin[n - 1] == ' ' || begin[n - 1] == '\t')) n--;
        line->text = begin;
        line->n = n;
        if (n > 0) return true;
    }
    return false;
}

int64_t dataset_jsonl_count(const struct dataset_file *f)
{
    struct line line = {0};
    size_t at = 0;
    int64_t count = 0;
    while (next_line(f, &at, &line)) count++;
    return count;
}

static bool wrong(const struct line *line, struct error *err, const char *what)
{
    return error_set(err, ERR_FORMAT, NULL, "%s: %s", line->where, what);
}

/* A member that must be a string. */
static bool get_text(const struct line *line, const struct cJSON *object, const char *key,
                     const char **out, struct error *err)
{
    const struct cJSON *item = json_get(object, key);
    if (cJSON_IsString(item)) {
        *out = item->valuestring;
        return true;
    }
    return error_set(err, ERR_FORMAT, NULL, "%s: \"%s\" is %s; it must be a string", line->where,
                     key, item ? json_type_name(item) : "missing");
}

static bool take_text(struct dataset_reader *r, const struct line *line, const char *text,
                      bool learn, struct error *err)
{
    return dataset_document_text(r, line->where, text, strlen(text), learn, err);
}

static bool read_text(struct dataset_reader *r, const struct line *line, const struct cJSON *object,
                      struct error *err)
{
    const char *text;
    return get_text(line, object, "text", &text, err) && dataset_document_begin(r, true, err) &&
           take_text(r, line, text, true, err) && dataset_document_end(r, err);
}

static bool read_completion(struct dataset_reader *r, const struct line *line,
                            const struct cJSON *object, struct error *err)
{
    const char *prompt, *completion;
    if (!get_text(line, object, "prompt", &prompt, err) ||
        !get_text(line, object, "completion", &completion, err))
        return false;
    if (!completion[0]) return wrong(line, err, "\"completion\" is empty: nothing to learn");
    if (!dataset_document_begin(r, true, err)) return false;
    for (size_t i = 0; i < r->ids.n; i++) buf_putc(&r->loss, 0); /* BOS */
    r->has_loss = true;
    return take_text(r, line, prompt, false, err) && take_text(r, line, completion, true, err) &&
           dataset_document_end(r, err);
}

static bool is_asker(const char *role)
{
    return strcmp(role, "user") == 0 || strcmp(role, "system") == 0 ||
           strcmp(role, "developer") == 0;
}

/* "weight", as OpenAI's files have it: 1, or 0 for a message that is there as context alone. */
static bool get_weight(const struct line *line, const struct cJSON *message, bool *unlearned,
                       struct error *err)
{
    const struct cJSON *weight = json_get(message, "weight");
    *unlearned = cJSON_IsNumber(weight) && weight->valuedouble == 0;
    if (!weight || *unlearned || (cJSON_IsNumber(weight) && weight->valuedouble == 1)) return true;
    return wrong(line, err, "\"weight\" must be 0 or 1");
}

static bool take_messages(const struct line *line, const struct cJSON *list,
                          struct dataset_message *messages, struct error *err)
{
    const struct cJSON *each;
    bool speaks = false;
    int i = 0;
    cJSON_ArrayForEach(each, list) {
        struct dataset_message *m = &messages[i++];
        if (!get_text(line, each, "role", &m->role, err) ||
            !get_text(line, each, "content", &m->content, err) ||
            !get_weight(line, each, &m->unlearned, err))
            return false;
        m->n_content = strlen(m->content);
        bool assistant = strcmp(m->role, "assistant") == 0;
        speaks |= assistant && !m->unlearned;
        if (!assistant && !is_asker(m->role))
            return error_set(err, ERR_FORMAT, NULL,
                             "%s: the role \"%.40s\" is not system, developer, user or "
                             "assistant", line->where, m->role);
    }
    return speaks || wrong(line, err,
                           "no message is an assistant's, of a weight other than 0: nothing to "
                           "learn");
}

static bool encode_messages(struct dataset_reader *r, const struct line *line,
                            const struct dataset_message *messages, size_t n, struct error *err)
{
    struct error why;
    if (r->visit) {
        for (size_t i = 0; i < n; i++)
            if (!take_text(r, line, messages[i].content, true, err)) return false;
        return true;
    }
    if (!r->o->chat) return wrong(line, err, "\"messages\" need a model with a chat template");
    r->ids.n = 0; /* the template has BOS and the ends of turns */
    buf_clear(&r->loss);
    r->has_loss = true;
    if (!r->o->chat->encode(r->o->chat->ctx, messages, n, &r->ids, &r->loss, &why))
        return error_set(err, why.code, NULL, "%s: %s", line->where, why.text);
    for (size_t i = 0; i < n; i++) r->text_bytes += (int64_t)messages[i].n_content;
    return true;
}

static bool read_messages(struct dataset_reader *r, const struct line *line,
                          const struct cJSON *object, struct error *err)
{
    const struct cJSON *list = json_get(object, "messages");
    int n = cJSON_IsArray(list) ? cJSON_GetArraySize(list) : 0;
    if (n < 1 || n > MAX_MESSAGES)
        return wrong(line, err, "\"messages\" must be an array of messages, and not empty");
    struct dataset_message *messages = calloc((size_t)n, sizeof *messages);
    if (!messages) return error_set(err, ERR_MEMORY, NULL, "no memory for %d messages", n);
    bool ok = take_messages(line, list, messages, err) &&
              encode_messages(r, line, messages, (size_t)n, err);
    free(messages);
    return ok;
}

static bool read_object(struct dataset_reader *r, const struct line *line,
                        const struct cJSON *object, struct error *err)
{
    if (!cJSON_IsObject(object))
        return error_set(err, ERR_FORMAT, NULL, "%s is %s; each line must be one JSON object",
                         line->where, json_type_name(object));
    bool text = json_get(object, "text") != NULL, messages = json_get(object, "messages") != NULL;
    bool completion = json_get(object, "prompt") || json_get(object, "completion");
    if (text + messages + completion != 1)
        return wrong(line, err, "must have either \"text\", or \"prompt\" and \"completion\", or "
                     "\"messages\"");
    if (text) return read_text(r, line, object, err);
    if (messages) return read_messages(r, line, object, err);
    return read_completion(r, line, object, err);
}

static bool read_line(struct dataset_reader *r, const struct line *line, struct error *err)
{
    if (line->n > MAX_LINE)
        return error_set(err, ERR_TOO_LARGE, NULL, "%s is over %d bytes", line->where, MAX_LINE);
    struct error why;
    struct cJSON *root = json_parse(line->text, line->n, MAX_DEPTH, line->where, &why);
    if (!root)
        return error_set(err, why.code, NULL, "%s; each line must be one JSON object", why.text);
    bool ok = read_object(r, line, root, err);
    cJSON_Delete(root);
    return ok && dataset_document_finish(r, line->where, err);
}

bool dataset_jsonl_read(struct dataset_reader *r, const struct dataset_file *f, struct error *err)
{
    struct line line = {0};
    size_t at = 0;
    while (next_line(f, &at, &line)) {
        snprintf(line.where, sizeof line.where, "%.200s: line %zu", f->path, line.number);
        if (!read_line(r, &line, err)) return false;
    }
    return true;
}

/* GET /openapi.json: OpenAPI 3.1. Bodies are described from the very tables that validate them;
 * replies, which have no table, are written down here. */
#include <string.h>

#include "api/api.h"
#include "api/fine_tuning.h"
#include "api/memory_plan.h"
#include "api/request.h"
#include "api/tokenize.h"

/* ---- schemas of replies ---------------------------------------------------------------------- */

#define REF(name) "{\"$ref\":\"#/components/schemas/" name "\"}"
#define OBJECT(required, properties) \
    "{\"type\":\"object\",\"required\":[" required "],\"properties\":{" properties "}}"
#define ARRAY(items) "{\"type\":\"array\",\"items\":" items "}"
#define INTEGER "{\"type\":\"integer\"}"
#define NUMBER "{\"type\":\"number\"}"
#define STRING "{\"type\":\"string\"}"
#define STRING_OR_NULL "{\"type\":[\"string\",\"null\"]}"
#define FINISH "{\"enum\":[\"stop\",\"length\"]}"
#define FINISH_OR_NULL "{\"enum\":[\"stop\",\"length\",null]}"
#define OR_NULL(schema) "{\"anyOf\":[" schema ",{\"type\":\"null\"}]}"
#define INTEGER_OR_NULL "{\"type\":[\"integer\",\"null\"]}"
#define PAGE(name) \
    OBJECT("\"object\",\"data\",\"has_more\"", \
           "\"object\":{\"const\":\"list\"},\"data\":" ARRAY(REF(name)) \
           ",\"has_more\":{\"type\":\"boolean\"}")
#define REPLY_HEAD(object) \
    "\"id\":" STRING ",\"object\":{\"const\":\"" object "\"},\"created\":" INTEGER \
    ",\"model\":" STRING ",\"system_fingerprint\":{\"type\":\"string\",\"description\":" \
    "\"Changes with the weights.\"}"
#define REPLY_REQUIRED "\"id\",\"object\",\"created\",\"model\",\"system_fingerprint\",\"choices\""

static const struct { const char *name, *schema; } schemas[] = {
    {"Error", OBJECT("\"error\"", "\"error\":" OBJECT("\"message\",\"type\",\"param\",\"code\"",
        "\"message\":" STRING ",\"type\":" STRING ",\"param\":" STRING_OR_NULL
        ",\"code\":" STRING))},
    {"ChatMessage",
     "{\"type\":\"object\",\"required\":[\"role\",\"content\"],\"description\":\"Keys that "
     "OpenAI's clients send back as null (name, refusal, tool_calls, ...) are accepted as null.\","
     "\"properties\":{\"role\":{\"enum\":[\"system\",\"developer\",\"user\",\"assistant\"],"
     "\"description\":\"developer is another name of system.\"},"
     "\"content\":{\"anyOf\":[" STRING ",{\"type\":\"array\",\"minItems\":1,\"items\":"
     "{\"type\":\"object\",\"additionalProperties\":false,\"required\":[\"type\",\"text\"],"
     "\"properties\":{\"type\":{\"const\":\"text\"},\"text\":" STRING "}}}],\"description\":"
     "\"Parts are joined by newlines.\"}}}"},
    {"Usage", OBJECT("\"prompt_tokens\",\"completion_tokens\",\"total_tokens\"",
        "\"prompt_tokens\":" INTEGER ",\"completion_tokens\":{\"type\":\"integer\",\"description\":"
        "\"Of all choices, best_of's too; a token that ends a reply counts.\"},"
        "\"total_tokens\":" INTEGER
        ",\"prompt_tokens_details\":" OBJECT("\"cached_tokens\"", "\"cached_tokens\":" INTEGER))},
    {"CompletionLogprobs", OBJECT("\"tokens\",\"token_logprobs\",\"top_logprobs\",\"text_offset\"",
        "\"tokens\":{\"type\":\"array\",\"items\":" STRING ",\"description\":\"A token that is "
        "part of a character reads bytes:\\\\xe2\\\\x80; without a tokenizer, token_id:N.\"}"
        ",\"token_logprobs\":{\"type\":\"array\",\"items\":{\"type\":[\"number\",\"null\"]},"
        "\"description\":\"Under the model itself, before temperature and penalties. Null for an "
        "echoed prompt's first token; -9999 for minus infinity.\"}"
        ",\"top_logprobs\":{\"type\":[\"array\",\"null\"],\"description\":\"Null with logprobs "
        "0.\",\"items\":{\"type\":[\"object\",\"null\"],\"additionalProperties\":" NUMBER "}}"
        ",\"text_offset\":{\"type\":\"array\",\"items\":" INTEGER ",\"description\":"
        "\"In Unicode code points.\"}")},
    {"TokenLogprob", OBJECT("\"token\",\"logprob\",\"bytes\"",
        "\"token\":" STRING ",\"logprob\":" NUMBER
        ",\"bytes\":{\"type\":[\"array\",\"null\"],\"items\":" INTEGER "}")},
    {"ChatLogprobs", OBJECT("\"content\"",
        "\"content\":" ARRAY("{\"allOf\":[" REF("TokenLogprob") ","
            OBJECT("\"top_logprobs\"", "\"top_logprobs\":" ARRAY(REF("TokenLogprob"))) "]}")
        ",\"refusal\":{\"type\":\"null\"}")},
    {"Completion", OBJECT(REPLY_REQUIRED ",\"usage\"", REPLY_HEAD("text_completion")
        ",\"choices\":" ARRAY(OBJECT("\"index\",\"text\",\"logprobs\",\"finish_reason\"",
            "\"index\":{\"type\":\"integer\",\"description\":\"Choice j of prompt i is i * n + "
            "j.\"}"
            ",\"text\":{\"type\":\"string\",\"description\":\"Bytes that are not UTF-8 become "
            "U+FFFD; empty without a tokenizer.\"},\"logprobs\":" OR_NULL(REF("CompletionLogprobs"))
            ",\"finish_reason\":" FINISH)) ",\"usage\":" REF("Usage"))},
    {"CompletionChunk", OBJECT(REPLY_REQUIRED, REPLY_HEAD("text_completion")
        ",\"choices\":" ARRAY(OBJECT("\"index\",\"text\",\"logprobs\",\"finish_reason\"",
            "\"index\":" INTEGER ",\"text\":" STRING ",\"logprobs\":"
            OR_NULL(REF("CompletionLogprobs")) ",\"finish_reason\":" FINISH_OR_NULL))
        ",\"usage\":" OR_NULL(REF("Usage")))},
    {"ChatCompletion", OBJECT(REPLY_REQUIRED ",\"usage\"", REPLY_HEAD("chat.completion")
        ",\"choices\":" ARRAY(OBJECT("\"index\",\"message\",\"logprobs\",\"finish_reason\"",
            "\"index\":" INTEGER ",\"message\":" OBJECT("\"role\",\"content\"",
                "\"role\":{\"const\":\"assistant\"},\"content\":" STRING
                ",\"refusal\":{\"type\":\"null\"}")
            ",\"logprobs\":" OR_NULL(REF("ChatLogprobs")) ",\"finish_reason\":" FINISH))
        ",\"usage\":" REF("Usage"))},
    {"ChatCompletionChunk", OBJECT(REPLY_REQUIRED, REPLY_HEAD("chat.completion.chunk")
        ",\"choices\":" ARRAY(OBJECT("\"index\",\"delta\",\"logprobs\",\"finish_reason\"",
            "\"index\":" INTEGER ",\"delta\":{\"type\":\"object\",\"properties\":{\"role\":"
            "{\"const\":\"assistant\"},\"content\":" STRING "}},\"logprobs\":"
            OR_NULL(REF("ChatLogprobs")) ",\"finish_reason\":" FINISH_OR_NULL))
        ",\"usage\":" OR_NULL(REF("Usage")))},
    {"Model", OBJECT("\"id\",\"object\",\"created\",\"owned_by\"",
        "\"id\":" STRING ",\"object\":{\"const\":\"model\"},\"created\":" INTEGER
        ",\"owned_by\":" STRING ",\"loaded\":{\"type\":\"boolean\",\"description\":\"False: a "
        "fine-tuned model that POST /v1/models/load would load.\"},\"root\":" STRING_OR_NULL
        ",\"system_fingerprint\":" STRING
        ",\"architecture\":" STRING ",\"parameters\":" INTEGER ",\"vocab_size\":" INTEGER
        ",\"max_model_len\":{\"type\":\"integer\",\"description\":\"The context in tokens.\"}"
        ",\"has_tokenizer\":{\"type\":\"boolean\",\"description\":\"False: prompts must be token "
        "ids.\"}")},
    {"ModelList", OBJECT("\"object\",\"data\"",
        "\"object\":{\"const\":\"list\"},\"data\":" ARRAY(REF("Model")))},
    {"File", OBJECT("\"id\",\"object\",\"bytes\",\"created_at\",\"filename\",\"purpose\"",
        "\"id\":" STRING ",\"object\":{\"const\":\"file\"},\"bytes\":" INTEGER
        ",\"created_at\":" INTEGER ",\"filename\":" STRING ",\"purpose\":" STRING
        ",\"status\":" STRING)},
    {"FileList", PAGE("File")},
    {"Deleted", OBJECT("\"id\",\"object\",\"deleted\"",
        "\"id\":" STRING ",\"object\":" STRING ",\"deleted\":{\"const\":true}")},
    {"FineTuningJob", OBJECT("\"id\",\"object\",\"created_at\",\"status\",\"model\","
        "\"fine_tuned_model\",\"training_file\",\"hyperparameters\",\"seed\",\"error\"",
        "\"id\":" STRING ",\"object\":{\"const\":\"fine_tuning.job\"},\"created_at\":" INTEGER
        ",\"started_at\":" INTEGER_OR_NULL ",\"finished_at\":" INTEGER_OR_NULL
        ",\"status\":{\"enum\":[\"validating_files\",\"queued\",\"running\",\"paused\","
        "\"succeeded\",\"failed\",\"cancelled\"]},\"model\":" STRING
        ",\"fine_tuned_model\":" STRING_OR_NULL ",\"suffix\":" STRING_OR_NULL
        ",\"training_file\":" STRING ",\"validation_file\":" STRING_OR_NULL ",\"seed\":" INTEGER
        ",\"hyperparameters\":{\"type\":\"object\"},\"method\":{\"type\":\"object\"}"
        ",\"training\":{\"type\":\"object\",\"description\":\"Training keys as given.\"}"
        ",\"step\":{\"type\":\"integer\",\"description\":\"Steps done.\"}"
        ",\"trained_tokens\":" INTEGER_OR_NULL
        ",\"estimated_finish\":{\"type\":[\"integer\",\"null\"],\"description\":"
        "\"Unix seconds, at the pace so far; null while the job does not run, or no pace is "
        "known.\"}"
        ",\"queued_reason\":{\"type\":[\"string\",\"null\"],\"description\":\"Why a queued job "
        "does not start: what it needs and what there is.\"}"
        ",\"error\":" OR_NULL(
            OBJECT("\"code\",\"message\"", "\"code\":" STRING ",\"message\":" STRING))
        ",\"metadata\":{\"type\":[\"object\",\"null\"]}")},
    {"FineTuningJobList", PAGE("FineTuningJob")},
    {"FineTuningEvent", OBJECT("\"id\",\"object\",\"created_at\",\"level\",\"type\","
        "\"message\"",
        "\"id\":" STRING ",\"object\":{\"const\":\"fine_tuning.job.event\"},\"created_at\":"
        INTEGER ",\"level\":{\"enum\":[\"info\",\"warn\",\"error\"]},\"type\":{\"enum\":["
        "\"message\",\"metrics\"]},\"message\":" STRING
        ",\"data\":{\"type\":[\"object\",\"null\"]}")},
    {"FineTuningEventList", PAGE("FineTuningEvent")},
    {"FineTuningCheckpoint", OBJECT("\"id\",\"object\",\"created_at\",\"step_number\"",
        "\"id\":" STRING ",\"object\":{\"const\":\"fine_tuning.job.checkpoint\"},"
        "\"created_at\":" INTEGER ",\"fine_tuning_job_id\":" STRING
        ",\"fine_tuned_model_checkpoint\":{\"type\":\"string\",\"description\":\"Its name as "
        "a model: to load, or to begin another job with.\"},\"root\":{\"type\":\"string\","
        "\"description\":\"Its folder on the server.\"},\"step_number\":" INTEGER
        ",\"metrics\":{\"type\":\"object\"}")},
    {"FineTuningCheckpointList", PAGE("FineTuningCheckpoint")},
    {"Tokens", OBJECT("\"tokens\",\"count\"",
        "\"tokens\":{\"type\":\"array\",\"items\":" INTEGER ",\"description\":\"As a completion "
        "of the text would begin: with BOS where the model wants it.\"},\"count\":" INTEGER)},
    {"Text", OBJECT("\"prompt\"", "\"prompt\":" STRING)},
    {"MemoryBytes", OBJECT("\"planned_bytes\",\"allocated_bytes\",\"in_use_bytes\",\"peak_bytes\"",
        "\"planned_bytes\":" INTEGER ",\"allocated_bytes\":" INTEGER ",\"in_use_bytes\":" INTEGER
        ",\"peak_bytes\":" INTEGER)},
    {"MemoryComponents", "{\"type\":\"object\",\"description\":\"weights, master, gradients, "
        "optimizer, activations, logits, kv_cache, workspace, staging, data, host\","
        "\"additionalProperties\":" INTEGER "}"},
    {"MemoryJob", OBJECT("\"id\",\"reported\",\"planned_bytes\",\"components\",\"rss_bytes\","
            "\"peak_rss_bytes\",\"baseline_bytes\",\"unexplained_bytes\"",
        "\"id\":" STRING ",\"reported\":{\"type\":\"boolean\",\"description\":\"The plan is the "
        "trainer's own word, not yet only the server's.\"},\"planned_bytes\":" INTEGER
        ",\"components\":" REF("MemoryComponents") ",\"rss_bytes\":" INTEGER
        ",\"peak_rss_bytes\":" INTEGER ",\"baseline_bytes\":" INTEGER
        ",\"unexplained_bytes\":{\"type\":\"integer\",\"description\":\"rss - baseline - "
        "planned; negative before the trainer has taken its memory.\"}")},
    {"MemoryPlanPart", OBJECT("\"components\",\"total_bytes\",\"options\"",
        "\"components\":" REF("MemoryComponents") ",\"total_bytes\":" INTEGER
        ",\"device_bytes\":" INTEGER ",\"host_bytes\":" INTEGER
        ",\"options\":{\"type\":\"object\"},\"fits\":{\"type\":\"boolean\"}"
        ",\"shortfall_bytes\":" INTEGER ",\"largest\":{\"type\":[\"object\",\"null\"],"
        "\"description\":\"The most that the budget holds; null without one.\"}"
        ",\"estimated_step_seconds\":{\"type\":\"number\"}"
        ",\"estimated_tokens_per_s\":{\"type\":\"number\"},\"estimate_source\":" STRING
        ",\"slowdown\":{\"type\":\"number\",\"description\":\"Time, of training's above.\"}")},
    {"MemoryPlan", OBJECT("\"object\",\"model\",\"parameters\",\"device\",\"training\","
            "\"generation\",\"ratio\",\"fits\",\"shortfall_bytes\",\"alternatives\",\"gpus\"",
        "\"object\":{\"const\":\"memory.plan\"},\"model\":" STRING ",\"parameters\":" INTEGER
        ",\"vocab_size\":" INTEGER ",\"vocab_size_assumed\":{\"type\":\"boolean\"}"
        ",\"device\":{\"enum\":[\"cpu\",\"cuda\"]},\"gpu\":{\"type\":[\"object\",\"null\"]}"
        ",\"budget_bytes\":" INTEGER_OR_NULL ",\"device_overhead_bytes\":" INTEGER
        ",\"device_overhead_source\":" STRING ",\"training\":" REF("MemoryPlanPart")
        ",\"generation\":" REF("MemoryPlanPart") ",\"ratio\":{\"type\":\"number\"}"
        ",\"fits\":{\"type\":\"boolean\"},\"shortfall_bytes\":" INTEGER
        ",\"alternatives\":" ARRAY(REF("MemoryPlanPart")) ",\"gpus\":" ARRAY(
            OBJECT("\"name\",\"memory_bytes\",\"trains\",\"generates\"",
                "\"name\":" STRING ",\"memory_bytes\":" INTEGER
                ",\"trains\":{\"type\":\"boolean\"},\"generates\":{\"type\":\"boolean\"}"
                ",\"training_bytes\":" INTEGER
                ",\"estimated_tokens_per_s\":{\"type\":\"number\"}")))},
    {"MemorySample", OBJECT("\"time\",\"rss_bytes\",\"resident_bytes\",\"kv_in_use_bytes\","
            "\"jobs_rss_bytes\"",
        "\"time\":" INTEGER ",\"rss_bytes\":" INTEGER ",\"resident_bytes\":" INTEGER
        ",\"kv_in_use_bytes\":" INTEGER ",\"jobs_rss_bytes\":" INTEGER)},
    {"Memory", OBJECT("\"object\",\"model\",\"devices\",\"kv_pages\",\"process\",\"jobs\"",
        "\"object\":{\"const\":\"memory\"},\"model\":" STRING_OR_NULL ","
        "\"models\":{\"type\":\"array\",\"description\":\"Bytes and pages of each.\"},"
        "\"jobs\":{\"type\":\"array\",\"description\":\"Training jobs that run, each a process of "
        "its own.\",\"items\":" REF("MemoryJob") "},"
        "\"history\":" OBJECT("\"interval_s\",\"samples\"", "\"interval_s\":" INTEGER
            ",\"samples\":{\"type\":\"array\",\"description\":\"The last hour, oldest first; "
            "with ?history=1.\",\"items\":" REF("MemorySample") "}") ","
        "\"devices\":" ARRAY("{\"allOf\":[" REF("MemoryBytes") ","
            OBJECT("\"name\",\"resident_bytes\",\"driver\",\"components\"", "\"name\":" STRING
            ",\"resident_bytes\":{\"type\":\"integer\",\"description\":\"What of it is in memory, "
            "as the kernel counts; at most a second old.\"}"
            ",\"driver\":{\"description\":\"A GPU's memory as its driver counts it, other "
            "processes' included; null on the CPU. start: in use when the device had been opened, "
            "context and kernels included, before the first model; unexplained: total - free - "
            "start - what the models have there.\",\"oneOf\":[{\"type\":\"null\"},"
            OBJECT("\"total_bytes\",\"free_bytes\",\"start_bytes\",\"unexplained_bytes\"",
                   "\"total_bytes\":" INTEGER ",\"free_bytes\":" INTEGER ",\"start_bytes\":" INTEGER
                   ",\"unexplained_bytes\":" INTEGER) "]}"
            ",\"components\":{\"type\":\"object\",\"description\":\"weights, kv_cache, "
            "activations, workspace, staging, host\",\"additionalProperties\":"
            REF("MemoryBytes") "}") "]}")
        ",\"kv_pages\":" OBJECT("\"page_tokens\",\"page_bytes\",\"total\",\"used\",\"free\","
            "\"cached\",\"reserved\",\"shared\",\"high_water\"",
            "\"page_tokens\":" INTEGER ",\"page_bytes\":" INTEGER ",\"total\":" INTEGER
            ",\"used\":" INTEGER ",\"free\":" INTEGER ",\"cached\":" INTEGER
            ",\"reserved\":" INTEGER ",\"shared\":" INTEGER ",\"high_water\":" INTEGER)
        ",\"process\":" OBJECT("\"rss_bytes\",\"peak_rss_bytes\",\"baseline_bytes\","
            "\"heap_bytes\",\"heap_free_bytes\",\"file_bytes\",\"unexplained_bytes\"",
            "\"rss_bytes\":" INTEGER ",\"peak_rss_bytes\":" INTEGER ",\"baseline_bytes\":"
            "{\"type\":\"integer\",\"description\":\"Resident before the model was opened.\"}"
            ",\"heap_bytes\":{\"type\":\"integer\",\"description\":\"What malloc has given out "
            "since, but for the components: tokenizers, connections, requests.\"}"
            ",\"heap_free_bytes\":{\"type\":\"integer\",\"description\":\"What malloc holds for "
            "later.\"}"
            ",\"file_bytes\":{\"type\":\"integer\",\"description\":\"Mapped files since: code that "
            "has run.\"}"
            ",\"unexplained_bytes\":{\"type\":\"integer\",\"description\":\"rss - baseline - "
            "allocated - heap - file: stacks, malloc's own, what is touched but in no list; "
            "negative where allocated memory has not been touched.\"}"))},
};

/* On every reply, and taken over from every request. */
#define REQUEST_ID "X-Request-Id"
#define REPLY_HEADERS \
    "\"headers\":{\"" REQUEST_ID "\":{\"$ref\":\"#/components/headers/RequestId\"}}"

static const char request_id[] =
    "\"parameters\":{\"RequestId\":{\"name\":\"" REQUEST_ID "\",\"in\":\"header\","
    "\"description\":\"A name of the client's own for the request, for the log.\",\"schema\":"
    "{\"type\":\"string\",\"minLength\":1,\"maxLength\":128,\"pattern\":\"^[!-~]+$\"}}},"
    "\"headers\":{\"RequestId\":{\"description\":\"The client's where it gave one that fits, or "
    "one of the server's; the log has it.\",\"required\":true,\"schema\":" STRING "}}";

/* ---- paths ----------------------------------------------------------------------------------- */

enum {
    ERRORS_BODY = 1, ERRORS_QUEUE = 2, ERRORS_ID = 4, ERRORS_READY = 8,
    TAKES_PAGE = 16,   /* after and limit */
    TAKES_FILTER = 32, /* order and purpose */
    TAKES_UPLOAD = 64,
    TAKES_STREAM = 128,
    TAKES_HISTORY = 256,
    ERRORS_ROOM = 512,
};

static const struct operation {
    const char *path, *method, *id, *summary;
    enum route route;      /* of the body; 0: none */
    const char *reply;     /* schema of a 200, or NULL: `content_type` alone */
    const char *chunk;     /* schema of a stream's events, or NULL */
    const char *content_type; /* of replies without a schema */
    int errors;
} operations[] = {
    {"/v1/completions", "post", "createCompletion", "Continue a text", ROUTE_COMPLETIONS,
     "Completion", "CompletionChunk", NULL, ERRORS_BODY | ERRORS_QUEUE},
    {"/v1/chat/completions", "post", "createChatCompletion",
     "Reply to a conversation, through the model's chat template", ROUTE_CHAT, "ChatCompletion",
     "ChatCompletionChunk", NULL, ERRORS_BODY | ERRORS_QUEUE},
    {"/v1/tokenize", "post", "tokenize", "Text to token ids", ROUTE_TOKENIZE, "Tokens", NULL, NULL,
     ERRORS_BODY},
    {"/v1/detokenize", "post", "detokenize", "Token ids to text", ROUTE_DETOKENIZE, "Text", NULL,
     NULL, ERRORS_BODY},
    {"/v1/models", "get", "listModels", "The models that are loaded or could be", 0,
     "ModelList", NULL, NULL, 0},
    {"/v1/models/load", "post", "loadModel",
     "Load a model, or swap one: requests that run finish on the weights they began with",
     ROUTE_LOAD, "Model", NULL, NULL, ERRORS_BODY},
    {"/v1/models/{id}", "get", "retrieveModel", "One model", 0, "Model", NULL, NULL, ERRORS_ID},
    {"/v1/models/{id}", "delete", "deleteModel",
     "Free a model's memory, once its last request has ended; its files stay", 0, "Deleted", NULL,
     NULL, ERRORS_ID},
    {"/v1/files", "post", "createFile", "Upload a file to train on", 0, "File", NULL, NULL,
     TAKES_UPLOAD},
    {"/v1/files", "get", "listFiles", "The uploaded files, newest first", 0, "FileList", NULL,
     NULL, TAKES_PAGE | TAKES_FILTER},
    {"/v1/files/{id}", "get", "retrieveFile", "One file", 0, "File", NULL, NULL, ERRORS_ID},
    {"/v1/files/{id}", "delete", "deleteFile", "Delete a file; jobs that use it keep theirs", 0,
     "Deleted", NULL, NULL, ERRORS_ID},
    {"/v1/files/{id}/content", "get", "downloadFile", "The file's bytes", 0, NULL, NULL,
     "application/octet-stream", ERRORS_ID},
    {"/v1/fine_tuning/jobs", "post", "createFineTuningJob", "Train a model", ROUTE_FINE_TUNING,
     "FineTuningJob", NULL, NULL, ERRORS_BODY | ERRORS_ROOM},
    {"/v1/fine_tuning/jobs", "get", "listFineTuningJobs", "The jobs, newest first", 0,
     "FineTuningJobList", NULL, NULL, TAKES_PAGE},
    {"/v1/fine_tuning/jobs/{id}", "get", "retrieveFineTuningJob", "One job", 0, "FineTuningJob",
     NULL, NULL, ERRORS_ID},
    {"/v1/fine_tuning/jobs/{id}/cancel", "post", "cancelFineTuningJob", "End a job for good", 0,
     "FineTuningJob", NULL, NULL, ERRORS_ID},
    {"/v1/fine_tuning/jobs/{id}/pause", "post", "pauseFineTuningJob",
     "Write a checkpoint and stop", 0, "FineTuningJob", NULL, NULL, ERRORS_ID},
    {"/v1/fine_tuning/jobs/{id}/resume", "post", "resumeFineTuningJob",
     "Go on from the last checkpoint: a paused job, or one that failed", 0, "FineTuningJob", NULL,
     NULL, ERRORS_ID},
    {"/v1/fine_tuning/jobs/{id}/events", "get", "listFineTuningEvents",
     "What happened, newest first", 0, "FineTuningEventList", "FineTuningEvent", NULL,
     ERRORS_ID | TAKES_PAGE | TAKES_STREAM},
    {"/v1/fine_tuning/jobs/{id}/checkpoints", "get", "listFineTuningJobCheckpoints",
     "The checkpoints that are kept, newest first", 0, "FineTuningCheckpointList", NULL, NULL,
     ERRORS_ID | TAKES_PAGE},
    {"/v1/memory", "get", "memory", "Memory by device and component", 0, "Memory", NULL, NULL,
     TAKES_HISTORY},
    {"/v1/memory/plan", "post", "planMemory",
     "What a model would take to train and to generate, and what fits a budget", ROUTE_PLAN,
     "MemoryPlan", NULL, NULL, ERRORS_BODY},
    {"/health", "get", "health", "Is the server alive?", 0, NULL, NULL, "application/json",
     ERRORS_READY},
    {"/ready", "get", "ready", "Does it take requests?", 0, NULL, NULL, "application/json",
     ERRORS_READY},
    {"/metrics", "get", "metrics", "Prometheus metrics", 0, NULL, NULL, "text/plain", 0},
    {"/openapi.json", "get", "openapi", "This description", 0, NULL, NULL, "application/json", 0},
    {"/", "get", "page", "The web page: playground, memory, training", 0, NULL, NULL, "text/html",
     0},
    {"/page/{id}", "get", "pageFile", "What the web page loads: scripts, a style sheet, an icon", 0,
     NULL, NULL, "text/javascript", ERRORS_ID},
};

static void render_body(const struct api_context *c, enum route route, struct buf *out)
{
    size_t n;
    const struct param *table = route == ROUTE_FINE_TUNING ? ft_param_table(&n)
                                : route == ROUTE_LOAD      ? api_load_param_table(&n)
                                : route == ROUTE_PLAN      ? memory_plan_param_table(&n)
                                : route & (ROUTE_COMPLETIONS | ROUTE_CHAT)
                                    ? completion_param_table(&n)
                                    : tokenize_param_table(&n);
    buf_puts(out, ",\"requestBody\":{\"required\":true,"
                  "\"content\":{\"application/json\":{\"schema\":");
    params_schema(table, n, route, &c->limits, out);
    buf_puts(out, "}}}");
}

static void render_reply(const struct operation *op, struct buf *out)
{
    buf_puts(out, "\"200\":{\"description\":\"Done\"," REPLY_HEADERS ",\"content\":{");
    if (op->reply)
        buf_printf(out, "\"application/json\":{\"schema\":" REF("%s") "}", op->reply);
    else
        buf_printf(out, "\"%s\":{}", op->content_type);
    if (op->chunk)
        buf_printf(out,
                   ",\"text/event-stream\":{\"schema\":{\"type\":\"string\","
                   "\"description\":\"With stream: "
                   "events 'data: {%s}', or 'data: {Error}' where one fails midway; the last is "
                   "'data: [DONE]'.\"}}",
                   op->chunk);
    buf_puts(out, "}}");
}

static void render_error_response(const char *status, const char *what, struct buf *out)
{
    buf_printf(out,
               ",\"%s\":{\"description\":\"%s\"," REPLY_HEADERS ",\"content\":{"
               "\"application/json\":{\"schema\":" REF("Error") "}}}",
               status, what);
}

static void render_parameters(const struct operation *op, struct buf *out)
{
    buf_puts(out, ",\"parameters\":[{\"$ref\":\"#/components/parameters/RequestId\"}");
    if (op->errors & ERRORS_ID)
        buf_puts(out,
                 ",{\"name\":\"id\",\"in\":\"path\",\"required\":true,\"schema\":" STRING "}");
    if (op->errors & TAKES_PAGE)
        buf_puts(out, ",{\"name\":\"after\",\"in\":\"query\",\"description\":\"The id that the "
                      "page follows.\",\"schema\":" STRING "},{\"name\":\"limit\",\"in\":\"query\","
                      "\"schema\":{\"type\":\"integer\",\"minimum\":1,\"maximum\":10000}}");
    if (op->errors & TAKES_FILTER)
        buf_puts(out, ",{\"name\":\"order\",\"in\":\"query\",\"schema\":{\"enum\":[\"asc\","
                      "\"desc\"]}},{\"name\":\"purpose\",\"in\":\"query\",\"schema\":" STRING "}");
    if (op->errors & TAKES_STREAM)
        buf_puts(out, ",{\"name\":\"stream\",\"in\":\"query\",\"description\":\"Oldest first, from "
                      "the one that follows 'after' on, and each new one as it comes, to the "
                      "job's last. Goes without limit.\",\"schema\":{\"type\":\"boolean\","
                      "\"default\":false}}");
    if (op->errors & TAKES_HISTORY)
        buf_puts(out, ",{\"name\":\"history\",\"in\":\"query\",\"description\":\"1: with samples "
                      "of the last hour.\",\"schema\":{\"enum\":[0,1],\"default\":0}}");
    buf_putc(out, ']');
}

/* The key may come in either header; the role is a name that OpenAPI 3.1 leaves to us. */
static void render_security(enum api_access access, struct buf *out)
{
    const char *role = access == API_ACCESS_ADMIN ? "admin" : "user";
    if (access == API_ACCESS_OPEN) buf_puts(out, ",\"security\":[]");
    else
        buf_printf(out, ",\"security\":[{\"bearer\":[\"%s\"]},{\"apiKey\":[\"%s\"]}]", role, role);
}

static void render_security_errors(const struct operation *op, enum api_access access,
                                   struct buf *out)
{
    if (access == API_ACCESS_OPEN) return;
    render_error_response("401", "No key, or one that the server does not know", out);
    if (access == API_ACCESS_ADMIN) render_error_response("403", "Not an admin's key", out);
    render_error_response("429", op->errors & ERRORS_QUEUE
                                     ? "The queue is full, or the key is at a limit: retry after "
                                       "the Retry-After header"
                                     : "The key is at a limit: retry after the Retry-After header",
                          out);
}

static void render_operation(const struct api_context *c, const struct operation *op,
                             enum api_access access, struct buf *out)
{
    buf_printf(out, "\"%s\":{\"operationId\":\"%s\",\"summary\":\"%s\"", op->method, op->id,
               op->summary);
    render_security(access, out);
    render_parameters(op, out);
    if (op->route) render_body(c, op->route, out);
    if (op->errors & TAKES_UPLOAD)
        buf_puts(out, ",\"requestBody\":{\"required\":true,\"content\":{\"multipart/form-data\":"
                      "{\"schema\":{\"type\":\"object\",\"required\":[\"file\",\"purpose\"],"
                      "\"additionalProperties\":false,\"properties\":{\"file\":{\"type\":"
                      "\"string\",\"format\":\"binary\"},\"purpose\":{\"const\":\"fine-tune\"}"
                      "}}}}}");
    buf_puts(out, ",\"responses\":{");
    render_reply(op, out);
    if (op->errors & ERRORS_BODY) {
        render_error_response("400", "Malformed JSON; an unknown, ill-typed or unsupported "
                              "parameter (named "
                                     "in param); or more tokens than the context", out);
        render_error_response("413", "The body is over the server's limit", out);
    }
    if (op->errors & ERRORS_ROOM)
        render_error_response("409",
                              "The job's plan does not fit into what there is for training; the "
                              "message has the numbers", out);
    if (op->errors & (ERRORS_BODY | ERRORS_ID))
        render_error_response("404", "Nothing by that id", out);
    render_security_errors(op, access, out);
    if (op->errors & ERRORS_QUEUE)
        render_error_response("504", "The request passed its deadline", out);
    if (op->errors & (ERRORS_QUEUE | ERRORS_READY))
        render_error_response("503", "Not ready, or shutting down", out);
    render_error_response("default", "Any other error", out);
    buf_puts(out, "}}");
}

void api_openapi(const struct api_context *c, api_access_fn access, struct buf *out)
{
    buf_puts(out, "{\"openapi\":\"3.1.0\",\"info\":{\"title\":\"gptd\",\"version\":\"1\","
                  "\"description\":"
                  "\"A GPT over HTTP, in OpenAI's shapes. Strict: what is not described here is a "
                  "400 that "
                  "names it.\"},\"paths\":{");
    for (size_t i = 0; i < sizeof operations / sizeof *operations; i++) {
        /* A path's operations stand together. */
        bool same_path = i > 0 && strcmp(operations[i].path, operations[i - 1].path) == 0;
        if (i) buf_puts(out, same_path ? "," : "},");
        if (!same_path) buf_printf(out, "\"%s\":{", operations[i].path);
        const struct operation *op = &operations[i];
        render_operation(c, op, access(op->method, op->path), out);
    }
    buf_puts(out, "}},\"components\":{\"securitySchemes\":{"
                  "\"bearer\":{\"type\":\"http\",\"scheme\":\"bearer\",\"description\":\"Of a "
                  "server that was given keys; an admin's is a user's, too.\"},"
                  "\"apiKey\":{\"type\":\"apiKey\",\"in\":\"header\",\"name\":\"X-Api-Key\"}},");
    buf_puts(out, request_id);
    buf_puts(out, ",\"schemas\":{");
    for (size_t i = 0; i < sizeof schemas / sizeof *schemas; i++)
        buf_printf(out, "%s\"%s\":%s", i ? "," : "", schemas[i].name, schemas[i].schema);
    buf_puts(out, "}}}");
}

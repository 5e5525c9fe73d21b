/* Tests of server/metrics.c: counts, and the text that Prometheus reads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "server/metrics.h"

static const char *label(int32_t route) { return route == 0 ? "/a" : "other"; }

static struct metrics *metrics_new(const char *model_id)
{
    struct metrics *m = malloc(sizeof *m);
    assert_non_null(m);
    metrics_init(m, model_id, "cpu", label, 2);
    return m;
}

/* The rendered text; the caller frees it. */
static char *render(const struct metrics *m)
{
    struct engine_stats engine = {.running = 3, .kv = {.free = 5, .cached = 6, .active = 7}};
    struct api_job_memory job = {.id = "ftjob-1", .planned_bytes = 7, .rss_bytes = 12,
                                 .baseline_bytes = 3, .planned[MEMORY_GRADIENTS] = 7};
    struct api_memory_view memory = {.process = {.rss_bytes = 1 << 20, .peak_rss_bytes = 1 << 21,
                                                 .heap_bytes = 1 << 10},
                                     .resident_bytes = 99, .jobs = &job, .n_jobs = 1};
    struct buf out;
    engine.memory.planned[MEMORY_WEIGHTS] = 12345678901;
    buf_init(&out, 1 << 20);
    metrics_render(m, &engine, &memory, &out);
    assert_true(buf_check(&out, "metrics", NULL));
    return buf_take(&out, NULL);
}

static void assert_line(const char *text, const char *line)
{
    const char *at = strstr(text, line);
    if (!at) fail_msg("no line %s", line);
    assert_true(at == text || at[-1] == '\n');
    assert_int_equal(at[strlen(line)], '\n');
}

static void test_requests_by_route_and_status(void **state)
{
    struct metrics *m = metrics_new("m");
    metrics_request(m, 0, 200);
    metrics_request(m, 0, 200);
    metrics_request(m, 1, 404);
    char *text = render(m);
    assert_line(text, "gptd_http_requests_total{route=\"/a\",status=\"200\"} 2");
    assert_line(text, "gptd_http_requests_total{route=\"other\",status=\"404\"} 1");
    assert_null(strstr(text, "status=\"500\""));
    free(text);
    free(m);
}

static void test_refusals_by_reason(void **state)
{
    struct metrics *m = metrics_new("m");
    metrics_refused(m, REFUSED_NO_KEY);
    metrics_refused(m, REFUSED_ORIGIN);
    metrics_refused(m, REFUSED_ORIGIN);
    char *text = render(m);
    assert_line(text, "gptd_requests_refused_total{reason=\"no_key\"} 1");
    assert_line(text, "gptd_requests_refused_total{reason=\"wrong_key\"} 0");
    assert_line(text, "gptd_requests_refused_total{reason=\"origin\"} 2");
    free(text);
    free(m);
}

static void test_buckets_are_cumulative_and_bounds_inclusive(void **state)
{
    struct metrics *m = metrics_new("m");
    histogram_observe(&m->queue, -5, 1); /* a clock never runs back, but nothing may break */
    histogram_observe(&m->queue, 50000, 1);
    histogram_observe(&m->queue, 50001, 1);
    histogram_observe(&m->queue, 400000000000, 1);
    char *text = render(m);
    assert_line(text, "gptd_queue_seconds_bucket{le=\"5e-05\"} 2");
    assert_line(text, "gptd_queue_seconds_bucket{le=\"0.0001\"} 3");
    assert_line(text, "gptd_queue_seconds_bucket{le=\"300\"} 3");
    assert_line(text, "gptd_queue_seconds_bucket{le=\"+Inf\"} 4");
    assert_line(text, "gptd_queue_seconds_count 4");
    assert_line(text, "gptd_queue_seconds_sum 400.000100001");
    free(text);
    free(m);
}

static void test_a_completion_is_counted_everywhere(void **state)
{
    struct metrics *m = metrics_new("m");
    struct completion_summary s = {
        .prompt_tokens = 10, .cached_tokens = 4, .completion_tokens = 5, .queued_ns = 1000,
        .first_token_ns = 2000000, .total_ns = 10000000,
    };
    struct completion_summary canceled = {.prompt_tokens = 1, .queued_ns = 1000};
    metrics_completion(m, &s, 11000000);
    metrics_completion(m, &canceled, 1000);
    char *text = render(m);
    assert_line(text, "gptd_prompt_tokens_total 11");
    assert_line(text, "gptd_cached_tokens_total 4");
    assert_line(text, "gptd_completion_tokens_total 5");
    assert_line(text, "gptd_time_to_first_token_seconds_count 1");
    assert_line(text, "gptd_inter_token_seconds_count 4"); /* (10 - 2) ms in 4 intervals */
    assert_line(text, "gptd_inter_token_seconds_bucket{le=\"0.001\"} 0");
    assert_line(text, "gptd_inter_token_seconds_bucket{le=\"0.0025\"} 4");
    assert_line(text, "gptd_request_seconds_count 2");
    free(text);
    free(m);
}

static void test_gauges(void **state)
{
    struct metrics *m = metrics_new("m");
    char *text = render(m);
    assert_line(text, "gptd_sequences_running 3");
    assert_line(text, "gptd_kv_pages{state=\"free\"} 5");
    assert_line(text, "gptd_kv_pages{state=\"cached\"} 6");
    assert_line(text, "gptd_kv_pages{state=\"active\"} 7");
    assert_line(text, "gptd_memory_bytes{component=\"weights\",kind=\"planned\"} 12345678901");
    assert_line(text, "process_resident_memory_bytes 1048576");
    assert_line(text, "gptd_memory_resident_bytes 99");
    assert_line(text, "gptd_memory_unexplained_bytes 1047552");
    assert_line(text, "gptd_job_planned_bytes{job=\"ftjob-1\",component=\"gradients\"} 7");
    assert_line(text, "gptd_job_memory_bytes{job=\"ftjob-1\",kind=\"rss\"} 12");
    assert_line(text, "gptd_job_memory_bytes{job=\"ftjob-1\",kind=\"unexplained\"} 2");
    free(text);
    free(m);
}

static void test_models(void **state)
{
    struct engine_memory memory = {.in_use = {[MEMORY_WEIGHTS] = 5, [MEMORY_HOST] = 6}};
    struct buf out;
    buf_init(&out, 1 << 16);
    metrics_models(&out);
    metrics_model("a\"b", &memory, &out);
    assert_true(buf_check(&out, "metrics", NULL));
    assert_line(out.data, "gptd_model_memory_bytes{model=\"a\\\"b\",kind=\"in_use\"} 11");
    assert_line(out.data, "gptd_model_memory_bytes{model=\"a\\\"b\",kind=\"peak\"} 0");
    buf_free(&out);
}

static void test_labels_are_escaped(void **state)
{
    struct metrics *m = metrics_new("a\"b\\c\nd");
    char *text = render(m);
    assert_non_null(strstr(text, "model=\"a\\\"b\\\\c\\nd\""));
    free(text);
    free(m);
}

/* Every sample follows its own HELP and TYPE, each given once. */
static void test_every_family_is_declared_once(void **state)
{
    struct metrics *m = metrics_new("m");
    metrics_request(m, 0, 200);
    char *text = render(m);
    char family[128] = "", seen[8192] = "";
    int n_families = 0;
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        char name[120], key[130];
        if (sscanf(line, "# HELP %119s", name) == 1) {
            snprintf(key, sizeof key, " %s ", name);
            assert_null(strstr(seen, key));
            strcat(seen, key);
            snprintf(family, sizeof family, "%s", name);
            n_families++;
        } else if (strncmp(line, "# TYPE ", 7) == 0) {
            assert_memory_equal(line + 7, family, strlen(family));
            bool counter = strstr(line, " counter") != NULL;
            size_t len = strlen(family);
            assert_int_equal(counter, len > 6 && strcmp(family + len - 6, "_total") == 0);
        } else {
            assert_memory_equal(line, family, strlen(family));
            assert_non_null(strrchr(line, ' '));
        }
    }
    assert_true(n_families > 20);
    free(text);
    free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_requests_by_route_and_status),
        cmocka_unit_test(test_refusals_by_reason),
        cmocka_unit_test(test_buckets_are_cumulative_and_bounds_inclusive),
        cmocka_unit_test(test_a_completion_is_counted_everywhere),
        cmocka_unit_test(test_gauges),
        cmocka_unit_test(test_models),
        cmocka_unit_test(test_labels_are_escaped),
        cmocka_unit_test(test_every_family_is_declared_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

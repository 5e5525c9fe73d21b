/* memory.json: see job_memory.h. */
#include "server/job_memory.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/checked.h"
#include "base/file.h"
#include "base/json.h"

enum { FILE_LIMIT = 16 << 10, JSON_DEPTH = 4, PATH_BYTES = 4096 };

static const char file_name[] = "memory.json";

void job_memory_set_plan(struct api_job_memory *m, const struct memory_plan *plan)
{
    memcpy(m->planned, plan->component, sizeof m->planned);
    m->planned_bytes = plan->total_bytes;
}

static void render(const struct api_job_memory *m, struct buf *out)
{
    buf_printf(out, "{\"planned_bytes\":%lld,\"components\":{", (long long)m->planned_bytes);
    for (int i = 0; i < N_MEMORY_COMPONENTS; i++)
        buf_printf(out, "%s\"%s\":%lld", i ? "," : "",
                   memory_component_name((enum memory_component)i), (long long)m->planned[i]);
    buf_printf(out, "},\"rss_bytes\":%lld,\"peak_rss_bytes\":%lld,\"baseline_bytes\":%lld,"
               "\"unexplained_bytes\":%lld}\n", (long long)m->rss_bytes,
               (long long)m->peak_rss_bytes, (long long)m->baseline_bytes,
               (long long)api_job_unexplained_bytes(m));
}

static bool write_bytes(const char *path, const struct buf *text, struct error *err)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0) return error_errno(err, "cannot write %s", path);
    bool ok = write(fd, text->data, text->len) == (ssize_t)text->len
              || error_errno(err, "cannot write %s", path);
    close(fd);
    return ok;
}

bool job_memory_write(const char *dir, const struct api_job_memory *m, struct error *err)
{
    char path[PATH_BYTES], temporary[PATH_BYTES];
    struct buf text;
    if (!path_join(path, sizeof path, dir, file_name, err)
        || !path_join(temporary, sizeof temporary, dir, "memory.json.tmp", err))
        return false;
    buf_init(&text, FILE_LIMIT);
    render(m, &text);
    bool ok = buf_check(&text, path, err) && write_bytes(temporary, &text, err)
              && (rename(temporary, path) == 0 || error_errno(err, "cannot rename %s", temporary));
    buf_free(&text);
    return ok;
}

static bool read_bytes(const struct cJSON *object, const char *key, const char *path, int64_t *out,
                       struct error *err)
{
    if (json_to_i64(json_get(object, key), out) && *out >= 0) return true;
    return error_set(err, ERR_FORMAT, key, "%s: \"%s\" is not a number of bytes", path, key);
}

static bool read_all(const struct cJSON *root, const char *path, struct api_job_memory *m,
                     struct error *err)
{
    const struct cJSON *components = json_get(root, "components");
    int64_t sum = 0;
    if (!read_bytes(root, "planned_bytes", path, &m->planned_bytes, err)
        || !read_bytes(root, "rss_bytes", path, &m->rss_bytes, err)
        || !read_bytes(root, "peak_rss_bytes", path, &m->peak_rss_bytes, err)
        || !read_bytes(root, "baseline_bytes", path, &m->baseline_bytes, err))
        return false;
    for (int i = 0; i < N_MEMORY_COMPONENTS; i++)
        if (!read_bytes(components, memory_component_name((enum memory_component)i), path,
                        &m->planned[i], err)
            || !checked_add(sum, m->planned[i], &sum))
            return false;
    return sum == m->planned_bytes
           || error_set(err, ERR_FORMAT, "components", "%s: the components sum to %lld, not to "
                        "planned_bytes, %lld", path, (long long)sum, (long long)m->planned_bytes);
}

bool job_memory_read(const char *dir, struct api_job_memory *out, struct error *err)
{
    char path[PATH_BYTES];
    struct buf text;
    struct api_job_memory m = {.reported = true};
    buf_init(&text, FILE_LIMIT);
    bool ok = path_join(path, sizeof path, dir, file_name, err) && file_read(path, &text, err);
    const char *json = text.data ? text.data : "";
    struct cJSON *root = ok ? json_parse(json, text.len, JSON_DEPTH, path, err) : NULL;
    ok = root && read_all(root, path, &m, err);
    cJSON_Delete(root);
    buf_free(&text);
    if (!ok) return false;
    memcpy(m.id, out->id, sizeof m.id);
    *out = m;
    return true;
}

/* Typed members of a config object: see config_json.h. */
#include "model/config_json.h"

#include <stdio.h>

const struct cJSON *config_member(const struct config_reader *r, const char *key)
{
    const struct cJSON *item = json_get(r->object, key);
    return cJSON_IsNull(item) ? NULL : item;
}

bool config_fail(struct config_reader *r, enum error_code code, const char *key, const char *fmt,
                 ...)
{
    if (r->failed) return false;
    r->failed = true;
    char text[400];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    return error_set(r->err, code, key, "%s: %s", r->where, text);
}

static void wrong_type(struct config_reader *r, const char *key, const struct cJSON *item,
                       const char *wanted)
{
    config_fail(r, ERR_FORMAT, key, "\"%s\" is %s, not %s", key, json_type_name(item), wanted);
}

int64_t config_int(struct config_reader *r, const char *key, int64_t absent)
{
    const struct cJSON *item = config_member(r, key);
    int64_t value = absent;
    if (!item) {
        if (absent == CONFIG_REQUIRED) config_fail(r, ERR_FORMAT, key, "\"%s\" is missing", key);
        return absent;
    }
    if (!cJSON_IsNumber(item))
        wrong_type(r, key, item, "an integer");
    else if (!json_to_i64(item, &value))
        config_fail(r, ERR_FORMAT, key, "\"%s\" is %g, not an integer", key, item->valuedouble);
    return value;
}

double config_number(struct config_reader *r, const char *key, double absent)
{
    const struct cJSON *item = config_member(r, key);
    if (!item) {
        if (absent == CONFIG_REQUIRED) config_fail(r, ERR_FORMAT, key, "\"%s\" is missing", key);
        return absent;
    }
    if (cJSON_IsNumber(item)) return item->valuedouble;
    wrong_type(r, key, item, "a number");
    return absent;
}

bool config_bool(struct config_reader *r, const char *key, bool absent)
{
    const struct cJSON *item = config_member(r, key);
    if (!item) return absent;
    if (cJSON_IsBool(item)) return cJSON_IsTrue(item);
    wrong_type(r, key, item, "true or false");
    return absent;
}

const char *config_string(struct config_reader *r, const char *key, const char *absent)
{
    const struct cJSON *item = config_member(r, key);
    if (!item) return absent;
    if (cJSON_IsString(item)) return item->valuestring;
    wrong_type(r, key, item, "a string");
    return absent;
}

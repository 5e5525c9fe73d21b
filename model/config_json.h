/* Reading a JSON object's members into a config: typed, with sticky failure, so that a family's
 * keys read as a straight list and are checked once at the end. Private to model/config*.c. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/json.h"

struct config_reader {
    const struct cJSON *object;
    const char *where; /* the file, for messages */
    struct error *err;
    bool failed;       /* the first failure's text is in err; later reads change nothing */
};

enum { CONFIG_REQUIRED = INT32_MIN }; /* as the default: absent and null are errors */

/* Absent or null: the default. Another type: the reader fails, naming the key. */
int64_t config_int(struct config_reader *r, const char *key, int64_t absent);
double config_number(struct config_reader *r, const char *key, double absent);
bool config_bool(struct config_reader *r, const char *key, bool absent);
const char *config_string(struct config_reader *r, const char *key, const char *absent);
/* The member unless it is absent or null. */
const struct cJSON *config_member(const struct config_reader *r, const char *key);

/* Fails the reader (unless it has already) with the key as the parameter; returns false. */
bool config_fail(struct config_reader *r, enum error_code code, const char *key, const char *fmt,
                 ...) PRINTF_LIKE(4, 5);

/* config_preset.c: the members of an object in nanoGPT's words (gpt_config_from_preset). */
struct gpt_config;
void config_read_preset(struct config_reader *r, struct gpt_config *c);

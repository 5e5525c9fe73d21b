/* libFuzzer: any bytes as a Hugging Face config and as a preset. A config that is taken must pass
 * its own check and have a countable number of parameters. */
#include <stdint.h>
#include <string.h>

#include "model/config.h"

static void check(struct gpt_config *c)
{
    struct error err;
    if (c->vocab_size == 0) c->vocab_size = 1;
    ASSERT(gpt_config_check(c, "fuzz", &err));
    ASSERT(gpt_config_parameters(c) > 0);
    ASSERT(memchr(c->arch, 0, sizeof c->arch) && c->arch[0]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct gpt_config c;
    struct error err;
    if (gpt_config_from_hf((const char *)data, size, "fuzz", &c, &err)) check(&c);
    if (gpt_config_from_preset((const char *)data, size, "fuzz", &c, &err)) check(&c);
    return 0;
}

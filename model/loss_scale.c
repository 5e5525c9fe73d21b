/* Loss scaling: see loss_scale.h. */
#include "model/loss_scale.h"

struct loss_scale loss_scale_begin(double option, enum dtype dtype)
{
    bool grows = option == 0 && dtype == DTYPE_F16;
    return (struct loss_scale){.scale = grows ? LOSS_SCALE_START : option, .grows = grows};
}

double loss_scale_factor(const struct loss_scale *s) { return s->scale > 0 ? s->scale : 1; }

bool loss_scale_update(struct loss_scale *s, bool finite, struct error *err)
{
    ASSERT(s->scale > 0);
    if (!finite) {
        if (s->scale / 2 < LOSS_SCALE_MIN)
            return error_set(err, ERR_INVALID, "loss_scale", "the gradients are not finite at a "
                             "loss scale of %g either, and it goes no lower than %g: a lower "
                             "learning_rate, a longer warm-up or a lower grad_clip may help",
                             s->scale, LOSS_SCALE_MIN);
        s->scale /= 2;
        s->finite_in_a_row = 0;
        s->skipped++;
        return true;
    }
    if (++s->finite_in_a_row < LOSS_SCALE_GROWTH_INTERVAL || !s->grows) return true;
    s->finite_in_a_row = 0;
    if (s->scale < LOSS_SCALE_MAX) s->scale *= 2;
    return true;
}

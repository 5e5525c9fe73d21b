/* What a model may be: see config.h. */
#include "model/config.h"


#include "model/checkpoint.h"

static bool out_of_range(const char *where, const char *key, int64_t value, int64_t min,
                         int64_t max, struct error *err)
{
    return error_set(err, ERR_FORMAT, key, "%s: %s is %lld, not within %lld and %lld", where, key,
                     (long long)value, (long long)min, (long long)max);
}

static bool check_sizes(const struct gpt_config *c, const char *where, struct error *err)
{
    const struct { const char *key; int64_t value, max; } sizes[] = {
        {"n_layer", c->n_layer, CONFIG_MAX_LAYER},
        {"n_embd", c->n_embd, CONFIG_MAX_WIDTH},
        {"n_head", c->n_head, CONFIG_MAX_WIDTH},
        {"n_kv_head", c->n_kv_head, CONFIG_MAX_WIDTH},
        {"head_dim", c->head_dim, CONFIG_MAX_WIDTH},
        {"n_ff", c->n_ff, CONFIG_MAX_WIDTH},
        {"vocab_size", c->vocab_size, CONFIG_MAX_VOCAB},
        {"block_size", c->block_size, CONFIG_MAX_CONTEXT},
    };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (sizes[i].value < 1 || sizes[i].value > sizes[i].max)
            return out_of_range(where, sizes[i].key, sizes[i].value, 1, sizes[i].max, err);
    return true;
}

static bool check_heads(const struct gpt_config *c, const char *where, struct error *err)
{
    static const int8_t head_dims[] = {8, 16, 32, 48, 64, 80, 96};
    bool known = c->head_dim == 128;
    for (size_t i = 0; i < sizeof head_dims; i++) known = known || c->head_dim == head_dims[i];
    if (!known)
        return error_set(err, ERR_UNSUPPORTED, "head_dim",
                         "%s: head_dim is %lld; 8, 16, 32, 48, 64, 80, 96 and 128 are supported",
                         where, (long long)c->head_dim);
    if (c->n_head % c->n_kv_head != 0)
        return error_set(err, ERR_FORMAT, "n_kv_head",
                         "%s: n_head (%lld) is not a multiple of n_kv_head (%lld)", where,
                         (long long)c->n_head, (long long)c->n_kv_head);
    if (c->n_head * c->head_dim > CONFIG_MAX_WIDTH)
        return error_set(err, ERR_FORMAT, "n_head",
                         "%s: n_head x head_dim is %lld, over %d", where,
                         (long long)(c->n_head * c->head_dim), CONFIG_MAX_WIDTH);
    return true;
}

/* NaN fails every comparison, so it is out of range too. */
static bool check_number(const char *where, const char *key, double value, double min, double max,
                         struct error *err)
{
    if (value >= min && value <= max) return true;
    return error_set(err, ERR_FORMAT, key, "%s: %s is %g, not within %g and %g", where, key, value,
                     min, max);
}

static bool check_rope(const struct gpt_config *c, const char *where, struct error *err)
{
    if (c->pos_encoding != POS_ROPE) return true;
    if (!check_number(where, "rope_theta", c->rope_theta, 1, 1e12, err)) return false;
    if (c->rope_scaling == ROPE_SCALING_NONE) return true;
    if (!check_number(where, "rope_factor", c->rope_factor, 1e-3, 1e6, err)) return false;
    if (c->rope_scaling == ROPE_SCALING_LINEAR) return true;
    if (!check_number(where, "low_freq_factor", c->rope_low_freq, 1e-3, 1e6, err) ||
        !check_number(where, "high_freq_factor", c->rope_high_freq, 1e-3, 1e6, err))
        return false;
    if (!(c->rope_low_freq < c->rope_high_freq))
        return error_set(err, ERR_FORMAT, "low_freq_factor",
                         "%s: low_freq_factor (%g) is not below high_freq_factor (%g)", where,
                         (double)c->rope_low_freq, (double)c->rope_high_freq);
    if (c->rope_original_context < 1 || c->rope_original_context > CONFIG_MAX_CONTEXT)
        return out_of_range(where, "original_max_position_embeddings", c->rope_original_context, 1,
                            CONFIG_MAX_CONTEXT, err);
    return true;
}

bool gpt_config_check(const struct gpt_config *c, const char *where, struct error *err)
{
    if (!check_sizes(c, where, err) || !check_heads(c, where, err) || !check_rope(c, where, err) ||
        !check_number(where, "norm_eps", c->norm_eps, 1e-12, 1, err) ||
        !check_number(where, "dropout", c->dropout, 0, 0.99, err))
        return false;
    if (c->bias_norm && c->norm_type == NORM_RMSNORM)
        return error_set(err, ERR_UNSUPPORTED, "bias_norm",
                         "%s: a norm bias goes with layernorm, not with rmsnorm", where);
    return true;
}

int64_t gpt_config_parameters(const struct gpt_config *c)
{
    int64_t total = 0, n_out, n_in;
    for (int role = 0; role < N_WEIGHT_ROLES; role++)
        if (weight_role_shape(c, role, &n_out, &n_in))
            total += n_out * n_in * (weight_role_is_layer(role) ? c->n_layer : 1);
    return total;
}

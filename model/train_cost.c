/* The seconds of a training step, from what it computes and moves:
 *
 *     seconds = products / rate + attention / (rate x its share) + bytes / bandwidth
 *               + row work / f32 rate + calls x overhead
 *
 * Products and attention are counted in floating-point operations. Bytes are those that
 * operations read and write, each of gpt_train.c's counted. What rows cost beside the memory's
 * time (packing, rounding, norms, activations) and what compressed moments cost is counted in
 * operations of the f32 product, so that it shrinks with more cores and all but vanishes on a
 * GPU.
 *
 * The constants were measured with one thread on the CPU of docs/performance.md; docs/memory.md
 * has the comparison with real steps. */
#include "base/checked.h"
#include "model/train_search.h"

/* Of the product rate, what attention reaches. Forward: 134 to 146 of 216 GFLOP/s. Backward: its
 * share of a profile of configs/small_char.json. */
#define ATTENTION_FORWARD 0.6
#define ATTENTION_BACKWARD 0.2
/* The f32 product's rate in terms of that of bf16, or of f16: 112 of 216 GFLOP/s. */
#define F32_OF_HALF 0.5
/* Row work, per byte that rows read or write: what steps of four presets take beyond all else. */
#define ROW_FLOPS_PER_BYTE 13.0
/* AdamW's two moments of a weight, from their format and back: 0.25 and 1.07 ns at 112 GFLOP/s. */
#define BF16_MOMENTS_FLOPS 28.0
#define Q8_MOMENTS_FLOPS 120.0
/* What an operation costs however little it does: waking the threads, or launching a kernel. */
#define CALL_SECONDS 4e-6
#define CALLS_PER_LAYER 32.0
#define CALLS_PER_CHUNK 5.0 /* of logits */
/* Rows that the CPU sums in registers before it adds to a weight's gradient: f32 and bf16
 * (cpu/cpu_matmul_backward.c). */
enum { GRADIENT_CHUNK = 512, GRADIENT_CHUNK_BF16 = 2048 };
/* Outputs that it sums before it adds to the gradient of a product's input. */
#define OUTPUT_CHUNK 1024.0

/* What the counts are made of; doubles, since none needs to be exact. */
struct shape {
    double tokens;        /* of a step */
    double micro_batches, rows; /* rows: of one */
    double layers, T, C, A, Q, U, F, V; /* A: H K; Q: (H + 2G) K; U: F, or 2F with swiglu */
    double act;           /* bytes of an activation */
    double forwards;      /* 2 when blocks are computed again */
};

static struct shape shape_of(const struct trainer_options *o, const struct train_config *c)
{
    const struct gpt_config *m = &o->model;
    double sequences = (double)c->batch_size * (double)c->grad_accum_steps;
    return (struct shape){
        .tokens = sequences * (double)c->sequence_length,
        .micro_batches = (double)ceil_div(c->batch_size * c->grad_accum_steps,
                                          c->micro_batch_size),
        .rows = (double)c->micro_batch_size * (double)c->sequence_length,
        .layers = (double)m->n_layer,
        .T = (double)c->sequence_length,
        .C = (double)m->n_embd,
        .A = (double)(m->n_head * m->head_dim),
        .Q = (double)((m->n_head + 2 * m->n_kv_head) * m->head_dim),
        .U = (double)(m->mlp_type == MLP_SWIGLU ? 2 * m->n_ff : m->n_ff),
        .F = (double)m->n_ff,
        .V = (double)m->vocab_size,
        .act = (double)dtype_bytes(c->dtype, 1),
        .forwards = c->recompute == RECOMPUTE_BLOCK ? 2 : 1,
    };
}

/* Weights of a block's matrices. */
static double block_weights(const struct shape *s)
{
    return s->C * s->Q + s->A * s->C + s->C * s->U + s->F * s->C;
}

/* A product's three: forward 2 operations per weight and token, each gradient 2 more. */
static double product_flops(const struct shape *s)
{
    double blocks = 2 * s->layers * block_weights(s) * (s->forwards + 2);
    return s->tokens * (blocks + 2 * s->C * s->V * 3);
}

/* Two products forward and five backward, over half of the sequence on average: this many
 * operations for each product. */
static double attention_flops(const struct shape *s)
{
    return s->tokens * s->layers * s->T * s->A;
}

/* Of a token in one block, there and back. Every product packs its operands: read, and written
 * in the kernel's order. */
static double block_bytes(const struct shape *s, enum recompute recompute)
{
    double a = s->act, norms = 2 * (4 + a) * s->C, activation = a * (s->U + s->F);
    double residual = 4 * 8 * s->C; /* two copies, two additions */
    double attention = (4 + 2 * (4 + a)) * s->Q + 2 * a * s->A;
    double operands = 2 * a * (2 * s->C + s->A + s->F);
    double forward = norms + residual + attention + activation + a * s->U + operands;
    double again = recompute == RECOMPUTE_SELECTIVE ? norms + activation
                   : recompute == RECOMPUTE_BLOCK   ? forward : 0;
    double outputs = 2 * s->C + s->U + s->Q; /* of the four products, their inputs likewise */
    double inputs = 2 * s->C + s->A + s->F;
    double packed = 2 * a * (2 * outputs + inputs);
    /* dX: written once, then added to for each further chunk of outputs. */
    double dx = 4 * inputs + 8 / OUTPUT_CHUNK * (s->C * s->F + s->U * s->C + s->C * s->A
                                                 + s->Q * s->C);
    double rows = 2 * (16 + 4 + a) * s->C                /* norms' backward, dropout's */
                  + 4 * s->F + 2 * a * s->U              /* the activation's */
                  + (4 + a) * (s->A + 2 * s->Q) + 4 * s->Q; /* attention's */
    return forward + again + packed + dx + rows;
}

/* Of a token's logits: written, read twice by the loss; their gradient written, packed for two
 * products. */
static double logit_bytes(const struct shape *s)
{
    return s->V * (4 + 8 + s->act + 4 * s->act) + 8 * s->V / OUTPUT_CHUNK * s->C;
}

/* Passes over weights: read by each product, turned for dX; gradients read and written for each
 * chunk of rows. */
static double weight_bytes(const struct shape *s, const struct train_config *c)
{
    bool half = c->gradients == DTYPE_BF16;
    int64_t rows = (int64_t)s->rows, chunk = half ? GRADIENT_CHUNK_BF16 : GRADIENT_CHUNK;
    double chunks = s->micro_batches * (double)ceil_div(rows, chunk);
    double loss_chunks = s->micro_batches
                         * (double)ceil_div(rows, min_i64(c->loss_rows, GRADIENT_CHUNK));
    double read = s->micro_batches * (s->forwards + 3) * s->act;
    double blocks = s->layers * block_weights(s) * (read + (half ? 4 : 8) * chunks);
    double passes = s->micro_batches * (double)ceil_div(rows, c->loss_rows);
    return blocks + s->V * s->C * (passes * 4 * s->act + 8 * loss_chunks);
}

/* Gradients are cleared, summed for their norm, and read; the rest is read and written. */
static double update_bytes(const struct memory_plan *m)
{
    const int64_t *c = m->component;
    return 3.0 * (double)c[MEMORY_GRADIENTS]
           + 2.0 * (double)(c[MEMORY_WEIGHTS] + c[MEMORY_MASTER] + c[MEMORY_OPTIMIZER]);
}

/* Formats that round what f32 training would keep. A remainder is exact. */
static int32_t count_lossy(const struct train_config *c)
{
    return (c->moments == MOMENT_BF16) + 2 * (c->moments == MOMENT_Q8)
           + (c->gradients == DTYPE_BF16);
}

/* What moments that are not f32 cost to unpack and pack. The embeddings' are bf16 under q8. */
static double moment_flops(const struct shape *s, const struct train_config *c)
{
    double blocks = s->layers * block_weights(s), embedding = s->V * s->C;
    switch (c->moments) {
    case MOMENT_F32: return 0;
    case MOMENT_BF16: return (blocks + embedding) * BF16_MOMENTS_FLOPS;
    case MOMENT_Q8: return blocks * Q8_MOMENTS_FLOPS + embedding * BF16_MOMENTS_FLOPS;
    }
    ASSERT(!"moment_format");
    return 0;
}

void train_cost(const struct trainer_options *o, const struct device *d,
                const struct device_rates *rates, struct train_choice *choice)
{
    const struct train_config *c = &choice->config;
    struct shape s = shape_of(o, c);
    double products = product_flops(&s), attention = attention_flops(&s);
    double forward = 2 * s.forwards * attention, backward = 5 * attention;
    double rows = s.tokens * (s.layers * block_bytes(&s, c->recompute) + logit_bytes(&s));
    double work = rows * ROW_FLOPS_PER_BYTE + moment_flops(&s, c);
    double f32_rate = rates->flops * (c->dtype == DTYPE_F32 ? 1 : F32_OF_HALF);
    double chunks = s.micro_batches * (double)ceil_div((int64_t)s.rows, c->loss_rows);
    double calls = s.micro_batches * s.layers * CALLS_PER_LAYER * (s.forwards + 1) / 2
                   + chunks * CALLS_PER_CHUNK;
    choice->flops = products + forward + backward;
    choice->bytes = rows + weight_bytes(&s, c) + update_bytes(&choice->memory);
    choice->seconds = (products + forward / ATTENTION_FORWARD + backward / ATTENTION_BACKWARD)
                          / rates->flops
                      + choice->bytes / rates->bytes + work / f32_rate + calls * CALL_SECONDS;
    choice->lossy = count_lossy(c);
}

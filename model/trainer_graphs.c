/* A micro-batch's forward and backward pass as one launch, where the device can record: hundreds of
 * operations, which in small models take longer to ask for than to run. All that differs from one
 * micro-batch to the next lies in device memory, except how many rows and spans there are: each
 * such shape has a recording of its own. */
#include "model/trainer_internal.h"

/* The recording of the micro-batch's shape, or the room for it; NULL: it is seen for the first
 * time. A shape that has not come again yet gives way to newer ones; one that has been recorded
 * stays. */
static struct trainer_graph *graph_of(struct trainer *t, const struct batch *b)
{
    for (int i = 0; i < TRAINER_MAX_GRAPHS; i++)
        if (t->graphs[i].n_rows == b->n_rows && t->graphs[i].n_spans == b->n_spans) return &t->graphs[i];
    for (int i = 0; i < TRAINER_MAX_GRAPHS; i++) {
        struct trainer_graph *g = &t->graphs[t->next_graph++ % TRAINER_MAX_GRAPHS];
        if (g->recorded) continue;
        *g = (struct trainer_graph){.n_rows = b->n_rows, .n_spans = b->n_spans};
        break;
    }
    return NULL;
}

void trainer_micro_step(struct trainer *t, const struct gpt_micro_batch *m)
{
    const struct device_ops *ops = t->device->ops;
    struct trainer_graph *g = ops->graph_begin ? graph_of(t, &m->batch) : NULL;
    if (!g) {
        gpt_train_micro_step(&t->train, t->device, m);
        return;
    }
    if (!g->recorded) {
        ops->graph_begin(t->device);
        gpt_train_micro_step(&t->train, t->device, m);
        g->recorded = ops->graph_end(t->device);
    }
    if (g->recorded) ops->graph_launch(t->device, g->recorded); /* else the next sync says why */
}

void trainer_free_graphs(struct trainer *t)
{
    for (int i = 0; i < TRAINER_MAX_GRAPHS; i++)
        if (t->graphs[i].recorded) t->device->ops->graph_free(t->device, t->graphs[i].recorded);
}

/* Steps recorded once and launched at once: CUDA graphs. A launch of its own costs a kernel some
 * two microseconds of the host's time, a node of a graph about one of the GPU's. */
#include "cuda/cuda_internal.h"

void cuda_graph_begin(struct device *d)
{
    struct cuda_device *c = cuda_of(d);
    if (c->failure != cudaSuccess) return;
    cuda_note(c, cudaStreamBeginCapture(c->stream, cudaStreamCaptureModeThreadLocal), "recording");
}

struct device_graph *cuda_graph_end(struct device *d)
{
    struct cuda_device *c = cuda_of(d);
    cudaGraph_t recorded = NULL;
    cudaGraphExec_t graph = NULL;
    /* Even after a failure: what was begun has to end. */
    cudaError_t e = cudaStreamEndCapture(c->stream, &recorded);
    if (e == cudaSuccess && c->failure == cudaSuccess) e = cudaGraphInstantiate(&graph, recorded, 0);
    if (recorded) cudaGraphDestroy(recorded);
    cuda_note(c, e, "recording");
    return (struct device_graph *)graph;
}

void cuda_graph_launch(struct device *d, struct device_graph *graph)
{
    struct cuda_device *c = cuda_of(d);
    if (c->failure != cudaSuccess) return;
    cuda_note(c, cudaGraphLaunch((cudaGraphExec_t)graph, c->stream), "a recorded step");
}

void cuda_graph_free(struct device *d, struct device_graph *graph)
{
    cuda_of(d);
    if (graph) cudaGraphExecDestroy((cudaGraphExec_t)graph);
}

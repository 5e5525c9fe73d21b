/* GPUs that people have: see gpus.h.
 *
 * Memory, multiprocessors and bandwidth are NVIDIA's product pages and architecture whitepapers
 * (Pascal to Blackwell); memory of server cards is what nvidia-smi shows, with ECC where it is
 * on by default. Rates of GeForce tensor cores are those with sums in f32, half the headline;
 * where only "AI TOPS" are published, they are an eighth of it for Ada (8 bits, sparse) and a
 * sixteenth for Blackwell (4 bits, sparse). Laptop cards run at what their makers allow: the
 * rates are of the lower clocks that NVIDIA publishes. */
#include "model/gpus.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/options.h"

#define MIB ((int64_t)1 << 20)

/* Products of a training step's shapes reach about this share of a data sheet's rate, streams of
 * bytes that: an H100 multiplies at 0.8 and copies at 0.9 of it, and smaller cards throttle. */
static const double product_share = 0.6, stream_share = 0.85;

const struct gpu gpus[] = {
    /* Pascal and Turing without tensor cores: the rate of f32. */
    {"GTX 1050 Ti", 4096 * MIB, 61, 6, false, 2.1e12, 112e9},
    {"GTX 1060 3GB", 3072 * MIB, 61, 9, false, 3.9e12, 192e9},
    {"GTX 1060 6GB", 6144 * MIB, 61, 10, false, 4.4e12, 192e9},
    {"GTX 1070", 8192 * MIB, 61, 15, false, 6.5e12, 256e9},
    {"GTX 1070 Ti", 8192 * MIB, 61, 19, false, 8.2e12, 256e9},
    {"GTX 1080", 8192 * MIB, 61, 20, false, 8.9e12, 320e9},
    {"GTX 1080 Ti", 11264 * MIB, 61, 28, false, 11.3e12, 484e9},
    {"GTX 1650", 4096 * MIB, 75, 14, false, 3.0e12, 128e9},
    {"GTX 1650 Super", 4096 * MIB, 75, 20, false, 4.4e12, 192e9},
    {"GTX 1660", 6144 * MIB, 75, 22, false, 5.0e12, 192e9},
    {"GTX 1660 Super", 6144 * MIB, 75, 22, false, 5.0e12, 336e9},
    {"GTX 1660 Ti", 6144 * MIB, 75, 24, false, 5.4e12, 288e9},
    /* Turing: f16 on tensor cores, sums in f32. */
    {"RTX 2060", 6144 * MIB, 75, 30, false, 25.8e12, 336e9},
    /* Turing: f16 on tensor cores, sums in f32. */
    {"RTX 2060 12GB", 12288 * MIB, 75, 34, false, 28.7e12, 336e9},
    /* Turing: f16 on tensor cores, sums in f32. */
    {"RTX 2060 Super", 8192 * MIB, 75, 34, false, 28.7e12, 448e9},
    {"RTX 2070", 8192 * MIB, 75, 36, false, 29.9e12, 448e9},
    {"RTX 2070 Super", 8192 * MIB, 75, 40, false, 36.3e12, 448e9},
    {"RTX 2080", 8192 * MIB, 75, 46, false, 40.3e12, 448e9},
    {"RTX 2080 Super", 8192 * MIB, 75, 48, false, 44.6e12, 496e9},
    {"RTX 2080 Ti", 11264 * MIB, 75, 68, false, 53.8e12, 616e9},
    {"TITAN RTX", 24576 * MIB, 75, 72, false, 130.5e12, 672e9},
    /* Ampere. */
    {"RTX 3050 6GB", 6144 * MIB, 86, 18, true, 13.5e12, 168e9},
    {"RTX 3050", 8192 * MIB, 86, 20, true, 18.2e12, 224e9},
    {"RTX 3060 8GB", 8192 * MIB, 86, 28, true, 25.5e12, 240e9},
    {"RTX 3060", 12288 * MIB, 86, 28, true, 25.5e12, 360e9},
    {"RTX 3060 Ti", 8192 * MIB, 86, 38, true, 32.4e12, 448e9},
    {"RTX 3070", 8192 * MIB, 86, 46, true, 40.6e12, 448e9},
    {"RTX 3070 Ti", 8192 * MIB, 86, 48, true, 43.5e12, 608e9},
    {"RTX 3080", 10240 * MIB, 86, 68, true, 59.5e12, 760e9},
    {"RTX 3080 12GB", 12288 * MIB, 86, 70, true, 61.3e12, 912e9},
    {"RTX 3080 Ti", 12288 * MIB, 86, 80, true, 68.2e12, 912e9},
    {"RTX 3090", 24576 * MIB, 86, 82, true, 71.2e12, 936e9},
    {"RTX 3090 Ti", 24576 * MIB, 86, 84, true, 80.0e12, 1008e9},
    {"RTX 3050 Laptop", 4096 * MIB, 86, 16, true, 8.7e12, 192e9},
    {"RTX 3060 Laptop", 6144 * MIB, 86, 30, true, 21.9e12, 336e9},
    {"RTX 3070 Laptop", 8192 * MIB, 86, 40, true, 26.4e12, 448e9},
    {"RTX 3080 Laptop", 16384 * MIB, 86, 48, true, 30.6e12, 448e9},
    /* Ada. */
    {"RTX 4060", 8192 * MIB, 89, 24, true, 30.2e12, 272e9},
    {"RTX 4060 Ti", 8192 * MIB, 89, 34, true, 44.1e12, 288e9},
    {"RTX 4060 Ti 16GB", 16384 * MIB, 89, 34, true, 44.1e12, 288e9},
    {"RTX 4070", 12288 * MIB, 89, 46, true, 58.3e12, 504e9},
    {"RTX 4070 Super", 12288 * MIB, 89, 56, true, 71.0e12, 504e9},
    {"RTX 4070 Ti", 12288 * MIB, 89, 60, true, 80.2e12, 504e9},
    {"RTX 4070 Ti Super", 16384 * MIB, 89, 66, true, 88.2e12, 672e9},
    {"RTX 4080", 16384 * MIB, 89, 76, true, 97.5e12, 717e9},
    {"RTX 4080 Super", 16384 * MIB, 89, 80, true, 104.4e12, 736e9},
    {"RTX 4090", 24576 * MIB, 89, 128, true, 165.2e12, 1008e9},
    {"RTX 4050 Laptop", 6144 * MIB, 89, 20, true, 24.2e12, 192e9},
    {"RTX 4060 Laptop", 8192 * MIB, 89, 24, true, 29.1e12, 256e9},
    {"RTX 4070 Laptop", 8192 * MIB, 89, 36, true, 40.1e12, 256e9},
    {"RTX 4080 Laptop", 12288 * MIB, 89, 58, true, 67.8e12, 432e9},
    {"RTX 4090 Laptop", 16384 * MIB, 89, 76, true, 85.8e12, 576e9},
    /* Blackwell. */
    {"RTX 5050", 8192 * MIB, 120, 20, true, 26.3e12, 320e9},
    {"RTX 5060", 8192 * MIB, 120, 30, true, 38.4e12, 448e9},
    {"RTX 5060 Ti", 8192 * MIB, 120, 36, true, 47.4e12, 448e9},
    {"RTX 5060 Ti 16GB", 16384 * MIB, 120, 36, true, 47.4e12, 448e9},
    {"RTX 5070", 12288 * MIB, 120, 48, true, 61.7e12, 672e9},
    {"RTX 5070 Ti", 16384 * MIB, 120, 70, true, 87.9e12, 896e9},
    {"RTX 5080", 16384 * MIB, 120, 84, true, 112.6e12, 960e9},
    {"RTX 5090", 32768 * MIB, 120, 170, true, 209.5e12, 1792e9},
    {"RTX 5060 Laptop", 8192 * MIB, 120, 26, true, 35.8e12, 384e9},
    {"RTX 5070 Laptop", 8192 * MIB, 120, 36, true, 49.9e12, 384e9},
    {"RTX 5070 Ti Laptop", 12288 * MIB, 120, 46, true, 62.0e12, 672e9},
    {"RTX 5080 Laptop", 16384 * MIB, 120, 60, true, 83.4e12, 896e9},
    {"RTX 5090 Laptop", 24576 * MIB, 120, 82, true, 114.0e12, 896e9},
    /* Servers and workstations. */
    {"P40", 23040 * MIB, 61, 30, false, 11.8e12, 346e9},
    {"V100 16GB", 16384 * MIB, 70, 80, false, 125.0e12, 900e9},
    {"V100 32GB", 32768 * MIB, 70, 80, false, 125.0e12, 900e9},
    {"T4", 15360 * MIB, 75, 40, false, 65.0e12, 320e9},
    {"L4", 23034 * MIB, 89, 58, true, 121.0e12, 300e9},
    {"A10", 23028 * MIB, 86, 72, true, 125.0e12, 600e9},
    {"A30", 24576 * MIB, 80, 56, true, 165.0e12, 933e9},
    {"A40", 46068 * MIB, 86, 84, true, 149.7e12, 696e9},
    {"L40S", 46068 * MIB, 89, 142, true, 362.0e12, 864e9},
    {"RTX A2000 12GB", 12288 * MIB, 86, 26, true, 32.0e12, 288e9},
    {"RTX A4000", 16376 * MIB, 86, 48, true, 76.7e12, 448e9},
    {"RTX A5000", 24564 * MIB, 86, 64, true, 111.1e12, 768e9},
    {"RTX A6000", 49140 * MIB, 86, 84, true, 154.8e12, 768e9},
    {"RTX 2000 Ada", 16380 * MIB, 89, 22, true, 48.0e12, 224e9},
    {"RTX 4000 Ada", 20475 * MIB, 89, 48, true, 106.9e12, 360e9},
    {"RTX 5000 Ada", 32760 * MIB, 89, 100, true, 261.1e12, 576e9},
    {"RTX 6000 Ada", 49140 * MIB, 89, 142, true, 364.2e12, 960e9},
    {"RTX PRO 6000", 97887 * MIB, 120, 188, true, 503.8e12, 1792e9},
    {"A100 40GB", 40960 * MIB, 80, 108, true, 312.0e12, 1555e9},
    {"A100 80GB", 81920 * MIB, 80, 108, true, 312.0e12, 1935e9},
    {"H100 PCIe", 81559 * MIB, 90, 114, true, 756.0e12, 2000e9},
    {"H100", 81559 * MIB, 90, 132, true, 989.0e12, 3350e9},
    {"H200", 143771 * MIB, 90, 132, true, 989.0e12, 4800e9},
    {"B200", 183359 * MIB, 100, 148, true, 2250.0e12, 8000e9},
};
const size_t n_gpus = sizeof gpus / sizeof *gpus;

enum { NAME_BYTES = 64 };

/* Lower case, without spaces, dashes and the maker's words. False: too long to be a card's name. */
static bool plain_name(const char *name, char out[NAME_BYTES])
{
    static const char *const noise[] = {"nvidia", "geforce", "tesla", "quadro", "graphics"};
    size_t n = 0;
    for (const char *s = name; *s; s++) {
        if (isspace((unsigned char)*s) || *s == '-' || *s == '_') continue;
        if (n + 1 == NAME_BYTES) return false;
        out[n++] = (char)tolower((unsigned char)*s);
    }
    out[n] = 0;
    for (size_t i = 0; i < sizeof noise / sizeof *noise; i++) {
        char *at = strstr(out, noise[i]);
        if (at) memmove(at, at + strlen(noise[i]), strlen(at + strlen(noise[i])) + 1);
    }
    return true;
}

/* "12" of "rtx306012gb" cannot be told from the name by itself: cuts "12gb" off when the rest is
 * the name of a card with so much memory. */
static bool names_memory(const char *rest, const struct gpu *g)
{
    char *end;
    long gib = strtol(rest, &end, 10);
    int64_t mib = g->memory_bytes / MIB;
    return end != rest && (strcmp(end, "gb") == 0 || strcmp(end, "gib") == 0)
           && gib * 1024 >= mib - 512 && gib * 1024 <= mib + 3072;
}

const struct gpu *gpu_find(const char *name)
{
    char wanted[NAME_BYTES], own[NAME_BYTES];
    if (!plain_name(name, wanted) || !*wanted) return NULL;
    for (size_t i = 0; i < n_gpus; i++)
        if (plain_name(gpus[i].name, own) && strcmp(wanted, own) == 0) return &gpus[i];
    for (size_t i = 0; i < n_gpus; i++) {
        size_t n = plain_name(gpus[i].name, own) ? strlen(own) : 0;
        if (strncmp(wanted, own, n) == 0 && names_memory(wanted + n, &gpus[i])) return &gpus[i];
    }
    return NULL;
}

const char *gpu_nearest(const char *name)
{
    enum { MOST = 128 };
    char wanted[NAME_BYTES], own[MOST][NAME_BYTES];
    const char *names[MOST];
    size_t n = n_gpus < MOST ? n_gpus : MOST;
    if (!plain_name(name, wanted)) return NULL;
    for (size_t i = 0; i < n; i++) {
        (void)plain_name(gpus[i].name, own[i]);
        names[i] = own[i];
    }
    const char *near = nearest_name(wanted, names, n);
    for (size_t i = 0; near && i < n; i++)
        if (near == names[i]) return gpus[i].name;
    return NULL;
}

/* An RTX 3060's speed, and the larger cuBLASLt workspace, to be on the safe side. */
struct gpu gpu_of_size(const char *name, int64_t memory_bytes)
{
    return (struct gpu){name, memory_bytes, 90, 28, true, 25.5e12, 360e9};
}

/* Contexts grow with the chip. Reported by nvidia-smi or cudaMemGetInfo with lazily loaded
 * modules: RTX 4060 Ti (34 multiprocessors) 107 MiB and RTX PRO 6000 (188) 555 MiB in
 * ggml-org/llama.cpp#23604; RTX 3090 (82) 256 MiB in invoke-ai/InvokeAI#9413; RTX 6000 Ada (142)
 * 426 MiB in unslothai/unsloth-zoo #1053: 2.95 to 3.15 MiB each. cuBLASLt's kernels and our own
 * come on top. */
int64_t gpu_context_bytes(const struct gpu *g, const char **source)
{
    if (source)
        *source = "estimate: 3.2 MiB a multiprocessor, as users of four cards report for a CUDA "
                  "context, and 64 MiB for kernels";
    return g->multiprocessors * (int64_t)(3.2 * (double)MIB) + 64 * MIB;
}

int64_t gpu_margin_bytes(const struct gpu *g)
{
    return max_i64(128 * MIB, g->memory_bytes / 32);
}

int64_t gpu_budget(const struct gpu *g)
{
    return max_i64(0, g->memory_bytes - gpu_context_bytes(g, NULL) - gpu_margin_bytes(g));
}

struct device_rates gpu_rates(const struct gpu *g)
{
    return (struct device_rates){
        .flops = g->flops * product_share,
        .bytes = g->bytes_per_s * stream_share,
        .source = "data sheet: 60 % of its arithmetic, 85 % of its bandwidth",
    };
}

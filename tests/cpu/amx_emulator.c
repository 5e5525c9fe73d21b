/* The emulator: see amx_emulator.h. The sources are the SDM's pages of each instruction: exceptions
 * as there (#UD is SIGILL, #GP SIGSEGV), operations as there, in the same order of additions. */
#include "tests/cpu/amx_emulator.h"

#include <immintrin.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include "cpu/kernels.h"

#ifdef __SANITIZE_THREAD__
enum { CAN_EMULATE = 0 };
#else
enum { CAN_EMULATE = 1 };
#endif

enum { N_TILES = 8, MAX_TILE_ROWS = 16, ROW_BYTES = 64, MAX_INSTRUCTION = 11 };
enum fault { FAULT_NONE, FAULT_UNDEFINED, FAULT_PROTECTION };
enum prefix { NP, P66, PF3, PF2 }; /* VEX.pp */

struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

/* What a thread's processor would hold. */
struct tile_state {
    struct tile_config config; /* palette 0: tiles are not configured */
    _Alignas(64) uint8_t tiles[N_TILES][MAX_TILE_ROWS][ROW_BYTES];
};

static _Thread_local struct tile_state tile_state;
static _Atomic int64_t n_executed;
static bool in_use;
static struct sigaction previous; /* who has SIGILL otherwise */

/* ---- one instruction ---- */

struct instruction {
    enum prefix prefix;
    uint8_t opcode;
    int length;
    int reg, rm, vvvv;  /* of ModRM and VEX; rm of a register operand */
    bool is_memory, has_sib;
    uint8_t *address;   /* of memory: base and displacement, for a configuration index and all */
    int64_t stride;     /* the scaled index */
};

static int64_t general_register(const ucontext_t *u, int i)
{
    static const int at[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                               REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                               REG_R12, REG_R13, REG_R14, REG_R15};
    return u->uc_mcontext.gregs[at[i]];
}

static int32_t read_disp32(const uint8_t *p)
{
    int32_t disp;
    memcpy(&disp, p, sizeof disp);
    return disp;
}

/* The memory operand that ModRM at p begins, extended by VEX's X and B;
 * returns its length in bytes. */
static int decode_memory(struct instruction *in, const ucontext_t *u, const uint8_t *p, int x,
                         int b)
{
    int mod = p[0] >> 6, rm = p[0] & 7, n = 1;
    int64_t base = 0;
    bool has_base = true, from_rip = false;
    in->is_memory = true;
    if (rm == 4) {
        int index = (p[1] >> 3 & 7) | x << 3, low = p[1] & 7;
        in->has_sib = true;
        if (index != 4) in->stride = general_register(u, index) * (1 << (p[1] >> 6));
        has_base = !(low == 5 && mod == 0);
        if (has_base) base = general_register(u, low | b << 3);
        n = 2;
    } else if (rm == 5 && mod == 0) {
        has_base = false;
        from_rip = true;
    } else {
        base = general_register(u, rm | b << 3);
    }
    if (mod == 1) {
        base += (int8_t)p[n];
        n += 1;
    } else if (mod == 2 || !has_base) {
        base += read_disp32(p + n);
        n += 4;
    }
    if (from_rip) base += u->uc_mcontext.gregs[REG_RIP] + 4 + n; /* VEX and opcode are 4 bytes */
    in->address = (uint8_t *)(uintptr_t)base;
    return n;
}

/* Whether an instruction of AMX lies at RIP. */
static bool decode(struct instruction *in, const ucontext_t *u)
{
    const uint8_t *p = (const uint8_t *)(uintptr_t)u->uc_mcontext.gregs[REG_RIP];
    if (p[0] != 0xC4) return false;
    int r = !(p[1] >> 7 & 1), x = !(p[1] >> 6 & 1), b = !(p[1] >> 5 & 1);
    if ((p[1] & 31) != 2 || p[2] >> 7 || (p[2] >> 2 & 1)) return false; /* 0F 38, W 0, 128 bits */
    if (p[3] != 0x49 && p[3] != 0x4B && p[3] != 0x5C && p[3] != 0x5E) return false;
    *in = (struct instruction){
        .prefix = (enum prefix)(p[2] & 3), .opcode = p[3], .reg = (p[4] >> 3 & 7) | r << 3,
        .rm = (p[4] & 7) | b << 3, .vvvv = ~(p[2] >> 3) & 15,
    };
    in->length = 4 + (p[4] >> 6 == 3 ? 1 : decode_memory(in, u, p + 4, x, b));
    return true;
}

/* ---- what they do ---- */

static enum fault load_config(const struct instruction *in)
{
    struct tile_config c;
    memcpy(&c, in->address + in->stride, sizeof c);
    if (c.palette > 1) return FAULT_PROTECTION;
    if (c.palette == 0) {
        memset(&tile_state, 0, sizeof tile_state);
        return FAULT_NONE;
    }
    for (size_t i = 0; i < sizeof c.reserved; i++)
        if (c.reserved[i]) return FAULT_PROTECTION;
    for (int i = 0; i < 16; i++) {
        bool beyond = i >= N_TILES && (c.rows[i] || c.row_bytes[i]);
        if (beyond || c.rows[i] > MAX_TILE_ROWS || c.row_bytes[i] > ROW_BYTES)
            return FAULT_PROTECTION;
        if (!c.rows[i] != !c.row_bytes[i]) return FAULT_PROTECTION;
    }
    memset(&tile_state, 0, sizeof tile_state);
    tile_state.config = c;
    return FAULT_NONE;
}

static bool is_tile(int t)
{
    return tile_state.config.palette && t < N_TILES && tile_state.config.rows[t];
}

/* Bytes outside the configuration become zero. */
static enum fault load_tile(const struct instruction *in)
{
    if (!is_tile(in->reg) || !in->has_sib) return FAULT_UNDEFINED;
    uint8_t(*tile)[ROW_BYTES] = tile_state.tiles[in->reg];
    memset(tile, 0, sizeof tile_state.tiles[0]);
    for (int r = tile_state.config.start_row; r < tile_state.config.rows[in->reg]; r++)
        memcpy(tile[r], in->address + r * in->stride, tile_state.config.row_bytes[in->reg]);
    tile_state.config.start_row = 0;
    return FAULT_NONE;
}

static enum fault store_tile(const struct instruction *in)
{
    if (!is_tile(in->reg) || !in->has_sib) return FAULT_UNDEFINED;
    for (int r = tile_state.config.start_row; r < tile_state.config.rows[in->reg]; r++)
        memcpy(in->address + r * in->stride, tile_state.tiles[in->reg][r],
               tile_state.config.row_bytes[in->reg]);
    tile_state.config.start_row = 0;
    return FAULT_NONE;
}

/* C [m][n] f32 += A [m][k] pairs of bf16 times B [k][n] pairs: even products and odd ones are two
 * chains of f32 fma from zero, over k upwards; their sum is added to C. Nearest even; denormals
 * count as zeros and become zeros. */
__attribute__((target("avx512f"))) static void dot_bf16(int c, int a, int b)
{
    const struct tile_config *config = &tile_state.config;
    __mmask16 lanes = (__mmask16)((1u << config->row_bytes[c] / 4) - 1);
    unsigned csr = _mm_getcsr();
    _mm_setcsr(0x1F80 | _MM_FLUSH_ZERO_ON | _MM_DENORMALS_ZERO_ON);
    __m512i high = _mm512_set1_epi32((int)0xFFFF0000);
    for (int m = 0; m < config->rows[c]; m++) {
        __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
        for (int k = 0; k < config->row_bytes[a] / 4; k++) {
            uint32_t pair;
            memcpy(&pair, tile_state.tiles[a][m] + 4 * k, sizeof pair);
            __m512i words = _mm512_load_si512(tile_state.tiles[b][k]);
            __m512i left = _mm512_set1_epi32((int)pair);
            even = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(left, 16)),
                                   _mm512_castsi512_ps(_mm512_slli_epi32(words, 16)), even);
            odd = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(left, high)),
                                  _mm512_castsi512_ps(_mm512_and_si512(words, high)), odd);
        }
        float *out = (float *)tile_state.tiles[c][m];
        __m512 sum = _mm512_add_ps(_mm512_load_ps(out), _mm512_add_ps(even, odd));
        _mm512_store_ps(out, _mm512_maskz_mov_ps(lanes, sum));
    }
    _mm_setcsr(csr);
}

/* C [m][n] int32 += A [m][k] fours of signed bytes times B [k][n]. */
static void dot_int8(int c, int a, int b)
{
    const struct tile_config *config = &tile_state.config;
    for (int m = 0; m < config->rows[c]; m++) {
        int32_t *out = (int32_t *)tile_state.tiles[c][m];
        for (int k = 0; k < config->row_bytes[a] / 4; k++)
            for (int n = 0; n < config->row_bytes[c] / 4; n++) {
                const int8_t *left = (const int8_t *)tile_state.tiles[a][m] + 4 * k;
                const int8_t *right = (const int8_t *)tile_state.tiles[b][k] + 4 * n;
                int32_t sum = 0;
                for (int i = 0; i < 4; i++) sum += left[i] * right[i];
                out[n] = (int32_t)((uint32_t)out[n] + (uint32_t)sum); /* wraps around */
            }
    }
}

static enum fault multiply(const struct instruction *in)
{
    int c = in->reg, a = in->rm, b = in->vvvv;
    if (!is_tile(a) || !is_tile(b) || !is_tile(c) || a == b || a == c || b == c)
        return FAULT_UNDEFINED;
    const struct tile_config *t = &tile_state.config;
    if (t->row_bytes[a] % 4 || t->row_bytes[b] % 4 || t->row_bytes[c] % 4) return FAULT_UNDEFINED;
    if (t->rows[c] != t->rows[a] || t->row_bytes[c] != t->row_bytes[b] ||
        t->rows[b] != t->row_bytes[a] / 4)
        return FAULT_UNDEFINED;
    (in->opcode == 0x5C ? dot_bf16 : dot_int8)(c, a, b);
    tile_state.config.start_row = 0;
    return FAULT_NONE;
}

/* Opcode 49 without memory: TILERELEASE and TILEZERO. */
static enum fault clear(const struct instruction *in)
{
    if (in->prefix == NP && in->reg == 0 && in->rm == 0) {
        memset(&tile_state, 0, sizeof tile_state);
        return FAULT_NONE;
    }
    if (in->prefix != PF2 || in->rm != 0 || !is_tile(in->reg)) return FAULT_UNDEFINED;
    memset(tile_state.tiles[in->reg], 0, sizeof tile_state.tiles[0]);
    tile_state.config.start_row = 0;
    return FAULT_NONE;
}

static enum fault execute(const struct instruction *in)
{
    if (in->opcode == 0x5C || in->opcode == 0x5E) { /* TDPBF16PS, TDPBSSD */
        if (in->is_memory || in->prefix != (in->opcode == 0x5C ? PF3 : PF2)) return FAULT_UNDEFINED;
        return multiply(in);
    }
    if (in->vvvv != 0) return FAULT_UNDEFINED;
    if (in->opcode == 0x4B) {
        if (!in->is_memory || in->prefix == NP) return FAULT_UNDEFINED;
        /* F2 TILELOADD, 66 TILELOADDT1 */
        return in->prefix == PF3 ? store_tile(in) : load_tile(in);
    }
    if (!in->is_memory) return clear(in);
    if (in->reg != 0 || (in->prefix != NP && in->prefix != P66)) return FAULT_UNDEFINED;
    if (in->prefix == NP) return load_config(in);
    memcpy(in->address + in->stride, &tile_state.config, sizeof tile_state.config);
    return FAULT_NONE;
}

/* ---- the signal ---- */

/* Neighbours go in one signal, which costs more than any of them. */
static void illegal_instruction(int signal, siginfo_t *info, void *context)
{
    ucontext_t *u = context;
    struct instruction in;
    enum fault fault = FAULT_UNDEFINED;
    for (bool first = true; decode(&in, u); first = false) {
        fault = execute(&in);
        if (fault != FAULT_NONE && !first) return; /* once more, as the first */
        if (fault != FAULT_NONE) break;
        u->uc_mcontext.gregs[REG_RIP] += in.length;
        n_executed++;
    }
    if (fault == FAULT_NONE) return;
    if (fault == FAULT_PROTECTION) raise(SIGSEGV);
    /* the instruction runs again, into whoever was there before */
    sigaction(SIGILL, &previous, NULL);
}

/* cpu_isa_best() asks, so that every opening of a device comes by:
 * cmocka takes SIGILL anew for each test. */
bool cpu_amx_emulated(void)
{
    struct sigaction now, ours = {.sa_sigaction = illegal_instruction, .sa_flags = SA_SIGINFO};
    if (!CAN_EMULATE || !in_use || !__builtin_cpu_supports("avx512f")) return false;
    if (sigaction(SIGILL, NULL, &now) != 0) return false;
    if (now.sa_flags & SA_SIGINFO && now.sa_sigaction == illegal_instruction) return true;
    previous = now;
    return sigaction(SIGILL, &ours, NULL) == 0;
}

void amx_emulator_use(void) { in_use = true; }

int64_t amx_emulator_count(void) { return n_executed; }

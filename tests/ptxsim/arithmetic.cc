// Arithmetic, logic, comparison and conversion: one function an operation and type, chosen when an
// instruction is decoded. Approximate operations (.approx) are computed as exactly as the host can:
// the hardware's last bits are not imitated.
#include <algorithm>

#include "tests/ptxsim/lanes.h"

namespace ptxsim {

using std::string;
using std::vector;

static bool has(const vector<string> &modifiers, const char *m)
{
    return std::find(modifiers.begin(), modifiers.end(), m) != modifiers.end();
}

// ---- integers wrap ----

template <class T> static inline T add(T a, T b)
{
    if constexpr (std::is_integral_v<T>) return (T)((uint64_t)a + (uint64_t)b);
    else return a + b;
}

template <class T> static inline T subtract(T a, T b)
{
    if constexpr (std::is_integral_v<T>) return (T)((uint64_t)a - (uint64_t)b);
    else return a - b;
}

template <class T> static inline T multiply(T a, T b)
{
    if constexpr (std::is_integral_v<T>) return (T)((uint64_t)a * (uint64_t)b);
    else return a * b;
}

// A NaN loses against a number.
template <class T> static inline T least(T a, T b)
{
    if constexpr (std::is_floating_point_v<T>) return a < b || b != b ? a : a == b && std::signbit(a) ? a : b;
    else return a < b ? a : b;
}

template <class T> static inline T greatest(T a, T b)
{
    if constexpr (std::is_floating_point_v<T>) return a > b || b != b ? a : a == b && std::signbit(b) ? a : b;
    else return a > b ? a : b;
}

// What the hardware gives for a division by zero: all bits set; a remainder: the dividend.
template <class T> static inline T divide(T a, T b)
{
    if constexpr (std::is_floating_point_v<T>) return a / b;
    else if (b == 0) return (T)~(T)0;
    else if (std::is_signed_v<T> && b == (T)-1) return subtract<T>(0, a);
    else return (T)(a / b);
}

template <class T> static inline T remainder_of(T a, T b)
{
    if (b == 0) return a;
    if (std::is_signed_v<T> && b == (T)-1) return 0;
    return (T)(a % b);
}

template <class T> static inline T shift_left(T a, uint32_t n)
{
    return n >= sizeof(T) * 8 ? (T)0 : (T)((std::make_unsigned_t<T>)a << n);
}

template <class T> static inline T shift_right(T a, uint32_t n)
{
    uint32_t most = sizeof(T) * 8 - 1;
    if (n > most) return std::is_signed_v<T> ? (T)(a >> most) : (T)0;
    return (T)(a >> n);
}

#define UNARY(T, f)                                                                                  \
    [](warp &w, const instruction &i, uint32_t lanes) {                                              \
        each<T, T>(w, i, lanes, [](T a) { return (T)(f); });                                         \
    }
#define BINARY(T, f)                                                                                 \
    [](warp &w, const instruction &i, uint32_t lanes) {                                              \
        each<T, T, T>(w, i, lanes, [](T a, T b) { return (T)(f); });                                 \
    }
#define TERNARY(T, f)                                                                                \
    [](warp &w, const instruction &i, uint32_t lanes) {                                              \
        each<T, T, T, T>(w, i, lanes, [](T a, T b, T c) { return (T)(f); });                         \
    }
#define SHIFT(T, f)                                                                                  \
    [](warp &w, const instruction &i, uint32_t lanes) {                                              \
        each<T, T, uint32_t>(w, i, lanes, [](T a, uint32_t b) { return (T)(f); });                   \
    }

// ---- operations of every number type ----

template <class T> static action common(const string &op)
{
    if (op == "add") return BINARY(T, add(a, b));
    if (op == "sub") return BINARY(T, subtract(a, b));
    if (op == "mul") return BINARY(T, multiply(a, b));
    if (op == "div") return BINARY(T, divide(a, b));
    if (op == "min") return BINARY(T, least(a, b));
    if (op == "max") return BINARY(T, greatest(a, b));
    return nullptr;
}

template <class T> static action integer_action(const string &op)
{
    if (op == "mad") return TERNARY(T, add(multiply(a, b), c));
    if (op == "rem") return BINARY(T, remainder_of(a, b));
    if (op == "neg") return UNARY(T, subtract<T>(0, a));
    if (op == "abs") return UNARY(T, a < (T)0 ? subtract<T>(0, a) : a);
    if (op == "and") return BINARY(T, a & b);
    if (op == "or") return BINARY(T, a | b);
    if (op == "xor") return BINARY(T, a ^ b);
    if (op == "not") return UNARY(T, ~a);
    if (op == "shl") return SHIFT(T, shift_left(a, b));
    if (op == "shr") return SHIFT(T, shift_right(a, b));
    return common<T>(op);
}

template <class T> static action high_product()
{
    return BINARY(T, ((std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>)a * b)
                         >> (sizeof(T) * 8));
}

template <class T, class W> static action wide_product(const string &op)
{
    if (op != "mul") return nullptr;
    return [](warp &w, const instruction &i, uint32_t lanes) {
        each<W, T, T>(w, i, lanes, [](T a, T b) { return multiply<W>(a, b); });
    };
}

// ---- bits of 32 ----

static inline uint32_t reversed(uint32_t v)
{
    uint32_t out = 0;
    for (int j = 0; j < 32; j++) out |= (v >> j & 1) << (31 - j);
    return out;
}

static inline uint32_t permuted(uint32_t a, uint32_t b, uint32_t selector)
{
    uint64_t bytes = (uint64_t)b << 32 | a;
    uint32_t out = 0;
    for (int j = 0; j < 4; j++) {
        uint32_t s = selector >> 4 * j & 15, byte = bytes >> 8 * (s & 7) & 255;
        if (s & 8) byte = byte & 128 ? 255 : 0;
        out |= byte << 8 * j;
    }
    return out;
}

// b with n bits of a in the place of its own from bit `at` on.
template <class T> static void insert_bits(warp &w, const instruction &i, uint32_t lanes)
{
    constexpr uint32_t BITS = sizeof(T) * 8;
    for (int l = 0; l < LANES; l++) {
        if (!(lanes >> l & 1)) continue;
        T a = (T)bits_of(w, i.src[0], l), b = (T)bits_of(w, i.src[1], l);
        uint32_t at = bits_of(w, i.src[2], l) & 255, n = bits_of(w, i.src[3], l) & 255;
        T mask = at >= BITS ? 0 : (T)((n >= BITS ? ~(T)0 : ((T)1 << n) - 1) << at);
        set_bits(w, i.dst[0], l, (b & ~mask) | (at >= BITS ? 0 : (T)(a << at) & mask));
    }
}

// n bits of a from bit `at` on; a signed type's are extended by their highest, or by a's where they
// end behind it.
template <class T> static inline T extracted(T a, uint32_t at, uint32_t n)
{
    constexpr uint32_t BITS = sizeof(T) * 8;
    at &= 255, n &= 255;
    if (n == 0) return 0;
    bool fill = std::is_signed_v<T> && a >> std::min(at + n - 1, BITS - 1) & 1;
    std::make_unsigned_t<T> bits = at >= BITS ? 0 : (std::make_unsigned_t<T>)a >> at;
    uint32_t there = at >= BITS ? 0 : std::min(n, BITS - at);
    if (there == BITS) return (T)bits;
    std::make_unsigned_t<T> mask = ((std::make_unsigned_t<T>)1 << there) - 1;
    return (T)(fill ? bits | ~mask : bits & mask);
}

template <class T> static action extract_action()
{
    return [](warp &w, const instruction &i, uint32_t lanes) {
        each<T, T, uint32_t, uint32_t>(w, i, lanes, extracted<T>);
    };
}

static action bits_action(const string &op, const vector<string> &m)
{
    typedef uint32_t T;
    if (op == "brev") return UNARY(T, reversed(a));
    if (op == "popc") return UNARY(T, __builtin_popcount(a));
    if (op == "clz") return UNARY(T, a ? __builtin_clz(a) : 32);
    if (op == "bfind" && has(m, "shiftamt")) return UNARY(T, a ? __builtin_clz(a) : ~0u);
    if (op == "bfind") return UNARY(T, a ? 31 - __builtin_clz(a) : ~0u);
    if (op == "prmt") return TERNARY(T, permuted(a, b, c));
    return nullptr;
}

// ---- floating point ----

// hi + low rounded downwards (mode < 0) or towards zero.
static inline float round_directed(double hi, double low, bool to_zero)
{
    float f = (float)hi;
    bool above = (double)f > hi || ((double)f == hi && low < 0);
    bool below = (double)f < hi || ((double)f == hi && low > 0);
    bool negative = hi < 0 || (hi == 0 && low < 0);
    if (above && !(to_zero && negative)) return nextafterf(f, -INFINITY);
    if (below && to_zero && negative) return nextafterf(f, INFINITY);
    return f;
}

// a + b exactly, as a double and what it lacks (Knuth's two-sum).
static inline float sum_directed(double a, double b, bool to_zero)
{
    double s = a + b, t = s - a;
    return round_directed(s, (a - (s - t)) + (b - t), to_zero);
}

static inline float flush(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }

static action float_approximation(const string &op, bool ftz)
{
    typedef float T;
    if (op == "ex2" && ftz) return UNARY(T, flush(std::exp2(flush(a))));
    if (op == "ex2") return UNARY(T, std::exp2(a));
    if (op == "lg2") return UNARY(T, std::log2(a));
    if (op == "rcp" && ftz) return UNARY(T, flush(1 / flush(a)));
    if (op == "rcp") return UNARY(T, 1 / a);
    if (op == "sqrt") return UNARY(T, std::sqrt(a));
    if (op == "rsqrt") return UNARY(T, 1 / std::sqrt((double)a));
    return nullptr;
}

static action float_directed(const string &op, const vector<string> &m)
{
    typedef float T;
    if (op == "fma" && has(m, "rm")) return TERNARY(T, sum_directed((double)a * b, c, false));
    if (op == "fma" && has(m, "rz")) return TERNARY(T, sum_directed((double)a * b, c, true));
    if (op == "add" && has(m, "rz")) return BINARY(T, sum_directed(a, b, true));
    if (op == "add" && has(m, "rm")) return BINARY(T, sum_directed(a, b, false));
    return nullptr;
}

template <class T> static action float_action(const string &op)
{
    if (op == "fma") return TERNARY(T, std::fma(a, b, c));
    if (op == "neg") return UNARY(T, -a);
    if (op == "abs") return UNARY(T, std::fabs(a));
    if (op == "copysign") return BINARY(T, std::copysign(b, a)); // the sign of a on b
    return common<T>(op);
}

action arithmetic_action(const string &op, const vector<string> &m, const string &type)
{
    bool wide = has(m, "wide"), high = has(m, "hi");
    if (type == "f32" || type == "f64") {
        if (has(m, "rm") || has(m, "rz") || has(m, "rp"))
            return type == "f32" ? float_directed(op, m) : nullptr;
        action a = type == "f32" ? float_approximation(op, has(m, "ftz")) : nullptr;
        if (a) return a;
        if (has(m, "ftz") || has(m, "sat")) return nullptr;
        return type == "f32" ? float_action<float>(op) : float_action<double>(op);
    }
    if (has(m, "sat") || has(m, "cc")) return nullptr;
    if (wide && type == "s32") return wide_product<int32_t, int64_t>(op);
    if (wide && type == "u32") return wide_product<uint32_t, uint64_t>(op);
    if (wide && type == "s16") return wide_product<int16_t, int32_t>(op);
    if (wide && type == "u16") return wide_product<uint16_t, uint32_t>(op);
    if (high && op == "mul" && type == "s32") return high_product<int32_t>();
    if (high && op == "mul" && type == "u32") return high_product<uint32_t>();
    if (high && op == "mul" && type == "s64") return high_product<int64_t>();
    if (high && op == "mul" && type == "u64") return high_product<uint64_t>();
    if (wide || high) return nullptr;
    if (type == "pred") {
        typedef uint32_t T;
        if (op == "not") return UNARY(T, !a);
        return op == "and" || op == "or" || op == "xor" ? integer_action<uint32_t>(op) : nullptr;
    }
    if (op == "bfe")
        return type == "s32" ? extract_action<int32_t>() : type == "u32" ? extract_action<uint32_t>()
               : type == "s64" ? extract_action<int64_t>() : extract_action<uint64_t>();
    if (op == "bfi") return type == "b64" ? insert_bits<uint64_t> : insert_bits<uint32_t>;
    if (type == "b32" || type == "u32")
        if (action a = bits_action(op, m)) return a;
    if (type == "s16") return integer_action<int16_t>(op);
    if (type == "u16" || type == "b16") return integer_action<uint16_t>(op);
    if (type == "s32") return integer_action<int32_t>(op);
    if (type == "u32" || type == "b32") return integer_action<uint32_t>(op);
    if (type == "s64") return integer_action<int64_t>(op);
    if (type == "u64" || type == "b64") return integer_action<uint64_t>(op);
    return nullptr;
}

// ---- comparison ----

const char *const comparison_names[] = {"eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu",
                                        "gtu", "geu", "num", "nan", nullptr};
enum { UNORDERED = 6, IS_NUM = 12, IS_NAN = 13 };

template <class T> static inline bool compare(T a, T b, int how)
{
    bool unordered = a != a || b != b;
    if (how >= IS_NUM) return (how == IS_NAN) == unordered;
    if (unordered) return how >= UNORDERED;
    switch (how % UNORDERED) {
    case 0: return a == b;
    case 1: return a != b;
    case 2: return a < b;
    case 3: return a <= b;
    case 4: return a > b;
    default: return a >= b;
    }
}

template <class T> static void run_compare(warp &w, const instruction &i, uint32_t lanes)
{
    const slot<T> *a = lanes_of<slot<T>>(w, i.src[0]), *b = lanes_of<slot<T>>(w, i.src[1]);
    uint32_t result[LANES];
    // One loop a comparison, so that the compiler can turn it into vectors.
    switch (i.mode) {
#define CASE(n)                                                                                      \
    case n:                                                                                          \
        for (int l = 0; l < LANES; l++)                                                              \
            result[l] = compare(value_of<T>((slot<T>)a[l]), value_of<T>((slot<T>)b[l]), n);          \
        break
        CASE(0); CASE(1); CASE(2); CASE(3); CASE(4); CASE(5); CASE(6);
        CASE(7); CASE(8); CASE(9); CASE(10); CASE(11); CASE(12);
#undef CASE
    default:
        for (int l = 0; l < LANES; l++) result[l] = compare(value_of<T>(a[l]), value_of<T>(b[l]), IS_NAN);
    }
    if (lanes == ALL_LANES && i.pair.at < 0) {
        memcpy(lanes_of<uint32_t>(w, i.dst[0]), result, sizeof result);
        return;
    }
    for (int l = 0; l < LANES; l++) {
        if (!(lanes >> l & 1)) continue;
        set_bits(w, i.dst[0], l, result[l]);
        set_bits(w, i.pair, l, !result[l]);
    }
}

action compare_action(const string &t)
{
    if (t == "f32") return run_compare<float>;
    if (t == "f64") return run_compare<double>;
    if (t == "s16") return run_compare<int16_t>;
    if (t == "u16" || t == "b16") return run_compare<uint16_t>;
    if (t == "s32") return run_compare<int32_t>;
    if (t == "u32" || t == "b32") return run_compare<uint32_t>;
    if (t == "s64") return run_compare<int64_t>;
    if (t == "u64" || t == "b64") return run_compare<uint64_t>;
    return nullptr;
}

// ---- conversion ----

enum { NEAREST, TO_ZERO, DOWN, UP }; // instruction.mode

static inline double to_integer(double x, int how)
{
    return how == TO_ZERO ? std::trunc(x) : how == DOWN ? std::floor(x) : how == UP ? std::ceil(x)
                                                                      : std::nearbyint(x);
}

// Out of range: the nearest; NaN: 0.
template <class D> static inline D integer_of(double x)
{
    if (x != x) return 0;
    double low = (double)std::numeric_limits<D>::min(), high = (double)std::numeric_limits<D>::max();
    return x <= low ? std::numeric_limits<D>::min() : x >= high ? std::numeric_limits<D>::max() : (D)x;
}

// Sources may lie in wider registers than their type, and results in wider ones: sign-extended
// there.
template <class D, class S> static void run_convert(warp &w, const instruction &i, uint32_t lanes)
{
    for (int l = 0; l < LANES; l++) {
        if (!(lanes >> l & 1)) continue;
        S s = value_of<S>((slot<S>)bits_of(w, i.src[0], l));
        if constexpr (std::is_floating_point_v<S> && std::is_integral_v<D>)
            set_bits(w, i.dst[0], l, (uint64_t)(int64_t)integer_of<D>(to_integer((double)s, i.mode)));
        else if constexpr (std::is_integral_v<D>)
            set_bits(w, i.dst[0], l, std::is_signed_v<D> ? (uint64_t)(int64_t)(D)s : (uint64_t)(D)s);
        else
            set_bits(w, i.dst[0], l, bits_from<D>((D)s));
    }
}

template <class S> static action convert_from(const string &d)
{
    if (d == "s32") return run_convert<int32_t, S>;
    if (d == "u32") return run_convert<uint32_t, S>;
    if (d == "s64") return run_convert<int64_t, S>;
    if (d == "u64") return run_convert<uint64_t, S>;
    if (d == "f32") return run_convert<float, S>;
    if (d == "f64") return run_convert<double, S>;
    if (d == "u16") return run_convert<uint16_t, S>;
    if (d == "u8") return run_convert<uint8_t, S>;
    if (d == "s16") return run_convert<int16_t, S>;
    return nullptr;
}

static action half_action(const string &d, const string &s)
{
    typedef uint16_t H;
    if (d == "bf16" && s == "f32")
        return [](warp &w, const instruction &i, uint32_t lanes) { each<H, float>(w, i, lanes, bf16_bits); };
    if (d == "f16" && s == "f32")
        return [](warp &w, const instruction &i, uint32_t lanes) { each<H, float>(w, i, lanes, f16_bits); };
    if (d == "f32" && s == "bf16")
        return [](warp &w, const instruction &i, uint32_t lanes) { each<float, H>(w, i, lanes, bf16_value); };
    if (d == "f32" && s == "f16")
        return [](warp &w, const instruction &i, uint32_t lanes) { each<float, H>(w, i, lanes, f16_value); };
    return nullptr;
}

// f32 to f32: to an integral value, or into [0, 1].
static action float_to_float(const vector<string> &m)
{
    typedef float T;
    if (has(m, "sat")) return UNARY(T, a > 0 ? least(a, 1.0f) : 0);
    if (has(m, "rzi")) return UNARY(T, std::trunc(a));
    if (has(m, "rmi")) return UNARY(T, std::floor(a));
    if (has(m, "rpi")) return UNARY(T, std::ceil(a));
    if (has(m, "rni")) return UNARY(T, std::nearbyint(a));
    return nullptr;
}

action convert_action(const vector<string> &m, const string &d, const string &s)
{
    bool to_half = d == "bf16" || d == "f16";
    if (to_half || s == "bf16" || s == "f16")
        return has(m, "sat") || has(m, "relu") || (to_half && !has(m, "rn")) ? nullptr : half_action(d, s);
    if (d == "f32" && s == "f32") return float_to_float(m);
    if (has(m, "sat")) return nullptr;
    if (s == "s32") return convert_from<int32_t>(d);
    if (s == "u32") return convert_from<uint32_t>(d);
    if (s == "s64") return convert_from<int64_t>(d);
    if (s == "u64") return convert_from<uint64_t>(d);
    if (s == "s16") return convert_from<int16_t>(d);
    if (s == "u16") return convert_from<uint16_t>(d);
    if (s == "s8") return convert_from<int8_t>(d);
    if (s == "u8") return convert_from<uint8_t>(d);
    if (s == "f32") return convert_from<float>(d);
    if (s == "f64") return convert_from<double>(d);
    return nullptr;
}

} // namespace ptxsim

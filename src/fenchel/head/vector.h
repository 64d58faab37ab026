/* Elementary functions of vectors of REAL, for the row programs that emit.py writes.
 *
 * Within two units in the last place of the exact value, denormal numbers, infinities and NaN included. REAL and INTEGER are defined by the includer. */
#include <math.h>
#include <stdint.h>

#include "width.h"
#define LANES ((int64_t)(VEC_BYTES / sizeof(REAL)))
#define SINGLE (sizeof(REAL) == 4)

typedef REAL Vec __attribute__((vector_size(VEC_BYTES), aligned(sizeof(REAL)), may_alias));
typedef INTEGER Mask __attribute__((vector_size(VEC_BYTES), aligned(sizeof(REAL)), may_alias));
typedef __typeof__(_Generic((INTEGER)0, int32_t: (uint32_t)0, default: (uint64_t)0)) UNSIGNED;
typedef UNSIGNED Bits __attribute__((vector_size(VEC_BYTES), aligned(sizeof(REAL)), may_alias));

enum { MANTISSA = SINGLE ? 23 : 52, BIAS = SINGLE ? 127 : 1023 };
#define LOG2E ((REAL)1.44269504088896340736)
/* log 2 in two parts, of which the first times an exponent is exact */
#define LN2_HIGH ((REAL)(SINGLE ? 0.693359375 : 6.93147180369123816490e-01))
#define LN2_LOW ((REAL)(SINGLE ? -2.12194440054690583e-4 : 1.90821492927058770002e-10))

static inline Vec splat(double x) { return (REAL)x - (Vec){0}; }
static inline Vec choose(Mask m, Vec a, Vec b) { return (Vec)(((Mask)a & m) | ((Mask)b & ~m)); }
static inline Vec vmagnitude(Vec x) { return (Vec)((Mask)x & (Mask)~((Mask){0} + (INTEGER)((INTEGER)1 << (8 * sizeof(REAL) - 1)))); }
static inline Vec vsigned(Vec size, Vec x) { return (Vec)((Mask)size | ((Mask)x & ((Mask){0} + (INTEGER)((INTEGER)1 << (8 * sizeof(REAL) - 1))))); }
/* of two numbers; NaN if the first one is */
static inline Vec vlargest(Vec a, Vec b) { return choose((Mask)(a < b), b, a); }
static inline Vec vsmallest(Vec a, Vec b) { return choose((Mask)(a > b), b, a); }
static inline Vec either_nan(Vec r, Vec b) { return choose((Mask)(b != b), b, r); }
static inline Vec vmaximum(Vec a, Vec b) { return either_nan(vlargest(a, b), b); }
static inline Vec vminimum(Vec a, Vec b) { return either_nan(vsmallest(a, b), b); }

/* x / 2, rounded down, of integers above -4096: AVX2 shifts 64 bits as if they had no sign */
static inline Mask halved(Mask x) { return (Mask)((Bits)(x + 4096) >> 1) - 2048; }

/* of integers of few digits: AVX2 has no conversion of 64 bits */
static inline Vec real(Mask n) {
    const double shift = 6755399441055744.0;
    return SINGLE ? (Vec)__builtin_convertvector(n, Vec) : (Vec)((Vec)(n + (Mask)splat(shift)) - splat(shift));
}

/* c_0 + c_1 x + ... + c_(n-1) x^(n-1) */
static inline __attribute__((always_inline)) Vec polynomial(Vec x, const double *c, int n) {
    Vec p = splat(c[n - 1]);
    _Pragma("GCC unroll 16") for (int i = n - 2; i >= 0; i--) p = p * x + (REAL)c[i];
    return p;
}

static inline Vec vsqrt(Vec x) {
    Vec r;
    for (int l = 0; l < LANES; l++) r[l] = SINGLE ? (REAL)__builtin_sqrtf((float)x[l]) : (REAL)__builtin_sqrt((double)x[l]);
    return r;
}

/* x = n log 2 + r, |r| <= log 2 / 2: exp(r) - 1, and 2^n as a product of two numbers that do not overflow where exp(x) does not */
typedef struct {
    Vec fraction, scale, rest;
    Mask n;
} Reduced;

static inline Reduced reduce(Vec x) {
    const REAL low = SINGLE ? -104 : -746, high = SINGLE ? 89 : 710, shift = SINGLE ? 12582912.0 : 6755399441055744.0;
    x = vsmallest(vlargest(x, splat(low)), splat(high));
    const Vec k = x * LOG2E + shift, whole = k - shift;
    const Vec r = (x - whole * LN2_HIGH) - whole * LN2_LOW;
    static const double over[] = {0.5,          1 / 6.0,       1 / 24.0,       1 / 120.0,       1 / 720.0,       1 / 5040.0, 1 / 40320.0,
                                  1 / 362880.0, 1 / 3628800.0, 1 / 39916800.0, 1 / 479001600.0, 1 / 6227020800.0}; /* 1 / 2! ... 1 / 13! */
    Reduced out;
    out.n = (Mask)k - (Mask)splat(shift);
    out.fraction = polynomial(r, over, SINGLE ? 6 : 12) * (r * r) + r;
    const Mask half = halved(out.n);
    out.scale = (Vec)((half + BIAS) << MANTISSA);
    out.rest = (Vec)((out.n - half + BIAS) << MANTISSA);
    return out;
}

static inline Vec vexp(Vec x) {
    const Reduced e = reduce(x);
    return (e.fraction * e.scale + e.scale) * e.rest;
}

static inline Vec vexpm1(Vec x) {
    const Reduced e = reduce(x);
    const Vec large = (e.fraction * e.scale + e.scale) * e.rest, scale = e.scale * e.rest;
    return choose((Mask)(e.n > 60), large, e.fraction * scale + (scale - 1));
}

/* y = 2^n (1 + f), 1/sqrt 2 <= 1 + f <= sqrt 2, of positive normal numbers */
typedef struct {
    Vec f;
    Mask n;
} Parts;

static inline Parts parts(Vec y) {
    const Mask e = (Mask)((Bits)y >> MANTISSA) - BIAS;
    const Vec m = (Vec)(((Mask)y & (((INTEGER)1 << MANTISSA) - 1)) | (Mask)splat(1));
    const Mask upper = (Mask)(m > (REAL)1.41421356237309504880);
    return (Parts){choose(upper, m * (REAL)0.5, m) - 1, e - upper}; /* a true lane is -1 */
}

static inline Vec log_of(Vec f, Mask e) {
    const Vec s = f / (2 + f), z = s * s, half = f * f * (REAL)0.5, n = real(e);
    static const double over[] = {2.0 / 3, 2.0 / 5, 2.0 / 7, 2.0 / 9, 2.0 / 11, 2.0 / 13, 2.0 / 15, 2.0 / 17, 2.0 / 19, 2.0 / 21};
    const Vec r = polynomial(z, over, SINGLE ? 4 : 10); /* 2 artanh(s) = 2 s + s z r */
    return n * LN2_HIGH + (f - (half - (s * (half + r * z) + n * LN2_LOW)));
}

static inline Vec vlog(Vec x) {
    const Mask tiny = (Mask)(x < (SINGLE ? (REAL)0x1p-126 : (REAL)0x1p-1022));
    const Parts y = parts(choose(tiny, x * (SINGLE ? (REAL)0x1p24 : (REAL)0x1p54), x));
    Vec out = log_of(y.f, y.n - (tiny & (SINGLE ? 24 : 54)));
    out = choose((Mask)(x == 0), splat(-INFINITY), out);
    out = choose((Mask)(x == INFINITY) | (Mask)(x != x), x, out);
    return choose((Mask)(x < 0), splat(NAN), out);
}

/* log of the rounded u = 1 + x, whose fraction gets back what the rounding lost */
static inline Vec vlog1p(Vec x) {
    const Vec u = 1 + x, lost = x - (u - 1);
    const Parts y = parts(u);
    const Vec out = log_of(y.f + lost * (Vec)((BIAS - y.n) << MANTISSA), y.n);
    return choose((Mask)(u > 0) & (Mask)(u < INFINITY), out, choose((Mask)(u == 0), splat(-INFINITY), choose((Mask)(u < 0), splat(NAN), u)));
}

static inline Vec vsigmoid(Vec x) { return 1 / (1 + vexp(-x)); }

static inline Vec vtanh(Vec x) {
    const Vec t = vexpm1(-2 * vmagnitude(x));
    return vsigned(vmagnitude(t / (2 + t)), x);
}

static inline Vec vsinh(Vec x) {
    const Vec t = vexpm1(vmagnitude(x));
    return vsigned((t + choose((Mask)(t > (REAL)1e18), splat(1), t / (t + 1))) / 2, x);
}

static inline Vec vsign(Vec x) { return choose((Mask)(x > 0), splat(1), choose((Mask)(x < 0), splat(-1), x)); }

static inline double total(Vec x) {
    double sum = 0;
    for (int64_t l = 0; l < LANES; l++) sum += (double)x[l];
    return sum;
}

static inline double largest(Vec x, Mask nan) {
    double top = -INFINITY;
    int bad = 0;
    for (int64_t l = 0; l < LANES; l++) {
        if (x[l] > top) top = (double)x[l];
        bad |= nan[l] != 0;
    }
    return bad ? NAN : top;
}

static inline int64_t counted(Mask x) {
    int64_t sum = 0;
    for (int64_t l = 0; l < LANES; l++) sum += x[l];
    return sum;
}

/* the first `count` numbers of a vector, and which lanes they are */
static inline Vec take(const REAL *x, int64_t count) {
    Vec r = {0};
    for (int64_t l = 0; l < count; l++) r[l] = x[l];
    return r;
}

static inline void put(REAL *x, Vec r, int64_t count) {
    for (int64_t l = 0; l < count; l++) x[l] = r[l];
}

static inline Mask lanes(int64_t count) {
    Mask m = {0};
    for (int64_t l = 0; l < count; l++) m[l] = -1;
    return m;
}

/* Panels: blocks of the operands of a product, packed so that a core reads them in order.
 *
 * A panel is [k, width], k the terms of a sum; the last one is padded with zeros. With HALF, hidden states and weight are bfloat16, and all else is float32. A CPU that
 * multiplies pairs of bfloat16 and adds both products to a float32 gets panels of pairs of terms; elsewhere they are widened as they are packed. */
#ifndef PANEL_H
#define PANEL_H
#include <string.h>

#include "vector.h"

#if defined(HALF) && defined(__AVX512BF16__) && VEC_BYTES == 64
#define PAIRS
#include <immintrin.h>
#endif

/* an entry of a half-precision matrix, and what a panel has: one term, or two */
typedef uint16_t Half;
#ifdef HALF
typedef Half Entry;
#else
typedef REAL Entry;
#endif
#ifdef PAIRS
typedef INTEGER Unit;
enum { TERMS = 2 };
#else
typedef REAL Unit;
enum { TERMS = 1 };
#endif
typedef Unit Units __attribute__((vector_size(VEC_BYTES), aligned(sizeof(REAL)), may_alias));
/* Vec may alias anything, and an array of it stays in memory: half the speed */
typedef REAL Sum __attribute__((vector_size(VEC_BYTES)));

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t parts_of(int64_t n, int64_t size) { return (n + size - 1) / size; }
static int64_t padded(int64_t n, int64_t by) { return parts_of(n, by) * by; }
static int64_t units(int64_t terms) { return parts_of(terms, TERMS); }

/* sums + x b, of one unit x and a vector of units b */
static inline __attribute__((always_inline)) Sum plus(Sum sums, Unit x, Units b) {
#ifdef PAIRS
    return (Sum)_mm512_dpbf16_ps((__m512)sums, (__m512bh)_mm512_set1_epi32(x), (__m512bh)b);
#else
    const Sum all = x - (Sum){0};
    return sums + all * (Sum)b;
#endif
}

/* A matrix in memory, with the bytes from a row to the next. What `half` says is known wherever it is used. */
typedef struct {
    const char *at;
    int64_t step;
    int half;
} Matrix;

static inline Matrix entries(const Entry *x, int64_t ld) { return (Matrix){(const char *)x, ld * (int64_t)sizeof(Entry), sizeof(Entry) < sizeof(REAL)}; }
static inline Matrix reals(const REAL *x, int64_t ld) { return (Matrix){(const char *)x, ld * (int64_t)sizeof(REAL), 0}; }

#ifdef PAIRS
/* entries j to j + 15 of a row in bfloat16, rounded to the nearest; those that are not in the mask are zero */
static inline __attribute__((always_inline)) __m512i terms(const char *row, int64_t j, __mmask16 mask, int half) {
    if (half) return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, row + 2 * j));
    return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, row + 4 * j)));
}
static inline __attribute__((always_inline)) uint32_t term(const char *row, int64_t j, int half) {
    return (uint32_t)_mm512_cvtsi512_si32(terms(row, j, 1, half));
}
static inline __attribute__((always_inline)) Unit unit(const char *row, int64_t p, int64_t k, int half) {
    return (Unit)(term(row, 2 * p, half) | (2 * p + 1 < k ? term(row, 2 * p + 1, half) << 16 : 0));
}
/* a unit of each of `width` columns from the j-th on, of which there are n */
static inline __attribute__((always_inline)) void units_below(int width, const char *row, const char *next, int64_t j, int64_t n, int half, Unit *out) {
    for (int r = 0; r < width; r += 16) {
        const int64_t there = n - r;
        const __mmask16 within = (__mmask16)(width - r < 16 ? (1 << (width - r)) - 1 : 0xffff);
        const __mmask16 mask = there >= 16 ? within : there > 0 ? within & (__mmask16)((1 << there) - 1) : 0;
        const __m512i first = terms(row, j + r, mask, half);
        _mm512_mask_storeu_epi32(out + r, within, next ? _mm512_or_si512(first, _mm512_slli_epi32(terms(next, j + r, mask, half), 16)) : first);
    }
}
#else
static inline __attribute__((always_inline)) Unit term(const char *row, int64_t j, int half) {
    if (!half) return ((const REAL *)row)[j];
    const uint32_t bits = (uint32_t)((const Half *)row)[j] << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
static inline __attribute__((always_inline)) Unit unit(const char *row, int64_t p, int64_t k, int half) { return term(row, p, half); }
static inline __attribute__((always_inline)) void units_below(int width, const char *row, const char *next, int64_t j, int64_t n, int half, Unit *out) {
    for (int r = 0; r < width; r++) out[r] = r < n ? term(row, j + r, half) : 0;
}
#endif

typedef Unit Four __attribute__((vector_size(4 * sizeof(REAL)), aligned(sizeof(Entry)), may_alias));
#ifdef __clang__
#define PICK(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
typedef INTEGER Places __attribute__((vector_size(4 * sizeof(REAL))));
#define PICK(a, b, i, j, k, l) __builtin_shuffle(a, b, (Places){i, j, k, l})
#endif

/* units p to p + 3 of a row */
static inline __attribute__((always_inline)) Four four(const char *row, int64_t p, int half) {
    if (half == (TERMS == 2)) return *(const Four *)(row + p * (int64_t)sizeof(Unit));
#ifdef PAIRS
    return (Four)_mm256_cvtneps_pbh(_mm256_loadu_ps((const float *)row + 2 * p));
#else
    Four x;
    for (int i = 0; i < 4; i++) x[i] = unit(row, p + i, INT64_MAX, half);
    return x;
#endif
}

/* `height` rows at a time, of x [rows, k]; height is even */
static inline __attribute__((always_inline)) void pack_rows(int height, Matrix x, int64_t rows, int64_t k, Unit *restrict out) {
    const int64_t depth = units(k), whole = k / TERMS;
    for (int64_t i = 0; i < rows; i += height, out += height * depth, x.at += height * x.step) {
        const int full = rows - i >= height, there = full ? height : (int)(rows - i);
        int64_t p = 0;
        for (; full && p + 4 <= whole; p += 4) {
            Unit *to = out + p * height;
            int r = 0;
            _Pragma("GCC unroll 4") for (; r + 4 <= height; r += 4, to += 4) {
                const char *from = x.at + r * x.step;
                const Four a = four(from, p, x.half), b = four(from + x.step, p, x.half);
                const Four c = four(from + 2 * x.step, p, x.half), d = four(from + 3 * x.step, p, x.half);
                const Four ab = PICK(a, b, 0, 4, 1, 5), cd = PICK(c, d, 0, 4, 1, 5);
                const Four ab_ = PICK(a, b, 2, 6, 3, 7), cd_ = PICK(c, d, 2, 6, 3, 7);
                *(Four *)to = PICK(ab, cd, 0, 1, 4, 5), *(Four *)(to + height) = PICK(ab, cd, 2, 3, 6, 7);
                *(Four *)(to + 2 * height) = PICK(ab_, cd_, 0, 1, 4, 5), *(Four *)(to + 3 * height) = PICK(ab_, cd_, 2, 3, 6, 7);
            }
            for (; r < height; r += 2, to += 2)
                for (int j = 0; j < 4; j++)
                    for (int s = 0; s < 2; s++) to[j * height + s] = unit(x.at + (r + s) * x.step, p + j, k, x.half);
        }
        for (; p < depth; p++)
            for (int r = 0; r < height; r++) out[p * height + r] = r < there ? unit(x.at + r * x.step, p, k, x.half) : 0;
    }
}

/* `width` columns at a time, of x [k, columns] */
static inline __attribute__((always_inline)) void pack_columns(int width, Matrix x, int64_t k, int64_t columns, Unit *restrict out) {
    const int64_t depth = units(k);
    for (int64_t p = 0; p < depth; p++, x.at += TERMS * x.step) {
        const char *next = TERMS * p + 1 < k ? x.at + x.step : NULL;
        int64_t j = 0;
        for (; j + width <= columns; j += width) units_below(width, x.at, next, j, width, x.half, out + j * depth + p * width);
        if (j < columns) units_below(width, x.at, next, j, columns - j, x.half, out + j * depth + p * width);
    }
}
#endif

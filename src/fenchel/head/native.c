/* Row scans and gathered products of the exact sparse head, for CPUs.
 *
 * Plain pointers in, plain pointers out: nothing here knows PyTorch. native.py compiles this file where it runs and
 * loads it by ctypes. The file includes itself twice, once per element type: NAMED(scan) is scan_f32 and scan_f64. The
 * gathered products, in gathered.h, are included once per type of what they read: OF(gather) is gather_bf16 too.
 *
 * Sparse rows are CSR: row_ptr int64 [n+1], cols int32 ascending within a row, vals. Every output element is summed in
 * the order of the entries, whatever the number of threads, so results do not depend on it.
 */
#ifndef REAL

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "threads.h"
#include "width.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

enum { OK = 0, BAD_CSR = 1, NO_MEMORY = 2 };
enum { TASK_ROWS = 16, SPLIT_ROWS = 64, SCAN_BLOCK = 128, MOMENT_BLOCK = 1024 };
/* Of the gathered products. Eight accumulators hide the latency of a multiply-add; a block of 1,024 packed rows is
   512 KiB with AVX-512; packing a row pays once it is read about sixteen times; in the transposed product the sorted
   entries want the cache too: SORT_ROWS by PACKED_COLUMNS at a time. All measured, none critical. */
enum { WIDE = 8, BLOCK = 1024, SPARSE_BLOCK = 4096, LEAST_BLOCK = 128, PACK_AT = 16 };
enum { SORT_ROWS = 512, PACKED_COLUMNS = 256 };

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "marks are read eight bytes at a time, the first one lowest"
#endif
#define EACH_BYTE UINT64_C(0x0101010101010101)

/* ---- where each row's entries cross the borders of column blocks; the CSR structure is checked on the way ---- */

typedef struct {
    const int64_t *row_ptr;
    const int32_t *cols;
    int64_t n, v, width, blocks;
    int64_t *at; /* [blocks+1, n]: entries of row i in block b are at[b*n+i] .. at[(b+1)*n+i] */
    _Atomic int bad;
} Split;

static void split_rows(void *arg, int64_t task) {
    Split *s = arg;
    const int64_t last = (task + 1) * SPLIT_ROWS < s->n ? (task + 1) * SPLIT_ROWS : s->n;
    for (int64_t i = task * SPLIT_ROWS; i < last; i++) {
        const int64_t begin = s->row_ptr[i], end = s->row_ptr[i + 1];
        const int32_t *c = s->cols;
        int disorder = begin < end && (c[begin] < 0 || c[end - 1] >= s->v);
        for (int64_t k = begin + 1; k < end; k++) disorder |= c[k - 1] >= c[k];
        if (disorder) {
            atomic_store(&s->bad, 1);
            return;
        }
        int64_t k = begin;
        for (int64_t b = 0; b <= s->blocks; b++) {
            if (b == s->blocks) {
                k = end;
            } else if (end - begin > 4 * s->blocks) {
                int64_t high = end; /* k: first entry of the block, found by bisection */
                while (k < high) {
                    int64_t middle = k + (high - k) / 2;
                    if (c[middle] < b * s->width) k = middle + 1;
                    else high = middle;
                }
            } else {
                while (k < end && c[k] < b * s->width) k++;
            }
            s->at[b * s->n + i] = k;
        }
    }
}

static int split(Split *s, int64_t nnz, int threads) {
    if (s->row_ptr[0] != 0 || s->row_ptr[s->n] != nnz) return BAD_CSR;
    for (int64_t i = 0; i < s->n; i++)
        if (s->row_ptr[i + 1] < s->row_ptr[i]) return BAD_CSR;
    s->blocks = (s->v + s->width - 1) / s->width;
    s->at = malloc(sizeof(int64_t) * (size_t)(s->blocks + 1) * (size_t)(s->n ? s->n : 1));
    if (!s->at) return NO_MEMORY;
    parallel(split_rows, s, (s->n + SPLIT_ROWS - 1) / SPLIT_ROWS, threads);
    return s->bad ? BAD_CSR : OK;
}

/* named for the element type at hand */
#define Vec NAMED(Vec)
#define Mask NAMED(Mask)
#define LANES ((int64_t)(VEC_BYTES / sizeof(REAL)))
#define COMPRESSES (VEC_BYTES == 64 && sizeof(REAL) == 4)
#define LEAST NAMED(least)

#define REAL float
#define INTEGER int32_t
#define NAMED(name) name##_f32
#include "native.c"
#define STORED float
#define OF(name) name##_f32
#include "gathered.h"
#undef STORED
#undef OF

/* bfloat16: the upper half of a float */
typedef uint16_t Bfloats __attribute__((vector_size(VEC_BYTES / 2), aligned(sizeof(uint16_t)), may_alias));
typedef uint32_t Bits __attribute__((vector_size(VEC_BYTES)));
static inline float number_bf16(const uint16_t *x) {
    const uint32_t bits = (uint32_t)*x << 16;
    float wide;
    memcpy(&wide, &bits, sizeof wide);
    return wide;
}
static inline Vec numbers_bf16(const uint16_t *x) { return (Vec)(__builtin_convertvector(*(const Bfloats *)x, Bits) << 16); }
#define STORED uint16_t
#define OF(name) name##_bf16
#include "gathered.h"
#undef STORED
#undef OF
#undef REAL
#undef INTEGER
#undef NAMED

#define REAL double
#define INTEGER int64_t
#define NAMED(name) name##_f64
#include "native.c"
#define STORED double
#define OF(name) name##_f64
#include "gathered.h"

#else /* everything below stands once and is compiled per element type */

typedef REAL NAMED(Vec) __attribute__((vector_size(VEC_BYTES), aligned(sizeof(REAL)), may_alias));
typedef INTEGER NAMED(Mask) __attribute__((vector_size(VEC_BYTES), aligned(sizeof(REAL)), may_alias));
/* of sums: an array of Vec, which may alias anything, stays in memory */
typedef REAL NAMED(Sum) __attribute__((vector_size(VEC_BYTES)));

static inline Vec NAMED(larger)(Vec a, Vec b) {
    const Mask first = (Mask)(a > b);
    return (Vec)(((Mask)a & first) | ((Mask)b & ~first));
}

/* Maximum of len numbers; NaN if one of them is. */
static inline REAL NAMED(top_of)(const REAL *z, int64_t len) {
    REAL top = -INFINITY;
    int nan = 0;
    int64_t j = 0;
    if (len >= 4 * LANES) {
        Vec m0 = *(const Vec *)z, m1 = m0, m2 = m0, m3 = m0;
        Mask bad = {0};
        for (; j + 4 * LANES <= len; j += 4 * LANES) {
            const Vec a = *(const Vec *)(z + j), b = *(const Vec *)(z + j + LANES);
            const Vec c = *(const Vec *)(z + j + 2 * LANES), d = *(const Vec *)(z + j + 3 * LANES);
            bad |= (Mask)(a != a) | (Mask)(b != b) | (Mask)(c != c) | (Mask)(d != d);
            m0 = NAMED(larger)(a, m0);
            m1 = NAMED(larger)(b, m1);
            m2 = NAMED(larger)(c, m2);
            m3 = NAMED(larger)(d, m3);
        }
        m0 = NAMED(larger)(NAMED(larger)(m0, m1), NAMED(larger)(m2, m3));
        for (int64_t l = 0; l < LANES; l++) {
            if (m0[l] > top) top = m0[l];
            nan |= bad[l] != 0;
        }
    }
    for (; j < len; j++) {
        if (z[j] > top) top = z[j];
        nan |= z[j] != z[j];
    }
    return nan ? (REAL)NAN : top;
}

/* keep[j] = 1 where z[j] is not <= limit (a NaN is kept), as eight bytes a word; returns how many. */
static inline int64_t NAMED(mark)(const REAL *z, int64_t len, REAL limit, uint64_t words[SCAN_BLOCK / 8]) {
    uint8_t keep[SCAN_BLOCK];
    if (len == SCAN_BLOCK) {
        for (int j = 0; j < SCAN_BLOCK; j++) keep[j] = !(z[j] <= limit);
    } else {
        memset(keep, 0, SCAN_BLOCK);
        for (int64_t j = 0; j < len; j++) keep[j] = !(z[j] <= limit);
    }
    memcpy(words, keep, SCAN_BLOCK);
    uint64_t sums = 0; /* at most 16 in a byte */
    for (int i = 0; i < SCAN_BLOCK / 8; i++) sums += words[i];
    return (int64_t)((sums * EACH_BYTE) >> 56);
}

/* Write the `found` marked entries of z[0 .. len) and nothing behind them; `first` is the column of z[0]. */
static inline void NAMED(write)(const REAL *z, int64_t len, int64_t first, REAL limit,
                                const uint64_t words[SCAN_BLOCK / 8], int64_t found, int32_t *cols, REAL *vals) {
    int64_t k = 0;
    if (found <= (COMPRESSES ? 2 : 16)) {
        for (int64_t i = 0; k < found; i++)
            for (uint64_t left = words[i]; left; left &= left - 1, k++) {
                const int64_t j = 8 * i + (__builtin_ctzll(left) >> 3);
                cols[k] = (int32_t)(first + j);
                vals[k] = z[j];
            }
        return;
    }
    int64_t j = 0;
#if defined(__AVX512F__)
    if (COMPRESSES)
        for (; j + 16 <= len; j += 16) {
            const __m512 x = _mm512_loadu_ps(z + j);
            const __mmask16 keep = _mm512_cmp_ps_mask(x, _mm512_set1_ps((float)limit), _CMP_NLE_UQ);
            const __m512i at = _mm512_add_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                                _mm512_set1_epi32((int)(first + j)));
            const int count = __builtin_popcount(keep);
            const __mmask16 head = (__mmask16)((1u << count) - 1);
            _mm512_mask_storeu_ps(vals + k, head, _mm512_maskz_compress_ps(keep, x));
            _mm512_mask_storeu_epi32(cols + k, head, _mm512_maskz_compress_epi32(keep, at));
            k += count;
        }
#endif
    for (; k < found && j < len; j++) { /* no branch on the data: a write that is not kept is overwritten by the next */
        cols[k] = (int32_t)(first + j);
        vals[k] = z[j];
        k += !(z[j] <= limit);
    }
}

/* ---- scan: row maxima and the entries above a limit, in one pass over memory ---- */

typedef struct {
    const REAL *z;
    int64_t n, v, ld;
    REAL window;      /* with tops: limit = the number just below top - window, which keeps ties */
    REAL *tops;       /* or NULL: the limits are given */
    REAL *limits;
    int64_t *row_ptr; /* counts first, then their running sum */
    int32_t *cols;    /* scratch, `slot` entries for each task of TASK_ROWS rows */
    REAL *vals;
    int64_t slot;
    uint8_t *stored; /* per task: 1 when its entries are in the scratch, 0 when they were only counted */
    int32_t *out_cols;
    REAL *out_vals;
    _Atomic int failed;
} NAMED(Scan);

static inline REAL NAMED(just_below)(REAL x) {
    return sizeof(REAL) == 4 ? (REAL)nextafterf((float)x, -INFINITY) : (REAL)nextafter((double)x, -INFINITY);
}

static inline int64_t NAMED(least)(int64_t a, int64_t b) { return a < b ? a : b; }

static void NAMED(scan_rows)(void *arg, int64_t task) {
    NAMED(Scan) *s = arg;
    const int64_t blocks = (s->v + SCAN_BLOCK - 1) / SCAN_BLOCK;
    int32_t *cols = s->cols + task * s->slot;
    REAL *vals = s->vals + task * s->slot;
    uint64_t marks[SCAN_BLOCK / 8];
    REAL *tops = s->tops ? malloc(sizeof(REAL) * (size_t)(blocks + 1)) : NULL;
    if (s->tops && !tops) {
        atomic_store(&s->failed, 1);
        return;
    }
    int64_t used = 0;
    int fits = 1;
    for (int64_t i = task * TASK_ROWS; i < LEAST(s->n, (task + 1) * TASK_ROWS); i++) {
        const REAL *z = s->z + i * s->ld;
        if (tops) {
            REAL top = -INFINITY;
            for (int64_t b = 0; b < blocks; b++) {
                const REAL t = tops[b] = NAMED(top_of)(z + b * SCAN_BLOCK, LEAST(SCAN_BLOCK, s->v - b * SCAN_BLOCK));
                top = t > top || t != t ? t : top; /* a NaN stays: nothing is greater than it */
            }
            s->tops[i] = top;
            s->limits[i] = NAMED(just_below)(top - s->window);
        }
        const REAL limit = s->limits[i];
        int64_t count = 0;
        for (int64_t b = 0; b < blocks; b++) {
            const int64_t j = b * SCAN_BLOCK, len = LEAST(SCAN_BLOCK, s->v - j);
            if (tops && tops[b] <= limit) continue;
            const int64_t found = NAMED(mark)(z + j, len, limit, marks);
            if (found == 0) continue;
            fits = fits && used + found <= s->slot; /* from here on this task only counts: pack reads its rows again */
            if (fits) NAMED(write)(z + j, len, j, limit, marks, found, cols + used, vals + used);
            count += found;
            used += found;
        }
        s->row_ptr[i + 1] = count;
    }
    s->stored[task] = (uint8_t)fits;
    free(tops);
}

int NAMED(fenchel_scan)(const REAL *z, int64_t n, int64_t v, int64_t ld, REAL window, REAL *tops, REAL *limits,
                        int64_t *row_ptr, int32_t *cols, REAL *vals, int64_t slot, uint8_t *stored, int threads) {
    NAMED(Scan) s = {z, n, v, ld, window, tops, limits, row_ptr, cols, vals, slot, stored, NULL, NULL, 0};
    row_ptr[0] = 0;
    parallel(NAMED(scan_rows), &s, (n + TASK_ROWS - 1) / TASK_ROWS, threads);
    for (int64_t i = 0; i < n; i++) row_ptr[i + 1] += row_ptr[i];
    return s.failed ? NO_MEMORY : OK;
}

static void NAMED(pack_rows)(void *arg, int64_t task) {
    NAMED(Scan) *s = arg;
    const int64_t first = task * TASK_ROWS, last = LEAST(s->n, first + TASK_ROWS);
    int64_t k = s->row_ptr[first];
    if (s->stored[task]) {
        const size_t count = (size_t)(s->row_ptr[last] - k);
        if (!count) return;
        memcpy(s->out_cols + k, s->cols + task * s->slot, count * sizeof(int32_t));
        memcpy(s->out_vals + k, s->vals + task * s->slot, count * sizeof(REAL));
        return;
    }
    uint64_t marks[SCAN_BLOCK / 8];
    for (int64_t i = first; i < last; i++) {
        const REAL *z = s->z + i * s->ld;
        for (int64_t j = 0; j < s->v; j += SCAN_BLOCK) {
            const int64_t len = LEAST(SCAN_BLOCK, s->v - j), found = NAMED(mark)(z + j, len, s->limits[i], marks);
            if (found > s->row_ptr[last] - k) return; /* someone changed the logits meanwhile: stay inside the output */
            NAMED(write)(z + j, len, j, s->limits[i], marks, found, s->out_cols + k, s->out_vals + k);
            k += found;
        }
    }
}

void NAMED(fenchel_pack)(const REAL *z, int64_t n, int64_t v, int64_t ld, REAL *limits, int64_t *row_ptr, int32_t *cols,
                         REAL *vals, int64_t slot, uint8_t *stored, int32_t *out_cols, REAL *out_vals, int threads) {
    NAMED(Scan) s = {z, n, v, ld, 0, NULL, limits, row_ptr, cols, vals, slot, stored, out_cols, out_vals, 0};
    parallel(NAMED(pack_rows), &s, (n + TASK_ROWS - 1) / TASK_ROWS, threads);
}

/* ---- moments of the positive part of z - tau, in one pass ---- */

typedef struct {
    const REAL *z, *tau;
    int64_t n, v, ld;
    int64_t *count;
    REAL *sum, *squares;
} NAMED(Moments);

/* of (z - best) - tau of one row; in short float sums, added up in double */
static inline void NAMED(row_moments)(const REAL *z, int64_t v, REAL best, REAL tau, int64_t *count_out, double *sum_out,
                                      double *squares_out) {
    double sum = 0, squares = 0;
    int64_t count = 0;
    for (int64_t b = 0; b < v; b += MOMENT_BLOCK) {
        const int64_t end = LEAST(v, b + MOMENT_BLOCK);
        Vec s0 = {0}, s1 = {0}, t0 = {0}, t1 = {0};
        Mask k0 = {0}, k1 = {0};
        int64_t j = b;
        for (; j + 2 * LANES <= end; j += 2 * LANES) {
            const Vec x = (*(const Vec *)(z + j) - best) - tau, y = (*(const Vec *)(z + j + LANES) - best) - tau;
            const Mask out_x = (Mask)(x <= 0), out_y = (Mask)(y <= 0); /* a NaN is not out: it reaches the sums */
            const Vec p = (Vec)((Mask)x & ~out_x), q = (Vec)((Mask)y & ~out_y);
            s0 += p;
            s1 += q;
            t0 += p * p;
            t1 += q * q;
            k0 -= ~out_x;
            k1 -= ~out_y;
        }
        REAL s = 0, t = 0;
        for (int64_t l = 0; l < LANES; l++) {
            s += s0[l] + s1[l];
            t += t0[l] + t1[l];
            count += k0[l] + k1[l];
        }
        for (; j < end; j++) {
            const REAL x = (z[j] - best) - tau;
            if (x <= 0) continue;
            s += x;
            t += x * x;
            count++;
        }
        sum += s;
        squares += t;
    }
    *count_out = count;
    *sum_out = sum;
    *squares_out = squares;
}

static void NAMED(moments_rows)(void *arg, int64_t task) {
    NAMED(Moments) *m = arg;
    for (int64_t i = task * TASK_ROWS; i < LEAST(m->n, (task + 1) * TASK_ROWS); i++) {
        double sum, squares;
        NAMED(row_moments)(m->z + i * m->ld, m->v, 0, m->tau[i], &m->count[i], &sum, &squares);
        m->sum[i] = (REAL)sum;
        m->squares[i] = (REAL)squares;
    }
}

void NAMED(fenchel_moments)(const REAL *z, int64_t n, int64_t v, int64_t ld, const REAL *tau, int64_t *count, REAL *sum,
                            REAL *squares, int threads) {
    NAMED(Moments) m = {z, tau, n, v, ld, count, sum, squares};
    parallel(NAMED(moments_rows), &m, (n + TASK_ROWS - 1) / TASK_ROWS, threads);
}

/* ---- the threshold of a power generator and the entries above it, row by row, while the row sits in cache ----
 *
 * Solves S(top) = q sum_j max((top + z_j - best) / k, 0)^k = 1 for k = 1 or 2 by the solver of solve.py: Newton on the link of S / (q v), which is
 * convex, so that iterates come down to the root from its right, and one on its left leads to its right. What lies above an iterate is copied, and later
 * ones read the copy. A row starts a little to the right of where the one before it ended, and the first of a task from the right end. */

#define MARGIN 1.05
#define WIDE_SHARE 4 /* the row after one with more than v / WIDE_SHARE entries is read in place */

typedef struct {
    const REAL *z;
    int64_t n, v, ld, k;
    double q, tolerance;
    REAL *best, *top, *mass, *spread;
    int64_t *support;
    /* entries that are not <= best - top, as in Scan; a task that has no place for its entries stores none */
    int64_t *row_ptr;
    int32_t *cols;
    REAL *vals;
    int64_t slot;
    uint8_t *stored;
    _Atomic int failed;
} NAMED(Support);

/* a row, the maxima of its blocks, and what was copied of it: all entries that are not <= best - above */
typedef struct {
    const REAL *z;
    int64_t v, count;
    REAL best, *tops, *vals;
    int32_t *cols;
    double above;
} NAMED(Candidates);

static void NAMED(copy_above)(NAMED(Candidates) *c, double top) {
    const REAL limit = NAMED(just_below)(c->best - (REAL)top);
    uint64_t marks[SCAN_BLOCK / 8];
    c->count = 0;
    c->above = top;
    for (int64_t b = 0, j = 0; j < c->v; b++, j += SCAN_BLOCK) {
        if (c->tops[b] <= limit) continue;
        const int64_t len = LEAST(SCAN_BLOCK, c->v - j), found = NAMED(mark)(c->z + j, len, limit, marks);
        NAMED(write)(c->z + j, len, j, limit, marks, found, c->cols + c->count, c->vals + c->count);
        c->count += found;
    }
}

/* Solves a row; in_place: by reading the row itself. */
static void NAMED(solve_row)(const NAMED(Support) *m, NAMED(Candidates) *c, int64_t i, double top, int in_place) {
    const double eps = sizeof(REAL) == 4 ? 0x1p-23 : 0x1p-52;
    const double high = m->k == 1 ? 1 / m->q : 2 / sqrt(m->q), low = m->k == 1 ? high / (double)m->v : high / sqrt((double)m->v);
    double mass = NAN, spread = NAN;
    int64_t support = 0;
    c->above = in_place ? INFINITY : -1;
    for (int step = 0; step < 64; step++) {
        double sum, squares;
        top = (double)(REAL)(top > high ? high : top < low ? low : top);
        if (top > c->above) NAMED(copy_above)(c, top);
        NAMED(row_moments)(in_place ? c->z : c->vals, in_place ? c->v : c->count, c->best, (REAL)-top, &support, &sum, &squares);
        mass = m->q * (m->k == 1 ? sum : squares / 4);
        spread = m->q * (m->k == 1 ? (double)support : sum / 2);
        if (!(fabs(mass - 1) > m->tolerance)) break; /* a NaN row stops */
        const double move = (m->k == 1 ? mass - 1 : 2 * (sqrt(mass) - 1) * sqrt(mass)) / spread;
        if (fabs(move) <= eps * top) break;
        top -= move;
    }
    m->top[i] = (REAL)top;
    m->mass[i] = (REAL)mass;
    m->spread[i] = (REAL)spread;
    m->support[i] = support;
}

static void NAMED(support_rows)(void *arg, int64_t task) {
    NAMED(Support) *m = arg;
    const int64_t blocks = (m->v + SCAN_BLOCK - 1) / SCAN_BLOCK;
    NAMED(Candidates) c = {NULL, m->v, 0, 0, malloc(sizeof(REAL) * (size_t)blocks), malloc(sizeof(REAL) * (size_t)m->v), malloc(sizeof(int32_t) * (size_t)m->v), 0};
    if (!c.tops || !c.vals || !c.cols) atomic_store(&m->failed, 1);
    double start = INFINITY;
    int64_t used = 0;
    int fits = 1, in_place = 0;
    for (int64_t i = task * TASK_ROWS; i < LEAST(m->n, (task + 1) * TASK_ROWS) && c.tops && c.vals && c.cols; i++) {
        c.z = m->z + i * m->ld;
        c.best = -INFINITY;
        for (int64_t b = 0; b < blocks; b++) {
            const REAL t = c.tops[b] = NAMED(top_of)(c.z + b * SCAN_BLOCK, LEAST(SCAN_BLOCK, m->v - b * SCAN_BLOCK));
            c.best = t > c.best || t != t ? t : c.best; /* a NaN stays: nothing is greater than it */
        }
        m->best[i] = c.best;
        if (c.best == -INFINITY) c.best = NAN; /* a row without any class has no probabilities */
        NAMED(solve_row)(m, &c, i, start, in_place);
        start = m->mass[i] == m->mass[i] ? MARGIN * (double)m->top[i] : INFINITY;
        fits = fits && !in_place && used + m->support[i] <= m->slot;
        int64_t count = 0;
        if (fits) {
            const REAL limit = NAMED(just_below)(c.best - m->top[i]);
            for (int64_t k = 0; k < c.count && used + count < m->slot; k++) {
                m->cols[task * m->slot + used + count] = c.cols[k];
                m->vals[task * m->slot + used + count] = c.vals[k];
                count += !(c.vals[k] <= limit);
            }
            fits = used + count < m->slot;
            used += count;
        }
        m->row_ptr[i + 1] = count;
        in_place = m->support[i] > m->v / WIDE_SHARE;
    }
    m->stored[task] = (uint8_t)fits;
    free(c.tops), free(c.vals), free(c.cols);
}

int NAMED(fenchel_support)(const REAL *z, int64_t n, int64_t v, int64_t ld, int64_t k, double q, double tolerance, REAL *best, REAL *top, REAL *mass,
                           REAL *spread, int64_t *support, int64_t *row_ptr, int32_t *cols, REAL *vals, int64_t slot, uint8_t *stored, int threads) {
    NAMED(Support) m = {z, n, v, ld, k, q, tolerance, best, top, mass, spread, support, row_ptr, cols, vals, slot, stored, 0};
    row_ptr[0] = 0;
    parallel(NAMED(support_rows), &m, (n + TASK_ROWS - 1) / TASK_ROWS, threads);
    for (int64_t i = 0; i < n; i++) row_ptr[i + 1] += row_ptr[i];
    return m.failed ? NO_MEMORY : OK;
}

/* ---- for gathered.h ---- */

/* a * b + c, rounded once where there is such an instruction. Left to itself, a compiler may vectorise the products of a long
   run and not those of a short one, and how a row is cut into runs depends on the number of threads. */
static inline REAL NAMED(multiply_add)(REAL a, REAL b, REAL c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
    return sizeof(REAL) == 4 ? (REAL)__builtin_fmaf((float)a, (float)b, (float)c) : (REAL)__builtin_fma(a, b, c);
#else
    return a * b + c;
#endif
}

/* one number, and LANES of them, of a matrix of REAL */
static inline REAL NAMED(number)(const REAL *x) { return *x; }
static inline Vec NAMED(numbers)(const REAL *x) { return *(const Vec *)x; }

#endif

/* The three products of a tile of logits: rows of hidden states times a weight, and a gradient multiplied back.
 *
 * Blocks of the operands are packed into panels that a core reads in order from its cache, and a kernel keeps MR by NR sums in registers (Goto and van de
 * Geijn 2008). Two things are those of heads: the few rows of hidden states are packed once for all of the weight, and a block of the gradient makes its
 * share of both gradients while it is in cache. Sums are made in an order that shapes alone determine, not the number of threads.
 *
 * All matrices have contiguous rows; `x, ldx` is a matrix and the step from one row to the next. REAL, INTEGER and, for hidden states and a weight in bfloat16,
 * HALF are defined by the includer. */
#include <stdlib.h>

#include "panel.h"
#include "threads.h"

#define NR (2 * (int)LANES)
/* as many sums as the registers hold beside two of a panel and one number */
#if VEC_BYTES == 64
enum { MR = 14 };
#else
enum { MR = 6 };
#endif
/* Terms of a sum that are added before the result is touched, and columns of logits that a task works on: a panel of NR by DEPTH is half the first-level
   cache in single precision. PARTS shares of the vocabulary, or as many as SHARED bytes allow, each have gradients of the hidden states of their own. */
enum { DEPTH = TERMS * 1024 / sizeof(REAL), BLOCK = TERMS * 256, PARTS = 8, SHARED = 8 << 20 };

static REAL *floats(int64_t n) { return aligned_alloc(64, (size_t)padded((n + 1) * (int64_t)sizeof(REAL), 64)); }

static Unit *panels_of(int64_t n) { return (Unit *)floats(n); }

/* c[MR, NR] = or += a[k, MR]' b[k, NR] */
static inline __attribute__((always_inline)) void kernel(int64_t k, const Unit *restrict a, const Unit *restrict b, REAL *restrict c, int64_t ldc, int add) {
    Sum s[MR][2];
    _Pragma("GCC unroll 14") for (int i = 0; i < MR; i++) {
        s[i][0] = s[i][1] = (Sum){0};
        __builtin_prefetch(c + i * ldc, 1), __builtin_prefetch(c + i * ldc + NR - 1, 1);
    }
    _Pragma("GCC unroll 4") for (int64_t p = 0; p < k; p++, a += MR, b += NR) {
        const Units b0 = *(const Units *)b, b1 = *(const Units *)(b + LANES);
        __builtin_prefetch(a + 16 * MR);
        _Pragma("GCC unroll 14") for (int i = 0; i < MR; i++) s[i][0] = plus(s[i][0], a[i], b0), s[i][1] = plus(s[i][1], a[i], b1);
    }
    _Pragma("GCC unroll 14") for (int i = 0; i < MR; i++) {
        Vec *const to = (Vec *)(c + i * ldc);
        if (add) to[0] += s[i][0], to[1] += s[i][1];
        else to[0] = s[i][0], to[1] = s[i][1];
    }
}

/* the same for the last rows and columns, which may be fewer; panels are padded */
static void kernel_at_edge(int64_t k, const Unit *a, const Unit *b, REAL *c, int64_t ldc, int64_t m, int64_t n, int add) {
    REAL all[MR * NR] __attribute__((aligned(64)));
    kernel(k, a, b, all, NR, 0);
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) c[i * ldc + j] = all[i * NR + j] + (add ? c[i * ldc + j] : 0);
}

/* c[m, n] = or += a b, both packed, of k units */
static void multiply(int64_t k, const Unit *a, const Unit *b, REAL *c, int64_t ldc, int64_t m, int64_t n, int add) {
    for (int64_t j = 0; j < n; j += NR)
        for (int64_t i = 0; i < m; i += MR) {
            const Unit *rows = a + i * k, *columns = b + j * k;
            REAL *to = c + i * ldc + j;
            if (i + MR > m || j + NR > n) kernel_at_edge(k, rows, columns, to, ldc, least(MR, m - i), least(NR, n - j), add);
            else if (add) kernel(k, rows, columns, to, ldc, 1);
            else kernel(k, rows, columns, to, ldc, 0);
        }
}

/* ---- logits [n, v] = hidden [n, d] weight [v, d]' ---- */

typedef struct {
    const Entry *hidden, *weight;
    REAL *logits;
    Unit *packed;
    int64_t ld_hidden, ld_weight, ld_logits, n, d, v;
    _Atomic int failed;
} Logits;

static void pack_hidden(void *arg, int64_t task) {
    const Logits *s = arg;
    const int64_t k = task * DEPTH;
    pack_rows(MR, entries(s->hidden + k, s->ld_hidden), s->n, least(DEPTH, s->d - k), s->packed + padded(s->n, MR) * units(k));
}

static void logits_of(void *arg, int64_t task) {
    Logits *s = arg;
    const int64_t j = task * BLOCK, columns = least(BLOCK, s->v - j);
    Unit *panels = panels_of(units(DEPTH) * padded(BLOCK, NR));
    if (!panels) {
        atomic_store(&s->failed, 1);
        return;
    }
    for (int64_t k = 0; k < s->d; k += DEPTH) {
        const int64_t depth = least(DEPTH, s->d - k);
        pack_rows(NR, entries(s->weight + j * s->ld_weight + k, s->ld_weight), columns, depth, panels);
        multiply(units(depth), s->packed + padded(s->n, MR) * units(k), panels, s->logits + j, s->ld_logits, s->n, columns, k > 0);
    }
    free(panels);
}

int fenchel_logits(const Entry *hidden, int64_t ld_hidden, const Entry *weight, int64_t ld_weight, REAL *logits, int64_t ld_logits, int64_t n,
                   int64_t d, int64_t v, int threads) {
    Logits s = {hidden, weight, logits, panels_of(padded(n, MR) * units(d)), ld_hidden, ld_weight, ld_logits, n, d, v, 0};
    if (!s.packed) return 1;
    parallel(pack_hidden, &s, parts_of(d, DEPTH), threads);
    parallel(logits_of, &s, parts_of(v, BLOCK), threads);
    free(s.packed);
    return s.failed;
}

/* ---- d_hidden [n, d] = grad [n, v] weight [v, d]; d_weight [v, d] = or += grad' hidden [n, d]; either may be absent ---- */

typedef struct {
    const REAL *grad;
    const Entry *hidden, *weight;
    REAL *d_hidden, *d_weight, *sums;
    Unit *packed;
    int64_t ld_grad, ld_hidden, ld_weight, ld_d_hidden, ld_d_weight, n, d, v;
    int add;
    /* shares of the vocabulary, and of the features, `wide` of them in each */
    int64_t parts, wide;
    _Atomic int failed;
} Gradients;

/* the rows [k, k + DEPTH) of hidden: they end at padded(d, NR) units(k + DEPTH) of what is packed */
static void pack_features(void *arg, int64_t task) {
    const Gradients *s = arg;
    const int64_t k = task * DEPTH;
    pack_columns(NR, entries(s->hidden + k * s->ld_hidden, s->ld_hidden), least(DEPTH, s->n - k), s->d, s->packed + padded(s->d, NR) * units(k));
}

static void gradients_of(void *arg, int64_t task) {
    Gradients *s = arg;
    const int64_t part = task % s->parts, f = task / s->parts * s->wide, features = least(s->wide, s->d - f), blocks = parts_of(s->v, BLOCK);
    const int64_t first = blocks * part / s->parts, last = blocks * (part + 1) / s->parts;
    Unit *rows = panels_of(padded(s->n, MR) * units(BLOCK)), *columns = panels_of(units(BLOCK) * padded(features, NR));
    Unit *down = panels_of(units(DEPTH) * padded(BLOCK, MR));
    if (!rows || !columns || !down) atomic_store(&s->failed, 1);
    for (int64_t block = first; block < last && rows && columns && down; block++) {
        const int64_t j = block * BLOCK, width = least(BLOCK, s->v - j);
        const REAL *grad = s->grad + j;
        for (int64_t k = 0; s->d_weight && k < s->n; k += DEPTH) {
            const int64_t depth = least(DEPTH, s->n - k);
            const Unit *hidden = s->packed + padded(s->d, NR) * units(k) + f * units(depth);
            pack_columns(MR, reals(grad + k * s->ld_grad, s->ld_grad), depth, width, down);
            multiply(units(depth), down, hidden, s->d_weight + j * s->ld_d_weight + f, s->ld_d_weight, width, features, k > 0 || s->add);
        }
        if (!s->d_hidden) continue;
        pack_rows(MR, reals(grad, s->ld_grad), s->n, width, rows);
        pack_columns(NR, entries(s->weight + j * s->ld_weight + f, s->ld_weight), width, features, columns);
        multiply(units(width), rows, columns, s->sums + part * s->n * s->d + f, s->d, s->n, features, block > first);
    }
    free(rows), free(columns), free(down);
}

static void add_parts(void *arg, int64_t row) {
    const Gradients *s = arg;
    for (int64_t j = 0; j < s->d; j++) {
        REAL total = 0;
        for (int64_t part = 0; part < s->parts; part++) total += s->sums[(part * s->n + row) * s->d + j];
        s->d_hidden[row * s->ld_d_hidden + j] = total;
    }
}

int fenchel_gradients(const REAL *grad, int64_t ld_grad, const Entry *hidden, int64_t ld_hidden, const Entry *weight, int64_t ld_weight, REAL *d_hidden,
                      int64_t ld_d_hidden, REAL *d_weight, int64_t ld_d_weight, int add, int64_t n, int64_t d, int64_t v, int threads) {
    const int64_t fit = SHARED / (n * d * (int64_t)sizeof(REAL) + 1), parts = least(least(PARTS, parts_of(v, BLOCK)), fit < 1 ? 1 : fit);
    /* features are shared out where there are more threads than parts: that changes no sum */
    const int64_t shares = parts * parts_of(threads, parts) > PARTS ? parts_of(threads, parts) : PARTS / parts;
    const int64_t wide = padded(parts_of(d, shares) < 4 * NR ? 4 * NR : parts_of(d, shares), NR);
    Gradients s = {grad, hidden, weight, d_hidden, d_weight, NULL, NULL, ld_grad, ld_hidden, ld_weight, ld_d_hidden, ld_d_weight, n, d, v, add, parts, wide, 0};
    s.packed = d_weight ? panels_of(padded(d, NR) * units(n)) : NULL;
    s.sums = d_hidden ? floats(parts * n * d) : NULL;
    s.failed = (d_weight && !s.packed) || (d_hidden && !s.sums);
    if (!s.failed) {
        if (d_weight) parallel(pack_features, &s, parts_of(n, DEPTH), threads);
        parallel(gradients_of, &s, parts * parts_of(d, wide), threads);
        if (d_hidden && !s.failed) parallel(add_parts, &s, n, threads);
    }
    free(s.packed), free(s.sums);
    return s.failed;
}

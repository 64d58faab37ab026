/* Gathered products: CSR rows of REAL, times a matrix of STORED that is widened as it is read; sums are REAL.
 *
 * Included by native.c for each STORED. OF(name) belongs to that type, NAMED(name) to REAL: panels are of REAL,
 * so what reads them are the gathers of the inclusion in which STORED is REAL. number and numbers read the matrix. */

/* out[0 .. N*LANES) += sum_k val[k] * x[idx[k]*ld ...], the accumulators in registers. */
#define GATHER(N)                                                                                                     \
    static void OF(gather##N)(REAL *out, const STORED *x, int64_t origin, int64_t ld, const int32_t *idx,             \
                           const REAL *val, int64_t count) {                                                          \
        NAMED(Sum) acc[N];                                                                                            \
        _Pragma("GCC unroll 16") for (int a = 0; a < N; a++) acc[a] = *(const Vec *)(out + a * LANES);                \
        for (int64_t k = 0; k < count; k++) {                                                                         \
            const STORED *row = x + (idx[k] - origin) * ld;                                                           \
            const REAL p = val[k];                                                                                    \
            _Pragma("GCC unroll 16") for (int a = 0; a < N; a++)                                                      \
                acc[a] += p * OF(numbers)(row + a * LANES);                                                           \
        }                                                                                                             \
        _Pragma("GCC unroll 16") for (int a = 0; a < N; a++) *(Vec *)(out + a * LANES) = acc[a];                      \
    }
GATHER(8)
GATHER(4)
GATHER(2)
GATHER(1)
#undef GATHER

typedef void (*OF(Gather))(REAL *, const STORED *, int64_t, int64_t, const int32_t *, const REAL *, int64_t);

static void OF(gather_one)(REAL *out, const STORED *x, int64_t origin, int64_t ld, const int32_t *idx, const REAL *val,
                           int64_t count) {
    REAL sum = *out;
    for (int64_t k = 0; k < count; k++)
        sum = NAMED(multiply_add)(val[k], OF(number)(x + (idx[k] - origin) * ld), sum);
    *out = sum;
}

/* The widest kernel for `left` columns, and how many columns it does. */
static inline OF(Gather) OF(kernel)(int64_t left, int64_t *columns) {
    const int64_t vectors = left / LANES;
    *columns = LANES * (vectors >= WIDE ? WIDE : vectors >= 4 ? 4 : vectors >= 2 ? 2 : 1);
    if (vectors >= 8) return OF(gather8);
    if (vectors >= 4) return OF(gather4);
    if (vectors >= 2) return OF(gather2);
    if (vectors >= 1) return OF(gather1);
    *columns = 1;
    return OF(gather_one);
}

typedef struct {
    const int64_t *row_ptr;
    const int32_t *cols;
    const REAL *vals;
    const STORED *x; /* the weight [v, d], or the hidden states [n, d] */
    REAL *out;       /* the hidden states' gradient [n, d], or the weight's [v, d] */
    int64_t n, v, d;
    int64_t task_rows;
    const Split *split;
    REAL *panels; /* the hidden states slice by slice, or NULL */
    _Atomic int failed;
} OF(Product);

/* out[j ..] += sum_k val[k] * x[idx[k]][j ..] for all d columns, slice after slice. */
static inline void OF(gather_row)(const OF(Product) *m, REAL *out, const int32_t *idx, const REAL *val,
                                  int64_t count) {
    for (int64_t j = 0, w; count && j < m->d; j += w) {
        const OF(Gather) gather = OF(kernel)(m->d - j, &w);
        gather(out + j, m->x + j, 0, m->d, idx, val, count);
    }
}

/* Columns j .. j+w of `count` rows, made contiguous, and REAL: rows a power of two apart compete for the same cache lines. */
static void OF(pack_panel)(REAL *restrict panel, const STORED *restrict x, int64_t d, int64_t count, int64_t j,
                           int64_t w) {
    for (int64_t i = 0; i < count; i++)
        for (int64_t k = 0; k < w; k++) panel[i * w + k] = OF(number)(x + i * d + j + k);
}

/* Few entries: whole rows of the weight, block after block. */
static void OF(times_rows)(void *arg, int64_t task) {
    OF(Product) *m = arg;
    const Split *s = m->split;
    for (int64_t b = 0; b < s->blocks; b++) {
        const int64_t *begin = s->at + b * m->n, *end = begin + m->n;
        for (int64_t i = task * m->task_rows; i < LEAST(m->n, (task + 1) * m->task_rows); i++)
            OF(gather_row)(m, m->out + i * m->d, m->cols + begin[i], m->vals + begin[i], end[i] - begin[i]);
    }
}

/* Many: a packed slice of a block of the weight stays in the second-level cache while the task's rows pass over it. */
static void OF(times_rows_packed)(void *arg, int64_t task) {
    OF(Product) *m = arg;
    const Split *s = m->split;
    const int64_t first = task * m->task_rows, rows = LEAST(m->n - first, m->task_rows);
    REAL *panel = aligned_alloc(64, sizeof(REAL) * (size_t)(WIDE * LANES * s->width));
    REAL *sums = aligned_alloc(64, sizeof(REAL) * (size_t)(WIDE * LANES * rows));
    if (!panel || !sums) atomic_store(&m->failed, 1);
    for (int64_t j = 0, w; panel && sums && j < m->d; j += w) {
        const NAMED(Gather) gather = NAMED(kernel)(m->d - j, &w);
        NAMED(pack_panel)(sums, m->out + first * m->d, m->d, rows, j, w);
        for (int64_t b = 0; b < s->blocks; b++) {
            const int64_t *begin = s->at + b * m->n, *end = begin + m->n, c = b * s->width;
            OF(pack_panel)(panel, m->x + c * m->d, m->d, LEAST(s->width, m->v - c), j, w);
            for (int64_t i = first; i < first + rows; i++)
                if (begin[i] < end[i])
                    gather(sums + (i - first) * w, panel, c, w, m->cols + begin[i], m->vals + begin[i],
                           end[i] - begin[i]);
        }
        for (int64_t i = 0; i < rows; i++)
            memcpy(m->out + (first + i) * m->d + j, sums + i * w, (size_t)w * sizeof(REAL));
    }
    free(panel);
    free(sums);
}

int OF(fenchel_rows_times)(const int64_t *row_ptr, const int32_t *cols, const REAL *vals, int64_t nnz, const STORED *w,
                           REAL *out, int64_t n, int64_t v, int64_t d, int threads) {
    const int64_t task_rows = LEAST(1024, (n + threads - 1) / threads + 1);
    const double density = (double)nnz / ((double)n * (double)v + 1);
    const int packed = PACK_AT <= density * (double)task_rows;
    const int64_t block = packed || density > 0.003 ? BLOCK : SPARSE_BLOCK;
    Split s = {row_ptr, cols, n, v, block, 0, NULL, 0};
    int status = split(&s, nnz, threads);
    if (status == OK) {
        OF(Product) m = {row_ptr, cols, vals, w, out, n, v, d, task_rows, &s, NULL, 0};
        parallel(packed ? OF(times_rows_packed) : OF(times_rows), &m, (n + task_rows - 1) / task_rows, threads);
        if (m.failed) status = NO_MEMORY;
    }
    free(s.at);
    return status;
}

static void OF(transpose_block)(void *arg, int64_t block) {
    OF(Product) *m = arg;
    const Split *s = m->split;
    const int64_t first = block * s->width, width = LEAST(s->width, m->v - first);
    const int64_t *begin = s->at + block * m->n, *end = begin + m->n;
    int64_t room = 0; /* the largest number of entries in one block of rows */
    for (int64_t r = 0; r < m->n; r += SORT_ROWS) {
        int64_t entries = 0;
        for (int64_t i = r; i < LEAST(m->n, r + SORT_ROWS); i++) entries += end[i] - begin[i];
        if (entries > room) room = entries;
    }
    if (room == 0) return;
    int64_t *at = malloc(sizeof(int64_t) * (size_t)(width + 2));
    int32_t *rows = malloc(sizeof(int32_t) * (size_t)room);
    REAL *vals = malloc(sizeof(REAL) * (size_t)room);
    if (!at || !rows || !vals) {
        atomic_store(&m->failed, 1);
        goto done;
    }
    for (int64_t r = 0; r < m->n; r += SORT_ROWS) {
        const int64_t stop = LEAST(m->n, r + SORT_ROWS);
        /* Counting sort: at[c+1] moves from the start of column c to its end, so that at[c] .. at[c+1] holds it. */
        memset(at, 0, sizeof(int64_t) * (size_t)(width + 2));
        for (int64_t i = r; i < stop; i++)
            for (int64_t k = begin[i]; k < end[i]; k++) at[m->cols[k] - first + 2]++;
        for (int64_t c = 0; c < width; c++) at[c + 2] += at[c + 1];
        for (int64_t i = r; i < stop; i++)
            for (int64_t k = begin[i]; k < end[i]; k++) {
                const int64_t place = at[m->cols[k] - first + 1]++;
                rows[place] = (int32_t)i;
                vals[place] = m->vals[k];
            }
        REAL *out = m->out + first * m->d;
        if (!m->panels) {
            for (int64_t c = 0; c < width; c++)
                OF(gather_row)(m, out + c * m->d, rows + at[c], vals + at[c], at[c + 1] - at[c]);
            continue;
        }
        for (int64_t j = 0, w; j < m->d; j += w) {
            const NAMED(Gather) gather = NAMED(kernel)(m->d - j, &w);
            for (int64_t c = 0; c < width; c++)
                if (at[c] < at[c + 1])
                    gather(out + c * m->d + j, m->panels + m->n * j, 0, w, rows + at[c], vals + at[c],
                           at[c + 1] - at[c]);
        }
    }
done:
    free(at);
    free(rows);
    free(vals);
}

int OF(fenchel_transpose_times)(const int64_t *row_ptr, const int32_t *cols, const REAL *vals, int64_t nnz,
                                const STORED *h, REAL *out, int64_t n, int64_t v, int64_t d, int threads) {
    const double density = (double)nnz / ((double)n * (double)v + 1);
    const int packed = PACK_AT <= density * (double)LEAST(n, SORT_ROWS);
    const int64_t most = packed ? PACKED_COLUMNS : BLOCK;
    const int64_t share = v / (8 * threads); /* several blocks a thread: frequent columns stand together */
    Split s = {row_ptr, cols, n, v, share > most ? most : share < LEAST_BLOCK ? LEAST_BLOCK : share, 0, NULL, 0};
    int status = split(&s, nnz, threads);
    OF(Product) m = {row_ptr, cols, vals, h, out, n, v, d, 0, &s, NULL, 0};
    if (status == OK && packed) {
        m.panels = malloc(sizeof(REAL) * (size_t)n * (size_t)d);
        if (!m.panels) status = NO_MEMORY;
        for (int64_t j = 0, w; m.panels && j < d; j += w) {
            (void)NAMED(kernel)(d - j, &w);
            OF(pack_panel)(m.panels + n * j, h, d, n, j, w);
        }
    }
    if (status == OK) parallel(OF(transpose_block), &m, s.blocks, threads);
    if (m.failed) status = NO_MEMORY;
    free(m.panels);
    free(s.at);
    return status;
}

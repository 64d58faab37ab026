/* Runs a row program over the rows of a call, and solves for the threshold of each. Included behind vector.h and the programs. */
#include "threads.h"

enum { GROUP = 4, PADDING = 80, EVALUATIONS = 64 };

typedef void (*Row)(int64_t v, REAL *const *in, REAL *const *store, double *out, REAL *scratch);

typedef struct {
    Row row;
    int64_t n, v, ins, stores, outs, scratch;
    REAL *const *in, *const *store;
    const int64_t *in_step, *store_step; /* from one row to the next */
    double *out;                         /* [n, outs] */
    _Atomic int failed;
} Run;

static REAL *scratch_rows(int64_t rows, int64_t v) { return malloc((size_t)(rows * (v + PADDING) + 1) * sizeof(REAL)); }

static void run_rows(void *arg, int64_t task) {
    Run *r = arg;
    REAL *in[r->ins + 1], *store[r->stores + 1], *scratch = scratch_rows(r->scratch, r->v);
    if (!scratch) {
        atomic_store(&r->failed, 1);
        return;
    }
    for (int64_t i = task * GROUP; i < r->n && i < (task + 1) * GROUP; i++) {
        for (int64_t k = 0; k < r->ins; k++) in[k] = r->in[k] + i * r->in_step[k];
        for (int64_t k = 0; k < r->stores; k++) store[k] = r->store[k] + i * r->store_step[k];
        r->row(r->v, in, store, r->out + i * r->outs, scratch);
    }
    free(scratch);
}

static int run(Row row, int64_t n, int64_t v, int64_t ins, REAL *const *in, const int64_t *in_step, int64_t stores,
               REAL *const *store, const int64_t *store_step, int64_t outs, double *out, int64_t scratch, int threads) {
    Run r = {row, n, v, ins, stores, outs, scratch, in, store, in_step, store_step, out, 0};
    parallel(run_rows, &r, (n + GROUP - 1) / GROUP, threads);
    return r.failed;
}

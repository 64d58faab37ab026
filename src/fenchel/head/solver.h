/* The threshold of each row by the solver of solve.py, while the row lies in cache. Included behind rows.h, with the functions of a generator before it:
 * the row program sums (S, dS/dtop and the support at `top`) and link, unlink and spread_of of one number. */

typedef struct {
    const REAL *d, *q;
    int64_t n, v, d_step, q_step; /* from one row to the next */
    int each;                     /* q has an entry per token; else one number */
    int sparse;
    double tolerance, edge;
    REAL *top, *mass, *spread;
    int64_t *support;
    _Atomic int failed;
} Solve;

static double between(double low, double high) {
    const double middle = link_of((log(unlink_of(low)) + log(unlink_of(high))) / 2);
    return middle > low && middle < high ? middle : (low + high) / 2;
}

/* start: where to begin, if it is inside the row's bracket: the rows of a batch are alike, and a neighbour's threshold saves some passes */
static double solve_row(const Solve *s, int64_t i, double start, REAL *scratch) {
    const double eps = SINGLE ? 0x1p-23 : 0x1p-52;
    const REAL *d = s->d + i * s->d_step, *q = s->q + i * s->q_step;
    REAL *near_d = scratch, *near_q = scratch + s->v + PADDING;
    int64_t v = s->v;
    double total_q = s->each ? 0 : (double)*q * (double)v, best_q = (double)*q;
    if (s->each) {
        int64_t best = 0;
        for (int64_t j = 0; j < v; j++) {
            total_q += (double)q[j];
            if (d[j] < d[best]) best = j;
        }
        best_q = (double)q[best];
    }
    double low = link_of(-log(total_q)), high = link_of(-log(best_q)), found[3];
    const double target = low;
    double top = start > low && start < high ? start : high;
    for (int step = 0; step < EVALUATIONS; step++) {
        REAL at = (REAL)top;
        REAL *const in[3] = {(REAL *)d, &at, (REAL *)q};
        sums(v, in, NULL, found, NULL);
        top = (double)at;
        const double mass = found[0], miss = fabs(mass - 1), average = mass / total_q;
        if (mass >= 1) high = top < high ? top : high;
        else low = top > low ? top : low;
        const double move = (link_of(log(average)) - target) * (total_q * spread_of(average) / found[1]);
        const double rounding = 2 * eps * fabs(top);
        if (!(miss > s->tolerance) || high - low <= rounding || (fabs(move) <= rounding && miss <= 1e3 * s->tolerance)) break;
        const double next = top - move;
        top = next >= low && next <= high && next != top ? next : between(low, high);
        if (s->sparse && found[2] * 4 <= (double)v) {
            /* what lies below the support of an iterate never comes back */
            const double window = high - s->edge;
            int64_t kept = 0;
            for (int64_t j = 0; j < v; j++) {
                near_d[kept] = d[j];
                if (s->each) near_q[kept] = q[j];
                kept += (double)d[j] < window;
            }
            d = near_d;
            q = s->each ? near_q : q;
            v = kept;
        }
    }
    s->top[i] = (REAL)top;
    s->mass[i] = (REAL)found[0];
    s->spread[i] = (REAL)found[1];
    s->support[i] = (int64_t)found[2];
    return top;
}

static void solve_rows(void *arg, int64_t task) {
    Solve *s = arg;
    REAL *scratch = scratch_rows(s->sparse ? 2 : 0, s->v);
    if (!scratch) {
        atomic_store(&s->failed, 1);
        return;
    }
    double start = NAN;
    for (int64_t i = task * GROUP; i < s->n && i < (task + 1) * GROUP; i++) start = solve_row(s, i, start, scratch);
    free(scratch);
}

int fenchel_solve(const REAL *d, const REAL *q, int64_t n, int64_t v, int64_t d_step, int64_t q_step, int each, int sparse,
                  double tolerance, double edge, REAL *top, REAL *mass, REAL *spread, int64_t *support, int threads) {
    Solve s = {d, q, n, v, d_step, q_step, each, sparse, tolerance, edge, top, mass, spread, support, 0};
    parallel(solve_rows, &s, (n + GROUP - 1) / GROUP, threads);
    return s.failed;
}

/* Tasks on threads: they are drawn from a counter, so that a busy core takes fewer of them.
 *
 * The threads are those of the OpenMP library that torch has loaded, where there is one. After torch's own work they spin for some milliseconds, waiting for more; a thread
 * of ours would share its core with one of them for that long. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>

enum { MAX_THREADS = 256 };

typedef struct {
    void (*run)(void *job, int64_t task);
    void *job;
    int64_t tasks;
    _Atomic int64_t next;
} Team;

static void draw(void *arg) {
    Team *team = arg;
    for (int64_t task; (task = atomic_fetch_add(&team->next, 1)) < team->tasks;) team->run(team->job, task);
}

static void *draw_thread(void *arg) {
    draw(arg);
    return NULL;
}

/* GOMP_parallel(function, argument, threads, flags): a parallel region of GNU's library, which others offer under its name */
typedef void (*Region)(void (*)(void *), void *, unsigned, unsigned);

static Region region(void) {
    static _Atomic(void *) found;
    static _Atomic int sought;
    if (!atomic_load(&sought)) {
        atomic_store(&found, dlsym(RTLD_DEFAULT, "GOMP_parallel"));
        atomic_store(&sought, 1);
    }
    return (Region)atomic_load(&found);
}

static void parallel(void (*run)(void *, int64_t), void *job, int64_t tasks, int threads) {
    Team team = {run, job, tasks, 0};
    if (threads > tasks) threads = (int)tasks;
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    if (threads > 1 && region()) {
        region()(draw, &team, (unsigned)threads, 0);
        return;
    }
    pthread_t helpers[MAX_THREADS];
    int started = 0;
    /* A helper that cannot be started is no error: the others draw its tasks. */
    while (started + 1 < threads && !pthread_create(&helpers[started], NULL, draw_thread, &team)) started++;
    draw(&team);
    while (started) pthread_join(helpers[--started], NULL);
}

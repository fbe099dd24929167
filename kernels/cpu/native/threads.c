/* Threads that help and are never waited for: whoever calls does the work itself, and others take pieces of it as they wake.
 * On a busy machine a helper that gets no core costs nothing, where a barrier costs a time slice.
 */

#define _GNU_SOURCE
#include <immintrin.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "penstock.h"

enum { MOST_HELPERS = 255 };
/* How long a helper watches for more before it sleeps: longer than what lies between two products of one layer. */
enum { SPINS = 2000 };
/* How long the caller watches for a helper's last piece before it offers its core. */
enum { PATIENCE = 4000 };

/* Each thread has a share of a job, neighbouring pieces, and helps with the others' when it is through. One word says which job
 * it is and which pieces are left, so that a helper takes a piece of the job that it knows or of none. What else a job is may be
 * read before taking: it does not change while a piece of it is left. */
#define JOB(left) ((left) >> 40)
#define FIRST(left) ((long)((left) >> 20 & 0xfffff))
#define STOP(left) ((long)((left) & 0xfffff))
#define LEFT(job, first, stop) ((job) << 40 | (uint64_t)(first) << 20 | (uint64_t)(stop))
enum { MOST_PIECES = 0xfffff, LAST_JOB = 0xffffff };

/* In cache lines of their own, as is what all write to: a thread does not wait for the lines of others. */
static struct {
    _Alignas(64) _Atomic uint64_t left;
} shares[MOST_HELPERS + 1];

static _Alignas(64) _Atomic long done;
static _Alignas(64) _Atomic uint64_t current;
static _Atomic uint32_t bell;
static _Atomic int asleep;
static void (*_Atomic job_task)(const void *, long);
static const void *_Atomic job_context;
static _Atomic int job_threads;

static pthread_mutex_t caller = PTHREAD_MUTEX_INITIALIZER;
static int helpers;

/* The next piece of a share, or -1 if none is left of this job. */
static long take(_Atomic uint64_t *share, uint64_t job) {
    uint64_t left = *share;
    while (JOB(left) == job && FIRST(left) < STOP(left)) {
        const long piece = FIRST(left);
        if (atomic_compare_exchange_weak(share, &left, LEFT(job, piece + 1, STOP(left)))) return piece;
    }
    return -1;
}

static void take_pieces(int number, uint64_t job) {
    void (*task)(const void *, long) = job_task;
    const void *context = job_context;
    const int threads = job_threads;
    long taken = 0;
    for (int i = 0; i < threads; i++) {
        _Atomic uint64_t *share = &shares[(number + i) % threads].left;
        for (long piece; (piece = take(share, job)) >= 0; taken++) task(context, piece);
    }
    if (taken) atomic_fetch_add(&done, taken);
}

static void *help(void *argument) {
    const int number = (int)(long)argument;
    uint64_t last = 0;
    int spins = 0;
    for (;;) {
        uint32_t heard = bell;
        uint64_t job = current;
        if (job != last) {
            last = job;
            spins = 0;
            if (number < job_threads) take_pieces(number, job);
        } else if (++spins < SPINS) {
            _mm_pause();
        } else {
            atomic_fetch_add(&asleep, 1);
            syscall(SYS_futex, &bell, FUTEX_WAIT_PRIVATE, heard, 0, 0, 0);
            atomic_fetch_sub(&asleep, 1);
            spins = 0;
        }
    }
    return 0;
}

static void forget_helpers(void) {
    /* A forked child has none, and a job that another thread was at has nobody there. */
    for (int i = 0; i <= MOST_HELPERS; i++) shares[i].left = 0;
    helpers = 0;
    asleep = 0;
    pthread_mutex_init(&caller, 0);
}

static void need_helpers(int wanted) {
    static int watches_forks;
    if (!watches_forks) watches_forks = !pthread_atfork(0, 0, forget_helpers);
    while (helpers < wanted) {
        pthread_t thread;
        if (pthread_create(&thread, 0, help, (void *)(long)(helpers + 1))) return;
        pthread_detach(thread);
        helpers++;
    }
}

void run_parallel(void (*task)(const void *context, long index), const void *context, long count, int threads) {
    if (threads > MOST_HELPERS + 1) threads = MOST_HELPERS + 1;
    /* Two engines in one process do not share helpers: the second works alone. */
    if (threads < 2 || count < 2 || count > MOST_PIECES || pthread_mutex_trylock(&caller)) {
        for (long i = 0; i < count; i++) task(context, i);
        return;
    }
    need_helpers(threads - 1);
    const uint64_t job = (current + 1) & LAST_JOB;
    job_task = task;
    job_context = context;
    job_threads = threads;
    done = 0;
    for (int i = 0; i < threads; i++) {
        const uint64_t left = LEFT(job, count * i / threads, count * (i + 1) / threads);
        atomic_store_explicit(&shares[i].left, left, memory_order_relaxed); /* `current` shows them all */
    }
    current = job;
    atomic_fetch_add(&bell, 1);
    if (asleep) syscall(SYS_futex, &bell, FUTEX_WAKE_PRIVATE, threads - 1, 0, 0, 0);
    take_pieces(0, job);
    for (int spins = 0; done < count; spins++) spins < PATIENCE ? _mm_pause() : (void)sched_yield();
    pthread_mutex_unlock(&caller);
}

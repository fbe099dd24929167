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

/* One word says which job it is, of how many pieces and which is next, so that a helper takes a piece of the job that it knows
 * or of none. What else a job is may be read before taking: it does not change while a piece of it is left. */
#define JOB(ticket) ((ticket) >> 40)
#define COUNT(ticket) ((long)((ticket) >> 20 & 0xfffff))
#define NEXT(ticket) ((long)((ticket) & 0xfffff))
enum { MOST_PIECES = 0xfffff };

static _Atomic uint64_t ticket;
static _Atomic long done;
static _Atomic uint32_t bell;
static _Atomic int asleep;
static void (*_Atomic job_task)(const void *, long);
static const void *_Atomic job_context;
static _Atomic int job_helpers;

static pthread_mutex_t caller = PTHREAD_MUTEX_INITIALIZER;
static int helpers;

static void take_pieces(uint64_t seen) {
    void (*task)(const void *, long) = job_task;
    const void *context = job_context;
    uint64_t now = seen;
    while (JOB(now) == JOB(seen) && NEXT(now) < COUNT(now)) {
        if (!atomic_compare_exchange_weak(&ticket, &now, now + 1)) continue;
        task(context, NEXT(now));
        atomic_fetch_add(&done, 1);
        now = ticket;
    }
}

static void *help(void *argument) {
    long number = (long)argument;
    uint64_t last = 0;
    int spins = 0;
    for (;;) {
        uint32_t heard = bell;
        uint64_t now = ticket;
        if (JOB(now) != last) {
            last = JOB(now);
            spins = 0;
            if (number < job_helpers) take_pieces(now);
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
    /* A forked child has none. */
    helpers = 0;
    asleep = 0;
    pthread_mutex_init(&caller, 0);
}

static void need_helpers(int wanted) {
    static int watches_forks;
    if (!watches_forks) watches_forks = !pthread_atfork(0, 0, forget_helpers);
    while (helpers < wanted && helpers < MOST_HELPERS) {
        pthread_t thread;
        if (pthread_create(&thread, 0, help, (void *)(long)helpers)) return;
        pthread_detach(thread);
        helpers++;
    }
}

void run_parallel(void (*task)(const void *context, long index), const void *context, long count, int threads) {
    /* Two engines in one process do not share helpers: the second works alone. */
    if (threads < 2 || count < 2 || count > MOST_PIECES || pthread_mutex_trylock(&caller)) {
        for (long i = 0; i < count; i++) task(context, i);
        return;
    }
    need_helpers(threads - 1);
    job_task = task;
    job_context = context;
    job_helpers = threads - 1;
    done = 0;
    uint64_t job = (JOB(ticket) + 1) & 0xffffff;
    uint64_t first = job << 40 | (uint64_t)count << 20;
    ticket = first;
    atomic_fetch_add(&bell, 1);
    if (asleep) syscall(SYS_futex, &bell, FUTEX_WAKE_PRIVATE, threads - 1, 0, 0, 0);
    take_pieces(first);
    for (int spins = 0; done < count; spins++) spins < PATIENCE ? _mm_pause() : (void)sched_yield();
    pthread_mutex_unlock(&caller);
}

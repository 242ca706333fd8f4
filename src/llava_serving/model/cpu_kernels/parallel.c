// A pool of threads for work of some microseconds.
//
// A decode step calls a kernel every few microseconds. A thread that sleeps needs longer than that to wake up, above all
// in a virtual machine, so a thread that has no work spins for a moment before it sleeps. Torch's OpenMP threads either
// spin for milliseconds or sleep at once, and the calling thread always waits for all of them.
#define _GNU_SOURCE
#include "parallel.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { SPIN_NANOSECONDS = 100000, MAX_THREADS = 256 };

static struct {
    void (*work)(void *);
    void *argument;
    int threads;              // how many threads may take part, the calling one included
    _Atomic uint32_t job;     // counts the jobs, so that threads see a new one; they sleep on this address
    _Atomic int is_open;      // a thread may begin to take part
    _Atomic int active;       // threads that take part, or look whether they may
    _Atomic int sleeping;     // threads that sleep or are about to
    int started;              // threads of the pool
    pthread_mutex_t is_used;  // by a calling thread
} pool = {.is_used = PTHREAD_MUTEX_INITIALIZER};

static int64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void wait_for_job_after(uint32_t seen) {
    int64_t end = nanoseconds() + SPIN_NANOSECONDS;
    while (nanoseconds() < end)
        for (int i = 0; i < 32; i++) {
            if (atomic_load(&pool.job) != seen) return;
            __builtin_ia32_pause();
        }
    atomic_fetch_add(&pool.sleeping, 1);
    while (atomic_load(&pool.job) == seen) syscall(SYS_futex, &pool.job, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
    atomic_fetch_sub(&pool.sleeping, 1);
}

static void *serve(void *number) {
    uint32_t seen = 0;
    for (;;) {
        wait_for_job_after(seen);
        seen = atomic_load(&pool.job);
        // First `active`, then `is_open`: `run` writes and reads them in the other order, so that either this thread
        // sees that the job is closed, or `run` sees that this thread is active.
        atomic_fetch_add(&pool.active, 1);
        if (atomic_load(&pool.is_open) && (intptr_t)number < pool.threads - 1) pool.work(pool.argument);
        atomic_fetch_sub(&pool.active, 1);
    }
    return NULL;
}

static void start_threads(int count) {
    for (; pool.started < count && pool.started < MAX_THREADS; pool.started++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, serve, (void *)(intptr_t)pool.started)) return;
        pthread_detach(thread);
    }
}

void run(void (*work)(void *), void *argument, int threads) {
    if (threads < 2 || pthread_mutex_trylock(&pool.is_used)) {  // another thread's work has the pool
        work(argument);
        return;
    }
    start_threads(threads - 1);
    pool.work = work;
    pool.argument = argument;
    pool.threads = threads;
    atomic_store(&pool.is_open, 1);
    atomic_fetch_add(&pool.job, 1);
    if (atomic_load(&pool.sleeping)) syscall(SYS_futex, &pool.job, FUTEX_WAKE_PRIVATE, threads, NULL, NULL, 0);
    work(argument);
    atomic_store(&pool.is_open, 0);
    for (int spins = 0; atomic_load(&pool.active); spins++) {
        __builtin_ia32_pause();
        if (spins > 1000) sched_yield();
    }
    pthread_mutex_unlock(&pool.is_used);
}

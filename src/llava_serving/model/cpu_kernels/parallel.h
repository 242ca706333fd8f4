// Work items that threads take one after the other, so that a thread on a busy core takes fewer of them.
#pragma once

// OpenMP's function that runs `work` on `threads` threads and waits. It is the one of the OpenMP library that torch has
// loaded, so that torch and these kernels share one pool of threads.
typedef void (*run_parallel)(void (*work)(void *), void *argument, unsigned threads, unsigned flags);

static inline long take(long *next) {
    return __atomic_fetch_add(next, 1, __ATOMIC_RELAXED);
}

static inline void run(run_parallel parallel, void (*work)(void *), void *argument, int threads) {
    if (threads > 1)
        parallel(work, argument, (unsigned)threads, 0);
    else
        work(argument);
}

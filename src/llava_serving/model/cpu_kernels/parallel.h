// Work that several threads share. Threads take its items one after the other, so that a thread on a busy core takes
// fewer of them.
#pragma once

// Runs `work` on the calling thread and on up to `threads - 1` others, and returns when all items are done. `work` must
// take items until none is left: the calling thread does not wait for a thread that has not begun.
void run(void (*work)(void *), void *argument, int threads);

static inline long take(long *next) {
    return __atomic_fetch_add(next, 1, __ATOMIC_RELAXED);
}

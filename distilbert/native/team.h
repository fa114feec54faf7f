/* Threads that compute one call together: kept between calls, awake for a moment after one, asleep afterwards.
 *
 * There is one team in a process; calls of several threads wait for each other. A child of fork starts its own.
 */
#ifndef DISTILBERT_TEAM_H
#define DISTILBERT_TEAM_H

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>

#include "vector.h"

#define MOST_THREADS 256
#define SPINS 20000   /* looks at a value before a thread without work sleeps, less than a millisecond */
#define PATIENCE 4000 /* looks before a thread lets others run: more threads than processors may be at work */

struct team {
    pthread_mutex_t call; /* held by the thread that computes with the team */
    pthread_mutex_t lock; /* of what follows */
    pthread_cond_t wake;
    int workers;                 /* started */
    uint32_t seen[MOST_THREADS]; /* calls when a worker was started */
    _Atomic uint32_t calls;
    void (*body)(void *, int);
    void *argument;
    int wanted;                      /* threads in this call */
    _Atomic int next, arrived, left; /* the next task; threads that wait in `meet`; that have left the call */
    _Atomic uint32_t phase;
};

static struct team team = {
    .call = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

static void wait_a_little(int look) {
    if (look < PATIENCE) _mm_pause();
    else sched_yield();
}

/* Waits for all threads of the call. The last one also lets the next tasks be taken from the first on. */
static void meet(void) {
    uint32_t phase = atomic_load_explicit(&team.phase, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&team.arrived, 1, memory_order_acq_rel) + 1 == team.wanted) {
        atomic_store_explicit(&team.arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&team.next, 0, memory_order_relaxed);
        atomic_store_explicit(&team.phase, phase + 1, memory_order_release);
        return;
    }
    for (int look = 0; atomic_load_explicit(&team.phase, memory_order_acquire) == phase; look++) wait_a_little(look);
}

/* Work 0 to count - 1, each by whichever thread comes first; all threads of a call come here, and leave together. */
#define SHARE(task, count, ...)                                                                              \
    do {                                                                                                     \
        for (int task; (task = atomic_fetch_add_explicit(&team.next, 1, memory_order_relaxed)) < (count);) { \
            __VA_ARGS__;                                                                                     \
        }                                                                                                    \
        meet();                                                                                              \
    } while (0)

/* Rows of one task that goes by rows, so that threads finish together. */
static int rows_at_once(int count) {
    int rows = count / (4 * team.wanted);
    return rows < 1 ? 1 : rows > 16 ? 16 : rows;
}

/* Something for each row from 0 to count - 1. */
#define SHARE_ROWS(row, count, ...)                                                         \
    do {                                                                                    \
        int several_ = rows_at_once(count);                                                 \
        SHARE(part_, ((count) + several_ - 1) / several_, {                                 \
            int end_ = (part_ + 1) * several_ < (count) ? (part_ + 1) * several_ : (count); \
            for (int row = part_ * several_; row < end_; row++) __VA_ARGS__;                \
        });                                                                                 \
    } while (0)

static void *work(void *argument) {
    int number = (int)(intptr_t)argument; /* from 1; the caller is 0 */
    uint32_t seen = team.seen[number];
    for (;;) {
        for (int look = 0; team.calls == seen && look < SPINS; look++) _mm_pause();
        pthread_mutex_lock(&team.lock);
        while (team.calls == seen) pthread_cond_wait(&team.wake, &team.lock);
        seen = team.calls;
        int mine = number < team.wanted;
        pthread_mutex_unlock(&team.lock);
        if (!mine) continue;
        team.body(team.argument, number);
        atomic_fetch_add_explicit(&team.left, 1, memory_order_release);
    }
    return NULL;
}

/* In a child of fork there is one thread, and the others' locks are of no use. */
static void forget_workers(void) {
    pthread_mutex_init(&team.call, NULL);
    pthread_mutex_init(&team.lock, NULL);
    pthread_cond_init(&team.wake, NULL);
    team.workers = 0;
    team.calls = team.next = team.arrived = team.left = 0;
}

/* Workers take no signals: those are for the threads that the program has made. */
static void start_workers(int wanted) {
    if (team.workers >= wanted - 1) return;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_t detached;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    for (pthread_t thread; team.workers < wanted - 1; team.workers++) {
        int number = team.workers + 1;
        team.seen[number] = team.calls;
        if (pthread_create(&thread, &detached, work, (void *)(intptr_t)number) != 0) break;
    }
    pthread_attr_destroy(&detached);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* Before the first call. Not when the library is loaded: the processor may not have what this file is compiled for. */
static void prepare(void) {
    fill_gelu_table();
    pthread_atfork(NULL, NULL, forget_workers);
}

/* Takes the team for a call of so many threads, or of as many as there can be; returns how many. */
static int begin(int threads) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, prepare);
    pthread_mutex_lock(&team.call);
    threads = threads < 1 ? 1 : threads > MOST_THREADS ? MOST_THREADS : threads;
    start_workers(threads);
    return threads <= team.workers ? threads : team.workers + 1;
}

static void end(void) { pthread_mutex_unlock(&team.call); }

/* Runs body(argument, number) on all threads of the call, numbered from 0, which is the caller. */
static void together(int threads, void (*body)(void *, int), void *argument) {
    pthread_mutex_lock(&team.lock);
    team.wanted = threads;
    team.body = body;
    team.argument = argument;
    team.next = team.left = 0;
    team.calls++;
    if (threads > 1) pthread_cond_broadcast(&team.wake);
    pthread_mutex_unlock(&team.lock);
    body(argument, 0);
    for (int look = 0; atomic_load_explicit(&team.left, memory_order_acquire) < threads - 1; look++)
        wait_a_little(look);
}

#endif

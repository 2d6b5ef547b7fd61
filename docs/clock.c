/* The time of day, set off by the seconds in a file (TRITONPRESS_FAULTS_CLOCK), for the process that this is preloaded
 * into. As when an operator or NTP sets the clock: CLOCK_REALTIME leaps, also for those who wait by it (a wait until a
 * moment ends early, or later), CLOCK_MONOTONIC goes on. libfaketime leaves pthread_mutex_timedlock out, by which
 * Triton's Python backend waits for its stubs.
 *
 *     cc -shared -fPIC -O2 -o clock.so clock.c
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { SLICE_NS = 50 * 1000 * 1000, SECOND_NS = 1000 * 1000 * 1000, OUR_TIME_S = 1000 * 1000 * 1000 };

static const volatile int64_t *leap;

__attribute__((constructor)) static void map(void) {
    const char *name = getenv("TRITONPRESS_FAULTS_CLOCK");
    int file = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
    void *place = file < 0 ? MAP_FAILED : mmap(0, sizeof *leap, PROT_READ, MAP_SHARED, file, 0);
    if (place != MAP_FAILED) leap = place;
    if (file >= 0) close(file);
}

static int64_t seconds(void) { return leap ? *leap : 0; }

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = (int)syscall(SYS_clock_gettime, clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += seconds();
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    now->tv_sec = t.tv_sec, now->tv_usec = t.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *place) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    if (place) *place = t.tv_sec;
    return t.tv_sec;
}

/* Gives the kernel's moment until which to wait next; says whether `until` has passed. */
static int has_passed(const struct timespec *until, struct timespec *next) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    int64_t left_s = until->tv_sec - now.tv_sec, left_ns = SLICE_NS;
    if (left_s < 2) left_ns = left_s * SECOND_NS + until->tv_nsec - now.tv_nsec;
    if (left_ns > SLICE_NS) left_ns = SLICE_NS;
    int passed = left_ns <= 0;
    if (passed) left_ns = 0;
    next->tv_sec = now.tv_sec - seconds() + (now.tv_nsec + left_ns) / SECOND_NS;
    next->tv_nsec = (now.tv_nsec + left_ns) % SECOND_NS;
    return passed;
}

int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict until) {
    int (*real)(sem_t *, const struct timespec *) = dlsym(RTLD_NEXT, "sem_timedwait");
    for (;;) {
        struct timespec next;
        int passed = has_passed(until, &next);
        if (!real(semaphore, &next)) return 0;
        if (errno != ETIMEDOUT || passed) return -1;
    }
}

int pthread_mutex_timedlock(pthread_mutex_t *restrict mutex, const struct timespec *restrict until) {
    int (*real)(pthread_mutex_t *, const struct timespec *) = dlsym(RTLD_NEXT, "pthread_mutex_timedlock");
    for (;;) {
        struct timespec next;
        int passed = has_passed(until, &next), status = real(mutex, &next);
        if (status != ETIMEDOUT || passed) return status;
    }
}

int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict until) {
    int (*real)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *) =
        dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    /* A moment by the monotonic clock, which counts from the machine's start. */
    if (until->tv_sec < OUR_TIME_S) return real(condition, mutex, until);
    struct timespec next;
    int passed = has_passed(until, &next), status = real(condition, mutex, &next);
    /* Whoever waits must look anyway whether he was woken for something. */
    return status == ETIMEDOUT && !passed ? 0 : status;
}

/* SPDX-License-Identifier: MIT
 * Starting a thread: see thread.h.
 */
#include "thread.h"

#include <signal.h>

int dbp_thread_start(size_t stack, void *(*run)(void *arg), void *arg, pthread_t *threadp) {
    pthread_attr_t attr;
    sigset_t all, before;

    int rc = pthread_attr_init(&attr);
    if (rc != 0)
        return -rc;
    if (stack > 0)
        rc = pthread_attr_setstacksize(&attr, stack);
    if (rc == 0) {
        /* A thread inherits the mask of its maker. */
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        rc = pthread_create(threadp, &attr, run, arg);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    pthread_attr_destroy(&attr);
    return -rc;
}

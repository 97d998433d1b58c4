/* SPDX-License-Identifier: MIT
 * Starting a thread of ours in a process of the host's.
 */
#ifndef DBPOOL_THREAD_H
#define DBPOOL_THREAD_H

#include "dbpool.h"

#include <pthread.h>

/* Starts a joinable thread with all signals blocked from its first instruction: the host's handlers are for the host's
 * threads. stack: bytes, 0 for the system's default. 0 or -errno. */
int dbp_thread_start(size_t stack, void *(*run)(void *arg), void *arg, pthread_t *threadp) DBP_MUST_USE;

#endif

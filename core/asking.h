/* SPDX-License-Identifier: MIT
 * What threads and greenlets of one process ask the broker, over one channel and at the same time. Each waits for its
 * own answer; one of them reads the channel, for all.
 */
#ifndef DBPOOL_ASKING_H
#define DBPOOL_ASKING_H

#include "wire.h"

#include <pthread.h>

struct dbp_ask;

struct dbp_asking {
    struct dbp_ask *first;  /* those that wait, in order of arrival */
    struct dbp_ask *reader; /* waits for the channel; the others wait to be woken by it. NULL: nobody reads */
    struct dbp_ask *spare;  /* memory for the next one: one at a time is the rule */
    uint32_t serial;
};

/* Sends *msg and waits for its answer, which replaces it; its fd, if any, is the caller's. With the lock held, which
 * guards all of this and is let go while it waits. *channel is -1 once a forked child has closed it.
 * 0, a positive result of the broker's; DBP_E_TIMEOUT, DBP_E_INTERRUPTED, DBP_E_CLOSED, -EMFILE (the fd found no
 * room), -errno: then *msg has head.type 0. What comes for a request that was given up is dropped. */
int dbp_asking(struct dbp_asking *asking, pthread_mutex_t *lock, const int *channel, union dbp_wire_any *msg,
               enum dbp_wire_type answer, uint64_t deadline_us, int *fdp) DBP_MUST_USE;

/* The channel is gone, with the lock held: whoever waits is answered DBP_E_CLOSED. Then *channel may be another one. */
void dbp_asking_over(struct dbp_asking *asking);

/* In a forked child, with the lock held: closes what the parent's threads have here. */
void dbp_asking_fork_child(struct dbp_asking *asking);

#endif

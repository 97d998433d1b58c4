/* SPDX-License-Identifier: MIT
 * A client that takes, uses, waits for and returns sessions at random, and checks all that a client can see: it is run
 * by many threads (race_threads.c) and by many processes that are killed and stopped (race_procs.c).
 */
#ifndef DBPOOL_TEST_RACER_H
#define DBPOOL_TEST_RACER_H

#include "fake_connector.h"

#define RACERS_MAX 32u
#define RACER_LEASES 2u /* held at a time by one racer */
#define RACER_WAITS 3u  /* waited for at a time, in addition */

enum racer_step { /* where a racer is, as far as it can tell; for the statistics of deaths */
                  RACER_IDLE,
                  RACER_ATTACHING,
                  RACER_TAKING,
                  RACER_ACQUIRING,
                  RACER_BEGINNING,
                  RACER_POLLING,
                  RACER_CANCELLING,
                  RACER_FETCHING,
                  RACER_QUERYING,
                  RACER_RELEASING,
                  RACER_STEPS
};
extern const char *const racer_steps[RACER_STEPS];

/* Shared by all. stamps: who holds a session, as the holders themselves say: incarnation << 32 | racer + 1. */
struct race {
    _Atomic bool stop;
    _Atomic bool rush;  /* who holds nothing does nothing but take and return: so that nobody waits, for once */
    _Atomic bool pause; /* who holds nothing takes nothing: so that sessions are idle for once */
    _Atomic uint64_t stamps[DBP_SESSIONS_MAX];
    _Atomic uint32_t step[RACERS_MAX];
    _Atomic uint64_t rounds[RACERS_MAX];
    _Atomic uint64_t leases, waits, queries, resets, dooms, cancels;
    _Atomic bool may_fail; /* logins fail now and then, with codes from FAKE_LONG_TEXT on */
    _Atomic uint64_t failures;
    /* what must stay 0 */
    _Atomic uint32_t lent_twice;      /* I1 */
    _Atomic uint32_t overtaken;       /* I4: granted while an earlier ticket still waits */
    _Atomic uint32_t garbled;         /* I5: an answer that is not to our question */
    _Atomic uint32_t in_transaction;  /* I6: a lease that starts in a transaction or off the baseline */
    _Atomic uint32_t torn;            /* an error whose text does not go with its code */
    _Atomic uint32_t unexpected;      /* an outcome that a healthy core does not give */
    _Atomic int32_t first_unexpected; /* hundreds: the call, see racer.c; the rest: what it answered */
};

/* Runs as racer number `number` on `client` until race->stop. events: this thread is the process's event loop and waits
 * on dbp_wait_fd; else it sleeps in dbp_acquire. */
void racer_run(struct race *race, const struct dbp_share *share, struct dbp_client *client, uint32_t pool,
               uint32_t number, uint64_t seed, bool events);

/* Prints the sums; the number of violations. */
uint32_t race_report(struct race *race);
/* Prints the line that support/soak adds up. lost: what else went wrong. */
void race_sum(const struct race *race, const char *name, uint32_t kills, uint32_t lost);

#endif

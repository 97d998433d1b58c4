/* SPDX-License-Identifier: MIT
 * A client process that does what the test tells it, one thing at a time, through shared memory: so that one test can
 * play several workers, and kill or stop them wherever it wants.
 */
#ifndef DBPOOL_TEST_PUPPET_H
#define DBPOOL_TEST_PUPPET_H

#include "helpers.h"

enum puppet_verb {
    PUPPET_ATTACH = 1,  /* at place */
    PUPPET_ATTACH_SOON, /* the same, with little patience */
    PUPPET_CLAIM,       /* asks to be the connector */
    PUPPET_REGISTER,    /* spec */
    PUPPET_ACQUIRE,     /* deadline_us -> leases[which] */
    PUPPET_ACQUIRE_NOW,
    PUPPET_BEGIN, /* -> waits[which] */
    PUPPET_POLL,  /* waits[which] -> leases[which] */
    PUPPET_CANCEL,
    PUPPET_RELEASE,      /* leases[which], how, status */
    PUPPET_FETCH,        /* leases[which] -> fds[which] */
    PUPPET_QUERY,        /* sql on fds[which] -> nonce, status */
    PUPPET_SEND,         /* sql on fds[which], no answer read */
    PUPPET_CENSUS,       /* -> the number of its fds */
    PUPPET_NO_FILES,     /* from now on it cannot open another; */
    PUPPET_FILES,        /* it can again */
    PUPPET_ERROR,        /* -> error */
    PUPPET_VALID,        /* leases[which] -> rc 1 or 0 */
    PUPPET_LOSE_CHANNEL, /* closes its channel, as a stranger would that closes fds which are not his */
    PUPPET_LOSE_ALL,     /* closes all its fds; the numbers are files of its own then; -> how many */
    PUPPET_LOOK,         /* -> the bytes that were written into those */
};

#define PUPPET_LEASES 8u

struct puppet {
    pid_t pid;
    _Atomic uint32_t asked, done; /* numbers of commands */
    enum puppet_verb verb;
    uint32_t which, pool, place;
    uint64_t deadline_us;
    enum dbp_return how;
    uint16_t status;
    uint64_t nonce;
    char sql[64], text[128];
    struct dbp_pool_spec spec;
    struct dbp_lease leases[PUPPET_LEASES];
    struct dbp_wait waits[PUPPET_LEASES];
    int fds[PUPPET_LEASES];
    struct dbp_session_facts facts;
    struct dbp_error error;
    int rc;
};

/* Forks one; it does nothing yet. */
struct puppet *puppet_new(const struct dbp_share *share);
/* Has it do something; puppet_result waits for the end (bounded) and gives the answer, INT32_MIN if none came. */
void puppet_start(struct puppet *p, enum puppet_verb verb);
int puppet_result(struct puppet *p);
int puppet_do(struct puppet *p, enum puppet_verb verb);

/* Attached and registered; aborts if it cannot. */
struct puppet *puppet_ready(const struct dbp_share *share, const struct dbp_pool_spec *spec);

int puppet_acquire(struct puppet *p, uint32_t which);
int puppet_release(struct puppet *p, uint32_t which, enum dbp_return how);
/* Fetches the lease's fd and runs sql. */
int puppet_query(struct puppet *p, uint32_t which, const char *sql);

#endif

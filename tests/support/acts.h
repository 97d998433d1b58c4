/* SPDX-License-Identifier: MIT
 * The operations that race_steps.c steps a child through, and what has to be arranged around each.
 */
#ifndef DBPOOL_TEST_ACTS_H
#define DBPOOL_TEST_ACTS_H

#include "arena.h"
#include "stepper.h"

/* What the parent does when the child is ready and before it acts. */
enum arrangement {
    ALL_IDLE,
    NONE_OPEN,          /* every session was ended before: one must be opened */
    HOLD_ONE_AND_WAIT,  /* the child has one, the parent has the other and waits, as an event loop */
    HOLD_ONE_AND_SLEEP, /* the same, but a thread of the parent sleeps */
    HOLD_ALL,           /* before the child begins */
    HOLD_ALL_GRANT,     /* the child waits; then the parent returns one, which is granted to it */
    HOLD_ALL_WAIT,      /* the child waits, the parent waits behind it */
    HOLD_BROKER,        /* it answers nothing until the child sleeps */
    CONNECT             /* none is open, the child is the connector, the parent waits */
};

/* What the child tells. Shared memory. */
struct act_report {
    _Atomic uint32_t phase; /* enum step_phase */
    int rc;
    bool leased;
    struct dbp_lease lease;
};

struct actor {
    struct arena *arena;
    struct act_report *report;
    struct dbp_client *client;
    struct dbp_lease lease;
    struct dbp_wait wait;
    int channel;
};

struct act {
    const char *name;
    enum arrangement arrangement;
    void (*before)(struct actor *a); /* unwatched */
    int (*act)(struct actor *a);     /* watched */
    bool leases;                     /* with 0 it has a session then */
    int result;                      /* what it answers undisturbed */
    int late;                        /* what it may answer too when others went on meanwhile */
};

extern const struct act acts[];
extern const size_t n_acts;

/* The child's whole life: prepares, offers itself to be stepped, acts, reports, and waits for its end. Exit codes:
 * 77 where ptrace is not allowed, 10 to 19 when it could not prepare. */
_Noreturn void act_out(const struct act *act, struct arena *arena, struct act_report *report);

#endif

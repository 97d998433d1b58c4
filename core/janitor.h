/* SPDX-License-Identifier: MIT
 * The policy of a pool: how many sessions to open or to end now, and when to look again. Pure: figures in, decision
 * out, no clock, no table, no I/O, so that tests can play a whole day.
 */
#ifndef DBPOOL_JANITOR_H
#define DBPOOL_JANITOR_H

#include "dbpool.h"

#define DBP_RETRY_FIRST_US \
    100000u /* after a failed login; doubles up to the next: a server that is back is noticed soon */
#define DBP_RETRY_MOST_US 1000000u

struct dbp_janitor_view {
    uint64_t now_us;
    uint64_t retry_at_us; /* no login before; 0: none failed */
    uint32_t failures;    /* failed logins in a row */
    uint32_t waiting, opening, resetting, idle;
    uint32_t total; /* all sessions, those being opened and closed included: what the cap limits */
    uint32_t closing;
    uint32_t pool_size, cap;
};

struct dbp_janitor_plan {
    uint32_t open;
    uint32_t retire;     /* of the idle ones */
    uint64_t wake_at_us; /* 0: nothing to wait for */
};

struct dbp_janitor_plan dbp_janitor_plan(const struct dbp_janitor_view *view);

/* Time to wait after the n-th failure in a row (n >= 1). */
uint64_t dbp_janitor_backoff_us(uint32_t failures);

#endif

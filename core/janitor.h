/* SPDX-License-Identifier: MIT
 * The policy of a pool: how many sessions to open or to end now, and when to look again. Pure: figures in, decision
 * out, no clock, no table, no I/O, so that tests can play a whole day. What it must remember between two looks (when
 * the next retirement is due, how long an overload is sat out) comes back in the plan and goes in with the next view.
 *
 * The core size, the retirement by quantity per interval and the wait before growing beyond the core are those of
 * django-db-conn-pool's DjangoQueuePool; there they are kept per process, here for all of them.
 */
#ifndef DBPOOL_JANITOR_H
#define DBPOOL_JANITOR_H

#include "dbpool.h"

#define DBP_RETRY_FIRST_US \
    100000u /* after a failed login; doubles up to the next: a server that is back is noticed soon */
#define DBP_RETRY_MOST_US 1000000u
#define DBP_REFUSED_FIRST_US 5000000u /* after one that was refused, likewise */
#define DBP_REFUSED_MOST_US 60000000u

/* Logins of one pool under way at a time: what the connector does at once for one alias. More would only queue there,
 * and when the burst is over they could not be taken back. */
#define DBP_LOGINS_AT_ONCE 4u

/* What carries over from plan to view. Zeroed at first. */
struct dbp_janitor_memory {
    uint64_t overload_until_us; /* growth beyond the core is held back until then; 0: it is not */
    uint64_t retire_at_us;      /* the next gradual retirement; 0: nothing is above the core */
};

struct dbp_janitor_view {
    uint64_t now_us;
    struct dbp_janitor_memory memory;
    /* logins */
    uint64_t retry_at_us; /* no login before; 0: none failed */
    uint32_t failures;    /* failed logins in a row */
    bool refused;         /* the last one was refused by the server (dbp_janitor_refused) */
    /* how the pool stands */
    uint32_t waiting, opening, resetting, idle, leased;
    uint32_t total; /* all sessions, those being opened and closed included: what the cap limits */
    uint32_t closing;
    uint32_t stale;          /* of the idle ones, unused for idle_timeout */
    uint64_t next_stale_us;  /* when the next one will be; 0: none */
    uint32_t rested;         /* of the idle ones, unused for the grace of an overflow session */
    uint64_t next_rested_us; /* when the next one will be; 0: none */
    uint32_t surplus;        /* sessions above the cap, which is lower than it was: they go at once */
    /* what is wanted */
    uint32_t pool_size, cap, min_size;
    uint32_t core_size;          /* 0: there is no core */
    uint64_t retire_interval_us; /* 0: no gradual retirement */
    uint32_t retire_quantity;
    uint64_t unload_us; /* how long the next overload is to be sat out: drawn by the caller; 0: not at all */
};

struct dbp_janitor_plan {
    uint32_t open;
    uint32_t retire;     /* of the idle ones, least recently used first */
    uint64_t wake_at_us; /* 0: nothing to wait for */
    struct dbp_janitor_memory memory;
};

struct dbp_janitor_plan dbp_janitor_plan(const struct dbp_janitor_view *view);

/* True for an error of the server's that the next try will meet again, and that servers count: accounts are locked
 * (FAILED_LOGIN_ATTEMPTS, max_password_errors), hosts are blocked (max_connect_errors). A person has to mend it. */
bool dbp_janitor_refused(uint32_t error_code);

/* Time to wait after the n-th failure in a row (n >= 1). */
uint64_t dbp_janitor_backoff_us(uint32_t failures, bool refused);

#endif

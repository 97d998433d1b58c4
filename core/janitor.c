/* SPDX-License-Identifier: MIT
 * The policy of a pool: see janitor.h.
 */
#include "janitor.h"

static uint32_t at_most(uint32_t a, uint32_t b) {
    return a < b ? a : b;
}

static uint32_t at_least(uint32_t a, uint32_t b) {
    return a > b ? a : b;
}

static uint32_t minus(uint32_t a, uint32_t b) {
    return a > b ? a - b : 0;
}

static void wake_by(struct dbp_janitor_plan *plan, uint64_t when) {
    if (when != 0 && (plan->wake_at_us == 0 || when < plan->wake_at_us))
        plan->wake_at_us = when;
}

bool dbp_janitor_refused(uint32_t error_code) {
    /* mysqld_error.h of MySQL and MariaDB, errmsg.h; core knows neither outside of the connector. */
    static const uint32_t refused[] = {
        1044, /* no access to the database */
        1045, /* wrong password or user */
        1049, /* no such database */
        1129, /* host blocked after interrupted handshakes */
        1130, /* host not allowed */
        1251, /* authentication protocol not supported */
        1698, /* access denied without a password */
        1820, /* password must be changed first */
        1862, /* password expired */
        2059, /* authentication plugin cannot be loaded: an interrupted handshake for the server */
        3118, /* account locked (MySQL) */
        3159, /* TLS demanded (MySQL) */
        3955, /* account locked for a while after failed logins (MySQL) */
        4150, /* access denied, the password's life (MariaDB) */
        4151, /* account locked (MariaDB) */
    };

    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        if (refused[i] == error_code)
            return true;
    return false;
}

uint64_t dbp_janitor_backoff_us(uint32_t failures, bool refused) {
    uint64_t us = refused ? DBP_REFUSED_FIRST_US : DBP_RETRY_FIRST_US;
    uint64_t most = refused ? DBP_REFUSED_MOST_US : DBP_RETRY_MOST_US;

    for (uint32_t i = 1; i < failures && us < most; i++)
        us *= 2;
    return us < most ? us : most;
}

/* A session per waiter that nobody is already fetching for it (a login under way, a reset about to end, an idle one).
 * Up to the core at once; beyond it only when the time to sit an overload out has passed. */
static uint32_t wanted_by_waiters(const struct dbp_janitor_view *view, struct dbp_janitor_plan *plan) {
    uint32_t wanted = minus(view->waiting, view->opening + view->resetting + view->idle);
    uint32_t room_in_core = minus(view->core_size, view->leased + view->opening);
    uint64_t until = view->memory.overload_until_us;

    if (view->core_size == 0 || view->unload_us == 0 || wanted <= room_in_core)
        return wanted;
    if (until == 0)
        until = view->now_us + view->unload_us;
    if (view->now_us >= until)
        return wanted; /* sat out; the next overload starts anew */
    plan->memory.overload_until_us = until;
    wake_by(plan, until);
    return room_in_core;
}

static void plan_opening(const struct dbp_janitor_view *view, struct dbp_janitor_plan *plan) {
    uint32_t live = minus(view->total, view->closing);
    /* A refusal is met again only for somebody who waits; nobody waits for a floor. */
    uint32_t floor = view->refused && view->failures > 0 ? 0 : minus(view->min_size, live);
    uint32_t wanted = at_least(wanted_by_waiters(view, plan), floor);

    plan->open = at_most(wanted, minus(view->cap, view->total));
    plan->open = at_most(plan->open, minus(DBP_LOGINS_AT_ONCE, view->opening));
    if (plan->open == 0 || view->failures == 0)
        return;
    if (view->now_us < view->retry_at_us) {
        plan->open = 0;
        wake_by(plan, view->retry_at_us);
    } else {
        plan->open = view->opening > 0 ? 0 : 1; /* one scout, until the server answers again */
    }
}

/* The time between two looks runs on while there is more than the core, also when all of that is in use at a look in
 * between: else light traffic would keep what a burst has opened. */
static uint32_t due_for_gradual_retirement(const struct dbp_janitor_view *view, struct dbp_janitor_plan *plan) {
    uint32_t live = minus(view->total, view->closing), due = 0;
    uint64_t at = view->memory.retire_at_us;

    if (view->core_size == 0 || view->retire_interval_us == 0 || live <= view->core_size)
        return 0;
    if (at != 0 && view->now_us >= at) {
        due = at_least(view->retire_quantity, 1); /* 0 counts as 1, as with the ancestor */
        due = at_most(due, minus(view->idle, view->core_size));
        at = 0;
    }
    if (live - due > view->core_size) {
        plan->memory.retire_at_us = at ? at : view->now_us + view->retire_interval_us;
        wake_by(plan, plan->memory.retire_at_us);
    }
    return due;
}

static void plan_retiring(const struct dbp_janitor_view *view, struct dbp_janitor_plan *plan) {
    uint32_t live = minus(view->total, view->closing);

    /* A session that a waiter could have is never ended, and while anybody waits each is one. */
    if (view->waiting > 0) {
        plan->memory.retire_at_us = view->memory.retire_at_us;
        return;
    }
    uint32_t overflow = minus(live, view->pool_size);
    uint32_t retire = at_least(at_most(overflow, view->rested), due_for_gradual_retirement(view, plan));
    retire = at_least(at_least(retire, view->stale), view->surplus);
    if (overflow > 0)
        wake_by(plan, view->next_rested_us);
    plan->retire = at_most(at_most(retire, view->idle), minus(live, view->min_size));
    if (live > view->min_size)
        wake_by(plan, view->next_stale_us);
}

struct dbp_janitor_plan dbp_janitor_plan(const struct dbp_janitor_view *view) {
    struct dbp_janitor_plan plan = {0};

    plan_opening(view, &plan);
    plan_retiring(view, &plan);
    return plan;
}

/* SPDX-License-Identifier: MIT
 * The policy of a pool: see janitor.h.
 */
#include "janitor.h"

static uint32_t at_most(uint32_t a, uint32_t b) {
    return a < b ? a : b;
}

static uint32_t minus(uint32_t a, uint32_t b) {
    return a > b ? a - b : 0;
}

uint64_t dbp_janitor_backoff_us(uint32_t failures) {
    uint64_t us = DBP_RETRY_FIRST_US;

    for (uint32_t i = 1; i < failures && us < DBP_RETRY_MOST_US; i++)
        us *= 2;
    return us < DBP_RETRY_MOST_US ? us : DBP_RETRY_MOST_US;
}

struct dbp_janitor_plan dbp_janitor_plan(const struct dbp_janitor_view *view) {
    struct dbp_janitor_plan plan = {0};

    /* A session per waiter that nobody is already fetching for it: a login under way, a reset about to end, an idle
     * one. */
    uint32_t wanted = minus(view->waiting, view->opening + view->resetting + view->idle);
    plan.open = at_most(wanted, minus(view->cap, view->total));
    if (plan.open > 0 && view->failures > 0) {
        if (view->now_us < view->retry_at_us) {
            plan.open = 0;
            plan.wake_at_us = view->retry_at_us;
        } else {
            plan.open = view->opening > 0 ? 0 : 1; /* one scout, until the server answers again */
        }
    }
    if (view->waiting == 0)
        plan.retire = at_most(view->idle, minus(view->total - view->closing, view->pool_size));
    return plan;
}

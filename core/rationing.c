/* SPDX-License-Identifier: MIT
 * Giving up sessions for other pools: see rationing.h.
 */
#include "rationing.h"

#include "ration.h"

static uint32_t larger(uint32_t a, uint32_t b) {
    return a > b ? a : b;
}

static uint32_t smaller(uint32_t a, uint32_t b) {
    return a < b ? a : b;
}

static struct dbp_ration_share share_of(struct dbp_keeper *keeper, uint32_t pool, uint32_t *closingp) {
    struct dbp_kept_limits limits = dbp_kept_limits(keeper, pool);
    uint32_t leased = dbp_kept_count(keeper, pool, DBP_LEASED) + dbp_kept_count(keeper, pool, DBP_GRANTED);
    uint32_t coming = dbp_kept_count(keeper, pool, DBP_OPENING) + dbp_kept_count(keeper, pool, DBP_RESETTING);
    uint32_t waiting = dbp_kept_waiting(keeper, pool, limits.cap);
    uint32_t closing = smaller(dbp_kept_count(keeper, pool, DBP_CLOSING), keeper->pools[pool].total);

    *closingp = closing;
    return (struct dbp_ration_share){
        .claim = smaller(limits.cap, larger(leased + larger(waiting, coming), limits.min_size)),
        .live = keeper->pools[pool].total - closing,
    };
}

uint64_t dbp_rationing_look(struct dbp_keeper *keeper) {
    struct dbp_ration_share shares[DBP_POOLS_MAX];
    uint32_t pools[DBP_POOLS_MAX], n = 0;
    uint64_t now = dbp_now_us(), wanted = 0;

    if (!keeper->scarce && !keeper->refused)
        return UINT64_MAX;
    if (now < keeper->ration_at_us)
        return keeper->ration_at_us;
    for (uint32_t pool = 0; pool < DBP_POOLS_MAX; pool++) {
        uint32_t closing;
        const struct dbp_pool_spec *spec = dbp_registry_spec(keeper->registry, pool);
        if (!spec)
            continue;
        keeper->pools[pool].allowance = UINT32_MAX; /* the claim is what it would take without a ration */
        if (spec->min_size == 0 && dbp_kept_active(keeper, pool) != pool)
            continue; /* it has nothing and wants nothing */
        shares[n] = share_of(keeper, pool, &closing);
        wanted += (uint64_t)larger(shares[n].claim, shares[n].live) + closing;
        pools[n++] = pool;
    }
    keeper->refused = false;
    keeper->scarce = wanted > keeper->max_sessions;
    keeper->ration_at_us = now + DBP_RATION_EVERY_US;
    if (keeper->scarce)
        dbp_ration(shares, n, keeper->max_sessions);
    for (uint32_t i = 0; i < n; i++) {
        if (keeper->scarce)
            keeper->pools[pools[i]].allowance = shares[i].allowance;
        dbp_kept_look_again(keeper, pools[i]);
    }
    return keeper->scarce ? keeper->ration_at_us : UINT64_MAX;
}

void dbp_rationing_mark(struct dbp_keeper *keeper, uint32_t pool, uint32_t n) {
    struct kept_pool *kp = &keeper->pools[pool];

    if (n == 0 && kp->marked == 0)
        return;
    kp->marked = 0;
    for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++) {
        enum dbp_state state = dbp_word_state(word_of(keeper, i));
        uint32_t is = kp->marked < n ? DBP_UNFIT_SURPLUS : DBP_FIT, was = is ? DBP_FIT : DBP_UNFIT_SURPLUS;
        if ((state != DBP_LEASED && state != DBP_GRANTED) || pool_of(keeper, i) != pool)
            continue;
        /* One that is unfit for another reason ends at its return as well. Its holder may return it at this moment:
         * then it ends a little later, as an idle session that is marked. */
        atomic_compare_exchange_strong(&shared(keeper, i)->unfit, &was, is);
        if (atomic_load(&shared(keeper, i)->unfit) != DBP_FIT)
            kp->marked++;
    }
}

/* SPDX-License-Identifier: MIT
 * The sessions that a process had last: see recent.h. Loads and stores instead of exchanges, which on the path of each
 * acquire would cost more than a lost hint.
 */
#include "recent.h"

#define FORGET_EVERY 32u /* takes: at a low load it comes back to few sessions within so many requests */

static uint32_t load(const _Atomic uint32_t *number) {
    return atomic_load_explicit(number, memory_order_relaxed);
}

static void store(_Atomic uint32_t *number, uint32_t value) {
    atomic_store_explicit(number, value, memory_order_relaxed);
}

bool dbp_recent_take(struct dbp_recent *recent, struct dbp_table *table, uint32_t pool, uint32_t holder,
                     uint32_t *sessionp, dbp_word *wordp) {
    uint32_t takes = load(&recent->takes) + 1, n = load(&recent->n);

    store(&recent->takes, takes);
    if (takes % FORGET_EVERY == 0)
        store(&recent->n, n = 0);
    while (n > 0 && n <= DBP_RECENT_MOST) {
        uint32_t session = load(&recent->sessions[--n]);

        store(&recent->n, n); /* ours now, or another's */
        if (dbp_idle_take_this(table, pool, session, holder, wordp)) {
            *sessionp = session;
            return true;
        }
    }
    return false;
}

void dbp_recent_note(struct dbp_recent *recent, uint32_t session) {
    uint32_t n = load(&recent->n);

    if (n >= DBP_RECENT_MOST)
        return;
    store(&recent->sessions[n], session);
    store(&recent->n, n + 1);
}

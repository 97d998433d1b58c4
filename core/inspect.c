/* SPDX-License-Identifier: MIT
 * Looking at a pool without taking part: figures, the last error, who holds how many. For error texts, stats and tests.
 */
#include "inspect.h"

#include <string.h>

void dbp_inspect_stats(const struct dbp_table *table, uint32_t pool, struct dbp_stats *statsp) {
    const struct dbp_pool_counters *count = &table->pools[dbp_pool_place(pool)].count;

    statsp->size = atomic_load(&count->size);
    statsp->max = atomic_load(&count->max);
    statsp->idle = dbp_pool_count(table, pool, DBP_IDLE);
    /* A granted session is on its way to its holder: for a person it is leased. */
    statsp->leased = (int64_t)((uint64_t)dbp_pool_count(table, pool, DBP_LEASED) +
                               (uint64_t)atomic_load(&count->state[DBP_GRANTED])); /* any bytes, no overflow */
    statsp->opening = atomic_load(&count->state[DBP_OPENING]);
    statsp->resetting = atomic_load(&count->state[DBP_RESETTING]);
    statsp->closing = atomic_load(&count->state[DBP_CLOSING]);
    statsp->waiting = atomic_load(&count->waiting);
    statsp->opened = atomic_load(&count->opened);
    statsp->closed = atomic_load(&count->closed);
    statsp->acquires = dbp_pool_acquires(table, pool);
    statsp->waits = atomic_load(&count->waits);
    statsp->timeouts = atomic_load(&count->timeouts);
    statsp->wait_us = atomic_load(&count->wait_us);
    statsp->failures = atomic_load(&count->failures);
    statsp->resets = atomic_load(&count->resets);
    statsp->undone = atomic_load(&count->undone);
    statsp->kills = atomic_load(&count->kills);
    statsp->all_size = 0;
    for (uint32_t i = 0, n = atomic_load(&table->n_pools); i < n && i < DBP_POOLS_MAX; i++)
        statsp->all_size += atomic_load(&table->pools[i].count.size);
    statsp->all_max = atomic_load(&table->max_sessions);
}

void dbp_inspect_error(const struct dbp_table *table, uint32_t pool, struct dbp_error *errorp) {
    const struct dbp_pool *p = &table->pools[dbp_pool_place(pool)];
    struct dbp_error copy;
    uint32_t words[DBP_ERROR_WORDS], before, after;
    int tries = 0;

    /* A sequence lock: the broker makes it odd while it writes. A writer stopped in the middle must not hang the
     * reader, who then takes what is there: text is terminated below in any case. */
    do {
        before = atomic_load(&p->error_seq);
        for (size_t i = 0; i < DBP_ERROR_WORDS; i++) /* acquire: error_seq is read again after them */
            words[i] = atomic_load_explicit(&p->error[i], memory_order_acquire);
        after = atomic_load(&p->error_seq);
    } while ((before != after || (before & 1u)) && ++tries < 1000);
    memcpy(&copy, words, sizeof copy);
    copy.text[sizeof copy.text - 1] = '\0';
    copy.sqlstate[sizeof copy.sqlstate - 1] = '\0';
    *errorp = copy;
}

uint32_t dbp_inspect_holders(const struct dbp_table *table, uint32_t pool, uint32_t n, struct dbp_holder *holders) {
    uint32_t leases[DBP_PROCS_MAX] = {0}, found = 0;

    for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++) {
        dbp_word word = atomic_load(&table->sessions[i].word);
        if (dbp_word_state(word) == DBP_LEASED && atomic_load(&table->sessions[i].pool) == pool &&
            dbp_holder_slot(dbp_word_owner(word)) < DBP_PROCS_MAX)
            leases[dbp_holder_slot(dbp_word_owner(word))]++;
    }
    for (;;) {
        uint32_t most = 0;
        for (uint32_t slot = 1; slot < DBP_PROCS_MAX; slot++)
            if (leases[slot] > leases[most])
                most = slot;
        if (leases[most] == 0)
            return found;
        if (found < n) {
            holders[found].pid = atomic_load(&table->procs[most].pid);
            holders[found].leases = leases[most];
            memcpy(holders[found].label, table->procs[most].label, sizeof holders[found].label);
            holders[found].label[sizeof holders[found].label - 1] = '\0';
        }
        found++;
        leases[most] = 0;
    }
}

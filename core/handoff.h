/* SPDX-License-Identifier: MIT
 * Bringing idle sessions and waiters together, from whichever process notices that both exist. pool is a handle: one
 * that does not live any more harms nobody.
 */
#ifndef DBPOOL_HANDOFF_H
#define DBPOOL_HANDOFF_H

#include "table.h"

/* Tells the broker that the pool has something for it to do: a session to end or reset, a waiter and room for one more.
 * A system call, unless it is told already. Any process, any thread. */
void dbp_handoff_ring(const struct dbp_share *share, uint32_t pool);

/* Grants idle sessions to the oldest waiters until one of the two runs out, and wakes them. Any process, any thread. */
void dbp_handoff_match(const struct dbp_share *share, uint32_t pool);

/* The waiter's side: takes the session that was granted to its place and frees the place.
 * 0 with session and word, DBP_E_BUSY (still waiting), DBP_E_FAILED (ended). */
int dbp_handoff_claim(const struct dbp_share *share, uint32_t pool, uint32_t ticket, uint32_t holder,
                      uint32_t *sessionp, dbp_word *wordp) DBP_MUST_USE;

/* Gives the place up. 0: a session was granted meanwhile, as claim; DBP_E_TIMEOUT: without. */
int dbp_handoff_cancel(const struct dbp_share *share, uint32_t pool, uint32_t ticket, uint32_t holder,
                       uint32_t *sessionp, dbp_word *wordp) DBP_MUST_USE;

/* Ends every waiter older than ticket `before` with DBP_E_FAILED. Broker only. */
void dbp_handoff_fail(const struct dbp_share *share, uint32_t pool, uint32_t before);

/* Frees all places of a dead process; sessions granted to them go back. Broker only, then match. */
void dbp_handoff_bury(const struct dbp_share *share, uint32_t pool, uint32_t slot);

/* Frees places of processes that are not attached (attached: for each slot, 0 where nobody is): damage, or one that
 * hung up its channel and went on. Waiting there they would be granted sessions that nobody takes. Broker only, then
 * sweep. */
void dbp_handoff_bury_strangers(const struct dbp_share *share, uint32_t pool, const uint32_t *attached);

/* Puts right what a process killed or stopped in the middle of an operation left: idle sessions without their bit,
 * grants that the waiter does not know of, waiters that were granted and not woken. Broker only, any time. */
void dbp_handoff_sweep(const struct dbp_share *share, uint32_t pool);

#endif

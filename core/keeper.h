/* SPDX-License-Identifier: MIT
 * The broker's side of the sessions: it holds a copy of every session's fd, has them opened and ended, resets what
 * comes back unfit to be handed on, and notices the server's end of one. It is driven by the broker's loop; nothing
 * here blocks.
 */
#ifndef DBPOOL_KEEPER_H
#define DBPOOL_KEEPER_H

#include "kept.h"

/* registry is borrowed. max_sessions: of all pools together, 1..DBP_SESSIONS_MAX. 0 or -errno. */
int dbp_keeper_new(const struct dbp_share *share, struct dbp_registry *registry, const struct dbp_keeper_ops *ops,
                   uint32_t max_sessions, struct dbp_keeper **keeperp) DBP_MUST_USE;
/* Ends every idle session politely and closes all fds; NULL. */
struct dbp_keeper *dbp_keeper_free(struct dbp_keeper *keeper);

/* Brings a pool to where its policy wants it, and takes up what clients left: sessions to reset or to end. */
void dbp_keeper_attend(struct dbp_keeper *keeper, uint32_t pool);
/* Time-outs, ages, retries of all pools. Returns when it wants to be called next (dbp_now_us scale). */
uint64_t dbp_keeper_tick(struct dbp_keeper *keeper);
/* Of the session that is in this slot now. */
uint32_t dbp_keeper_incarnation(const struct dbp_keeper *keeper, uint32_t session);
/* The fd of a session has events (EPOLL*). */
void dbp_keeper_event(struct dbp_keeper *keeper, uint32_t session, uint32_t events);

/* The connector died: its logins are void. / A new one is there: ask it again. */
void dbp_keeper_connector_lost(struct dbp_keeper *keeper);
void dbp_keeper_connector_ready(struct dbp_keeper *keeper);

/* Opens nothing more and ends every session: the host stops. / Whether a KILL has not been answered yet, and may be. */
void dbp_keeper_end_all(struct dbp_keeper *keeper);
bool dbp_keeper_kills_pending(const struct dbp_keeper *keeper);

/* This attach of the slot is in force, 0: none. (A pid says nothing: in another pid namespace it is 0 here.) */
void dbp_keeper_attached(struct dbp_keeper *keeper, uint32_t slot, uint32_t attach);

/* The process of the slot has done something. / When that was, as far as the broker has noticed. */
void dbp_keeper_saw(struct dbp_keeper *keeper, uint32_t slot);
uint64_t dbp_keeper_seen_us(const struct dbp_keeper *keeper, uint32_t slot);
/* The slots (a bit each) whose processes have a lease, or wait for one. */
void dbp_keeper_busy(struct dbp_keeper *keeper, uint64_t slots[DBP_PROCS_MAX / 64u]);

/* The process in slot died: ends what it held, frees what it waited for. */
void dbp_keeper_holder_died(struct dbp_keeper *keeper, uint32_t slot);

/* A process has registered the pool, once; / and is gone. */
void dbp_keeper_joined(struct dbp_keeper *keeper, uint32_t pool);
void dbp_keeper_left(struct dbp_keeper *keeper, uint32_t pool);
/* Superseded pools that nobody uses any more drain and go. */
void dbp_keeper_tidy(struct dbp_keeper *keeper);
/* Has pools go that have neither a lease nor a waiter, for another one's sake. 0: there is room; DBP_E_BUSY: soon;
 * DBP_E_FULL: all are in use. */
int dbp_keeper_make_room(struct dbp_keeper *keeper) DBP_MUST_USE;
/* It was registered just now. */
void dbp_keeper_used(struct dbp_keeper *keeper, uint32_t pool);

/* The fd (borrowed) and facts of a session that slot holds in this generation, of one of pools (a bit each): those that
 * its process has registered itself, by settings that it knows. 0, DBP_E_STALE, DBP_E_INVALID (another pool's). */
int dbp_keeper_lookup(const struct dbp_keeper *keeper, uint32_t slot, const uint64_t *pools, uint32_t session,
                      uint32_t generation, int *fdp, const struct dbp_session_facts **factsp) DBP_MUST_USE;

/* In a forked child of the process that runs the broker: closes all session fds (I11). */
void dbp_keeper_fork_child(struct dbp_keeper *keeper);

#endif

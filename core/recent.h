/* SPDX-License-Identifier: MIT
 * The sessions that a process had last and gave back: it tries them first, the last one first. Their cache lines are
 * still at its processor, at the server their threads are, and a driver object is made for them. It writes nothing that
 * other processes read but the session itself, so processes that are content with sessions of their own do not slow
 * each other down.
 *
 * Few sessions must serve a low load, so that the rest can age out: now and then a process forgets, and takes the
 * lowest idle session of all. At a low load that is the same one for each; at a high one it is found leased mostly, and
 * each has its own again.
 */
#ifndef DBPOOL_RECENT_H
#define DBPOOL_RECENT_H

#include "table.h"

#define DBP_RECENT_MOST 62u

/* Of one pool, in the process's own memory. Hints: what threads lose to each other costs nothing but the hint. */
struct dbp_recent {
    _Atomic uint32_t takes;
    _Atomic uint32_t n;
    _Atomic uint32_t sessions[DBP_RECENT_MOST]; /* the last returned one last; any may be another's by now */
};

/* Takes one of them that is idle, as dbp_idle_take does. False: there is none. Any thread. */
bool dbp_recent_take(struct dbp_recent *recent, struct dbp_table *table, uint32_t pool, uint32_t holder,
                     uint32_t *sessionp, dbp_word *wordp) DBP_MUST_USE;

/* The process has given this session back. Any thread. */
void dbp_recent_note(struct dbp_recent *recent, uint32_t session);

#endif

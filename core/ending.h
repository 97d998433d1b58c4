/* SPDX-License-Identifier: MIT
 * Ending sessions: politely where the wire is idle, by KILL where it is not, counted against the cap until the server
 * has hung up.
 */
#ifndef DBPOOL_ENDING_H
#define DBPOOL_ENDING_H

#include "kept.h"

/* Takes up a session that is in CLOSING. kill: its wire is not known to be idle. */
void dbp_ending_begin(struct dbp_keeper *keeper, uint32_t session, bool kill);
/* A session in CLOSING has come to its end. */
void dbp_ending_done(struct dbp_keeper *keeper, uint32_t session);
/* CLOSING or OPENING to EMPTY: the place in the cap is free again. */
void dbp_ending_vacate(struct dbp_keeper *keeper, uint32_t session);
/* Ends a session that is idle or being reset; a lease is only marked, its holder's return ends it. */
void dbp_ending_unfit(struct dbp_keeper *keeper, uint32_t session);
/* Reads away what an ending session still sends: with a full receive buffer the server would never come to hang up.
 * True at its end of file. */
bool dbp_ending_drained(int fd) DBP_MUST_USE;

/* Asks the connector to KILL it. / Its answer. */
void dbp_ending_ask_kill(struct dbp_keeper *keeper, uint32_t session);
void dbp_ending_killed(struct dbp_keeper *keeper, const struct dbp_wire_killed *msg);
/* Its deadline has passed and the server has not hung up. */
void dbp_ending_overdue(struct dbp_keeper *keeper, uint32_t session);

#endif

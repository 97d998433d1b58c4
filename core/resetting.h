/* SPDX-License-Identifier: MIT
 * Resetting sessions: drives the byte machine of reset.c over a returned session's wire, off any request's path.
 */
#ifndef DBPOOL_RESETTING_H
#define DBPOOL_RESETTING_H

#include "kept.h"

/* Says once for each pool what its sessions cannot do. */
void dbp_resetting_introduce(struct dbp_keeper *keeper, uint32_t session);
/* Takes up a session that is in RESETTING. */
void dbp_resetting_begin(struct dbp_keeper *keeper, uint32_t session);
/* The server has answered. */
void dbp_resetting_answer(struct dbp_keeper *keeper, uint32_t session);
/* It will not: the session is ended instead. */
void dbp_resetting_failed(struct dbp_keeper *keeper, uint32_t session, const char *why);

#endif

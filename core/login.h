/* SPDX-License-Identifier: MIT
 * Logging in to a server, for the connector's threads: opening a session of a pool, killing one.
 * Blocks, bounded by the pool's connect timeout for each wait and by a deadline for the whole; stop_fd readable ends it
 * at once. Each thread has called mysql_thread_init. On false, *errorp has the server's or the library's own words.
 */
#ifndef DBPOOL_LOGIN_H
#define DBPOOL_LOGIN_H

#include "dbpool.h"

/* A session on its pool's baseline; *fdp is its socket (non-blocking, CLOEXEC, owned by the caller). */
bool dbp_login_open(const struct dbp_pool_spec *spec, int stop_fd, struct dbp_session_facts *facts, int *fdp,
                    struct dbp_error *errorp) DBP_MUST_USE;

/* KILL CONNECTION connection_id by a login of its own; true also when there was no such session any more. wanted(arg)
 * (may be NULL) is asked once more before the KILL is sent: a server that was started anew gives the same numbers to
 * sessions that are nobody's to kill. */
bool dbp_login_kill(const struct dbp_pool_spec *spec, int stop_fd, uint32_t connection_id, bool (*wanted)(void *arg),
                    void *arg, struct dbp_error *errorp) DBP_MUST_USE;

void dbp_login_error(struct dbp_error *errorp, uint32_t code, const char *sqlstate, const char *text);

#endif

/* SPDX-License-Identifier: MIT
 * Logging in to a server, for the connector's threads: opening a session of a pool, killing one.
 * Blocks, bounded by the pool's connect timeout for each wait and by a deadline for the whole; stop_fd readable ends it
 * at once. Each thread has called mysql_thread_init. On false, *errorp has the server's or the library's own words.
 */
#ifndef DBPOOL_LOGIN_H
#define DBPOOL_LOGIN_H

#include "endpoint.h"
#include "kills.h"

/* A session on its pool's baseline; *fdp is its socket (non-blocking, CLOEXEC, owned by the caller), *endpointp where
 * it leads. */
bool dbp_login_open(const struct dbp_pool_spec *spec, int stop_fd, struct dbp_session_facts *facts,
                    struct dbp_endpoint *endpointp, int *fdp, struct dbp_error *errorp) DBP_MUST_USE;

/* A login of the pool's user that only says KILL, to the pool's server or, if endpoint (may be NULL) names one, to that
 * very one. The caller owns *killerp until dbp_killer_logout. */
struct dbp_killer;
bool dbp_killer_login(const struct dbp_pool_spec *spec, const struct dbp_endpoint *endpoint, int stop_fd,
                      struct dbp_killer **killerp, struct dbp_error *errorp) DBP_MUST_USE;

/* Whether a session that was opened at opened_us can be one of this server's. False: the server was started since, the
 * number may be somebody else's now, and *errorp says so. */
bool dbp_killer_may(const struct dbp_killer *killer, uint64_t opened_us, uint32_t connection_id,
                    struct dbp_error *errorp) DBP_MUST_USE;
/* Kills n sessions; fills the error of each: code 0, the server's (1094: no such session), or the library's once the
 * connection was lost; false then, and the killer is of no more use. */
bool dbp_killer_run(struct dbp_killer *killer, struct dbp_kill *kills, size_t n) DBP_MUST_USE;
struct dbp_killer *dbp_killer_logout(struct dbp_killer *killer); /* NULL; NULL is allowed */

void dbp_login_error(struct dbp_error *errorp, uint32_t code, const char *sqlstate, const char *text);

#endif

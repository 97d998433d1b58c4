/* SPDX-License-Identifier: MIT
 * The handshake relay: libmysqlclient logs in through it, so that the capabilities of the session can be masked, the
 * greeting kept for replays, and the server's socket handed on in the end.
 *
 *   libmysqlclient --- door (unix or loopback TCP, as the server's own) --- relay thread --- server
 *
 * start connects to the server and opens the door; the login passes masked; all later bytes pass as they are, until
 * detach takes the server's socket away (what libmysqlclient writes then, its COM_QUIT, ends in here) or free drops it.
 * TLS to the server belongs between the thread and the server's socket; there is none yet, and the greeting says so.
 */
#ifndef DBPOOL_RELAY_H
#define DBPOOL_RELAY_H

#include "dbpool.h"
#include "endpoint.h"

struct dbp_relay;

struct dbp_relay_route {
    const char *host;                    /* "" is 127.0.0.1 */
    uint32_t port;                       /* 0: 3306 */
    const char *unix_socket;             /* wins when not ""; a leading '@' means abstract */
    const struct dbp_endpoint *endpoint; /* this very server instead of whoever has the host's name now; may be NULL */
    uint64_t connect_deadline_us;
    uint64_t deadline_us; /* of everything until detach */
    int stop_fd;          /* readable: give up at once; -1: none. Borrowed */
};

/* Connects to the server (any thread, blocks until connect_deadline_us; the resolver has limits of its own) and starts
 * the thread. 0; DBP_E_FAILED: *errorp says it as libmysqlclient would (2002, 2003, 2005); DBP_E_CLOSED: stop_fd;
 * -errno. */
int dbp_relay_start(const struct dbp_relay_route *route, struct dbp_error *errorp,
                    struct dbp_relay **relayp) DBP_MUST_USE;

/* Where libmysqlclient must connect to: the unix socket "@..." (borrowed), or NULL and 127.0.0.1 with this port. */
const char *dbp_relay_socket(const struct dbp_relay *relay);
uint16_t dbp_relay_port(const struct dbp_relay *relay);
/* The server that it is connected to; until detach. */
struct dbp_endpoint dbp_relay_endpoint(const struct dbp_relay *relay);

struct dbp_relay_session {
    int fd;                /* the server's socket: CLOEXEC, non-blocking, the caller's */
    uint32_t capabilities; /* that both sides have named, after masking */
    uint32_t charset;      /* collation id of the login */
    uint32_t greeting_len;
    uint8_t greeting[DBP_GREETING_MAX]; /* ready for dbp_replay_new */
};

/* Ends the relaying and takes the session; client_fd is libmysqlclient's socket, which must be the one that was
 * relayed. Call it when all replies were read. 0; DBP_E_INVALID: nothing logged in here, or another socket did;
 * -EPROTO: bytes are under way, so the session is in no known state; -errno. */
int dbp_relay_detach(struct dbp_relay *relay, int client_fd, struct dbp_relay_session *sessionp) DBP_MUST_USE;

/* NULL. Ends the thread and closes all that was not detached. Call mysql_close() before: the relay still passes on a
 * COM_QUIT that was written (unless detached), so that the server does not count an aborted client. */
struct dbp_relay *dbp_relay_free(struct dbp_relay *relay);

#endif

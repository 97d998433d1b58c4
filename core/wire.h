/* SPDX-License-Identifier: MIT
 * The control protocol: fixed-size messages over SOCK_SEQPACKET, at most one fd with each.
 *
 * control socket (inherited by all)   ATTACH + one end of the sender's private channel
 * client's channel                    ATTACHED <-, REGISTER -> REGISTERED <-, FETCH -> SESSION <- (+fd)
 * connector's channel                 ATTACHED <-, OPEN <- OPENED -> (+fd) | FAILED ->, KILL <- KILLED ->, CANCEL <-
 *
 * A message that is not understood (magic, version, type, size, number of fds) is refused and its fds are closed; the
 * receiver survives it (I10).
 */
#ifndef DBPOOL_WIRE_H
#define DBPOOL_WIRE_H

#include "dbpool.h"
#include "endpoint.h"

#define DBP_WIRE_MAGIC 0x44425031u /* "DBP1" */

enum dbp_wire_type {
    DBP_WIRE_ATTACH = 1,
    DBP_WIRE_ATTACHED,
    DBP_WIRE_REGISTER,
    DBP_WIRE_REGISTERED,
    DBP_WIRE_FETCH,
    DBP_WIRE_SESSION,
    DBP_WIRE_OPEN,
    DBP_WIRE_OPENED,
    DBP_WIRE_FAILED,
    DBP_WIRE_KILL,
    DBP_WIRE_KILLED,
    DBP_WIRE_CANCEL,
    DBP_WIRE_TYPES
};

enum dbp_role { DBP_ROLE_CLIENT = 1, DBP_ROLE_CONNECTOR = 2 };

struct dbp_wire_head {
    uint32_t magic;
    uint16_t version;
    uint16_t type;
    uint32_t serial; /* of the request; its answer carries the same */
    uint32_t result; /* answers: 0 or DBP_E_* */
};

struct dbp_wire_attach {
    struct dbp_wire_head head;
    uint32_t role;
    uint32_t place;       /* 0, or which of the host's own processes it is: dbp_client_attach_own */
    uint32_t patience_ms; /* how long it waits for a slot, should none be free */
    char label[24];
};

struct dbp_wire_attached {
    struct dbp_wire_head head;
    uint32_t slot;
    uint32_t attach; /* which one of the slot it is */
};

struct dbp_wire_register {
    struct dbp_wire_head head;
    struct dbp_pool_spec spec;
};

struct dbp_wire_registered {
    struct dbp_wire_head head;
    uint32_t pool;
    char text[DBP_TEXT_MAX];
};

struct dbp_wire_fetch {
    struct dbp_wire_head head;
    uint32_t session;
    uint32_t generation;
};

struct dbp_wire_session {
    struct dbp_wire_head head;
    struct dbp_session_facts facts;
};

/* OPEN and KILL carry the whole spec, so that the connector keeps no state and a respawned one knows all it needs. */
struct dbp_wire_open {
    struct dbp_wire_head head;
    uint32_t session;
    uint32_t incarnation;
    struct dbp_pool_spec spec;
};

struct dbp_wire_opened {
    struct dbp_wire_head head;
    uint32_t session;
    uint32_t incarnation;
    struct dbp_endpoint endpoint;
    struct dbp_session_facts facts;
};

struct dbp_wire_failed {
    struct dbp_wire_head head;
    uint32_t session;
    uint32_t incarnation;
    struct dbp_error error;
};

/* endpoint: the session's own server, which a name may not lead to any more. opened_us: a server that was started later
 * does not have this session, though it may have one of the same number. */
struct dbp_wire_kill {
    struct dbp_wire_head head;
    uint32_t session;
    uint32_t incarnation;
    uint32_t connection_id;
    uint32_t reserved;
    uint64_t opened_us;
    struct dbp_endpoint endpoint;
    struct dbp_pool_spec spec;
};

struct dbp_wire_killed {
    struct dbp_wire_head head;
    uint32_t session;
    uint32_t incarnation;
    struct dbp_error error; /* code 0: killed; 1094: the server has no such session */
};

/* The session of a KILL has ended: if it was not said yet, it need not be. There is no answer. */
struct dbp_wire_cancel {
    struct dbp_wire_head head;
    uint32_t session;
    uint32_t incarnation;
};

union dbp_wire_any {
    struct dbp_wire_head head;
    struct dbp_wire_attach attach;
    struct dbp_wire_attached attached;
    struct dbp_wire_register reg;
    struct dbp_wire_registered registered;
    struct dbp_wire_fetch fetch;
    struct dbp_wire_session session;
    struct dbp_wire_open open;
    struct dbp_wire_opened opened;
    struct dbp_wire_failed failed;
    struct dbp_wire_kill kill;
    struct dbp_wire_killed killed;
    struct dbp_wire_cancel cancel;
};

/* Fills a zeroed head. */
void dbp_wire_head_init(struct dbp_wire_head *head, enum dbp_wire_type type, uint32_t serial);

/* Sends one message (its type gives its size), with fd unless it is -1; the fd is not consumed. Never blocks:
 * -EAGAIN when the receiver does not read. 0 or -errno. */
int dbp_wire_send(int sock, const union dbp_wire_any *msg, int fd) DBP_MUST_USE;

/* Receives one message, never blocks. *fdp gets the fd that came with it (CLOEXEC, owned by the caller) or -1; *pidp
 * (may be NULL) the sender's pid if the socket has SO_PASSCRED, else 0. 0, -EAGAIN, -EPIPE (end of stream),
 * DBP_E_INVALID (refused: was dropped, its fds closed), -EMFILE (as 0, but this process has as many files open as it
 * may, and the fd is lost), -errno. */
int dbp_wire_recv(int sock, union dbp_wire_any *msg, int *fdp, int32_t *pidp) DBP_MUST_USE;

#endif

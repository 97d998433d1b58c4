/* SPDX-License-Identifier: MIT
 * Putting a returned session right: the few commands and answers by which an open transaction is ended and autocommit
 * brought to its baseline, or the whole session to the state in which the connector delivered it. A byte machine
 * without any I/O: the broker writes what it leaves and feeds it what the server answers, one command at a time.
 */
#ifndef DBPOOL_RESET_H
#define DBPOOL_RESET_H

#include "dbpool.h"

/* The owner of a session in RESETTING is one of these, as its last holder or the broker left it. */
enum dbp_reset_kind {
    DBP_RESET_ROLLBACK = 0, /* ROLLBACK, then autocommit to its baseline */
    DBP_RESET_COMMIT,       /* the same with COMMIT */
    DBP_RESET_PING,         /* COM_PING: the session is in order, is the server there? */
    DBP_RESET_FULL /* all that login.c did after the login is done again, on a session that COM_RESET_CONNECTION
                      has emptied */
};

enum dbp_reset_step { DBP_RESET_SEND, DBP_RESET_READ, DBP_RESET_DONE, DBP_RESET_FAILED };

/* An OK packet with its session tracking; anything longer is not an answer to our own commands. Results of init_sql may
 * be of any length: they are read and forgotten. */
#define DBP_RESET_PACKET_MAX 512u
/* The longest command: all of init_sql in one statement, with its head. */
#define DBP_RESET_COMMAND_MAX (sizeof(((struct dbp_pool_spec *)0)->init_sql) + 5)

/* What makes the server say, by one bit of the status word, that a session changed. Variables by name would only
 * lengthen its replies. */
#define DBP_TRACKING_SQL "SET SESSION session_track_state_change=ON, session_track_system_variables=''"

#define DBP_RESET_NAMES_MAX (2 * sizeof(((struct dbp_session_facts *)0)->collation) + 32)

#define DBP_RESET_SEEN 32u /* bytes that are looked at of each packet: an OK's status is within its first 21 */

struct dbp_reset {
    bool autocommit; /* the baseline */
    uint8_t stage;
    uint8_t kind;
    uint8_t await;         /* which part of an answer comes next */
    uint8_t sequence;      /* of its next packet */
    uint16_t status;       /* from the last OK or EOF */
    uint16_t error;        /* FAILED: the server's error number when it was that; else 0 */
    uint32_t facts;        /* DBP_FACT_* of the session */
    const char *collation; /* of its login (DBP_FACT_NAMES); borrowed */
    uint32_t init_at;      /* the next statement of init_sql */
    uint32_t n;            /* bytes of the packet that is being read, its head included */
    uint8_t in[4 + DBP_RESET_SEEN];
};

/* Starts. status: the status word as its last holder left it; facts, collation: those of the session,
 * dbp_session_facts.status and .collation (FULL only); collation is borrowed until the reset is over. ROLLBACK: always
 * said (SET autocommit=1 would commit what is open; NO CHAIN, whatever the session's completion_type says), then SET
 * autocommit if it is off the baseline. FULL: where status says that there is a transaction, ROLLBACK first. It fails
 * in an XA transaction (1399), and nothing else would tell: MariaDB answers OK to COM_RESET_CONNECTION, but a prepared
 * one stays attached to the session, and every later statement on a table fails. The session ends then, which leaves
 * the prepared transaction as it is. */
void dbp_reset_init(struct dbp_reset *reset, enum dbp_reset_kind kind, bool autocommit, uint16_t status, uint32_t facts,
                    const char *collation);
/* What to do now. */
enum dbp_reset_step dbp_reset_step(const struct dbp_reset *reset);
/* What brings the login's character set back: collation is that of the login. sql has DBP_RESET_NAMES_MAX. */
void dbp_reset_names(char *sql, size_t n, const char *collation);
/* DBP_RESET_SEND: the packet to write (buf has DBP_RESET_COMMAND_MAX); returns its length. The next step is READ.
 * spec: the session's pool, the same at each call; only FULL looks at it. */
size_t dbp_reset_command(struct dbp_reset *reset, const struct dbp_pool_spec *spec, uint8_t *buf);
/* DBP_RESET_READ: n bytes from the server. An ERR packet, or anything that is not exactly one answer, is FAILED. */
void dbp_reset_feed(struct dbp_reset *reset, const struct dbp_pool_spec *spec, const uint8_t *data, size_t n);

#endif

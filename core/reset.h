/* SPDX-License-Identifier: MIT
 * Putting a returned session right: the few commands and answers by which an open transaction is rolled back and
 * autocommit brought to its baseline. A byte machine without any I/O: the broker writes what it leaves and feeds it
 * what the server answers, one command at a time.
 */
#ifndef DBPOOL_RESET_H
#define DBPOOL_RESET_H

#include "dbpool.h"

enum dbp_reset_kind {
    DBP_RESET_ROLLBACK = 0, /* ROLLBACK, then autocommit to its baseline */
    DBP_RESET_COMMIT,       /* the same with COMMIT */
    DBP_RESET_PING          /* COM_PING: the session is in order, is the server there? */
};

enum dbp_reset_step { DBP_RESET_SEND, DBP_RESET_READ, DBP_RESET_DONE, DBP_RESET_FAILED };

#define DBP_RESET_PACKET_MAX \
    512u /* an OK packet with its session tracking; anything longer is not an answer to these */

struct dbp_reset {
    bool autocommit; /* the baseline */
    uint8_t stage;
    uint8_t kind;
    uint16_t status; /* from the last OK */
    uint32_t n;
    uint8_t in[DBP_RESET_PACKET_MAX];
};

/* Starts: ROLLBACK always (SET autocommit=1 would commit what is open; NO CHAIN, whatever the session's completion_type
 * says), then SET autocommit if it is off the baseline. */
void dbp_reset_init(struct dbp_reset *reset, enum dbp_reset_kind kind, bool autocommit);
/* What to do now. */
enum dbp_reset_step dbp_reset_step(const struct dbp_reset *reset);
/* DBP_RESET_SEND: the packet to write; returns its length (at most DBP_RESET_PACKET_MAX). The next step is READ. */
size_t dbp_reset_command(struct dbp_reset *reset, uint8_t *buf);
/* DBP_RESET_READ: n bytes from the server. An ERR packet, or anything that is not exactly one OK, is FAILED. */
void dbp_reset_feed(struct dbp_reset *reset, const uint8_t *data, size_t n);

#endif

/* SPDX-License-Identifier: MIT
 * The reset of a returned session: see reset.h. Packet layout: MySQL client/server protocol, OK_Packet (header 0x00,
 * length-encoded affected rows and insert id, then the 2 byte status word, least significant byte first).
 */
#include "reset.h"

#include <string.h>

#define COM_QUERY 0x03u
#define COM_PING 0x0eu
#define STATUS_IN_TRANS 0x0001u
#define STATUS_AUTOCOMMIT 0x0002u
#define STATUS_MORE_RESULTS 0x0008u

enum { END_TRANSACTION, END_SENT, AUTOCOMMIT, AUTOCOMMIT_SENT, DONE, FAILED };

void dbp_reset_init(struct dbp_reset *reset, enum dbp_reset_kind kind, bool autocommit) {
    memset(reset, 0, sizeof *reset);
    reset->kind = (uint8_t)kind;
    reset->autocommit = autocommit;
}

enum dbp_reset_step dbp_reset_step(const struct dbp_reset *reset) {
    switch (reset->stage) {
    case END_TRANSACTION:
    case AUTOCOMMIT:
        return DBP_RESET_SEND;
    case END_SENT:
    case AUTOCOMMIT_SENT:
        return DBP_RESET_READ;
    case DONE:
        return DBP_RESET_DONE;
    default:
        return DBP_RESET_FAILED;
    }
}

static const char *statement(const struct dbp_reset *reset) {
    if (reset->stage == AUTOCOMMIT)
        return reset->autocommit ? "SET autocommit=1" : "SET autocommit=0";
    switch ((enum dbp_reset_kind)reset->kind) {
    case DBP_RESET_ROLLBACK:
        return "ROLLBACK AND NO CHAIN NO RELEASE";
    case DBP_RESET_COMMIT:
        return "COMMIT AND NO CHAIN NO RELEASE";
    case DBP_RESET_PING:
        break;
    }
    return ""; /* a COM_PING has no text */
}

size_t dbp_reset_command(struct dbp_reset *reset, uint8_t *buf) {
    const char *sql = statement(reset);
    size_t n = strlen(sql);

    buf[0] = (uint8_t)(n + 1);
    buf[1] = buf[2] = buf[3] = 0;
    buf[4] = n > 0 ? COM_QUERY : COM_PING;
    memcpy(buf + 5, sql, n);
    reset->stage++;
    reset->n = 0;
    return n + 5;
}

/* The length-encoded integer at *at, skipped. False: it does not fit. */
static bool skip_lenenc(const uint8_t *p, size_t n, size_t *at) {
    if (*at >= n)
        return false;
    size_t width = p[*at] < 0xfb ? 1 : p[*at] == 0xfc ? 3 : p[*at] == 0xfd ? 4 : p[*at] == 0xfe ? 9 : 0;
    if (width == 0 || n - *at < width)
        return false;
    *at += width;
    return true;
}

void dbp_reset_feed(struct dbp_reset *reset, const uint8_t *data, size_t n) {
    if (dbp_reset_step(reset) != DBP_RESET_READ || n > sizeof reset->in - reset->n) {
        reset->stage = FAILED;
        return;
    }
    memcpy(reset->in + reset->n, data, n);
    reset->n += (uint32_t)n;
    if (reset->n < 4)
        return;
    size_t length = (size_t)reset->in[0] | (size_t)reset->in[1] << 8 | (size_t)reset->in[2] << 16;
    if (reset->n < length + 4)
        return;
    const uint8_t *ok = reset->in + 4;
    size_t at = 1;
    /* More bytes than one packet, another sequence number, or no OK: the wire is not where we thought it was. */
    if (reset->n != length + 4 || reset->in[3] != 1 || length < 7 || ok[0] != 0x00 || !skip_lenenc(ok, length, &at) ||
        !skip_lenenc(ok, length, &at) || length - at < 2) {
        reset->stage = FAILED;
        return;
    }
    reset->status = (uint16_t)(ok[at] | ok[at + 1] << 8);
    bool off = ((reset->status & STATUS_AUTOCOMMIT) != 0) != reset->autocommit;
    if (reset->status & (STATUS_IN_TRANS | STATUS_MORE_RESULTS))
        reset->stage = FAILED;
    else if (reset->stage == END_SENT)
        reset->stage = off ? AUTOCOMMIT : DONE;
    else
        reset->stage = off ? FAILED : DONE;
}

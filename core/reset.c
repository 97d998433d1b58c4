/* SPDX-License-Identifier: MIT
 * The reset of a returned session: see reset.h. Packet layout: MySQL client/server protocol, OK_Packet (header 0x00,
 * length-encoded affected rows and insert id, then the 2 byte status word, least significant byte first) and EOF_Packet
 * (0xfe, 2 bytes of warnings, the status word). Pool sessions never negotiate DEPRECATE_EOF (handshake.h).
 */
#include "reset.h"

#include <stdio.h>
#include <string.h>

#define COM_INIT_DB 0x02u
#define COM_QUERY 0x03u
#define COM_PING 0x0eu
#define COM_RESET_CONNECTION 0x1fu
#define STATUS_IN_TRANS 0x0001u
#define STATUS_AUTOCOMMIT 0x0002u
#define STATUS_MORE_RESULTS 0x0008u
#define EOF_MOST 9u /* a packet that begins with 0xfe and is shorter is no row */

/* What is sent next, in this order; each kind enters at one and leaves out what does not apply (go_on). */
enum stage {
    END_TRANSACTION, /* kinds ROLLBACK and COMMIT begin here, and go on with AUTOCOMMIT; FULL if there is one */
    PING,            /* kind PING: nothing else */
    EMPTY,           /* kind FULL */
    DATABASE,
    ROLE,
    NAMES,
    TRACKING,
    AUTOCOMMIT_BEFORE, /* as login.c: the init statements run with the baseline */
    INIT,
    INIT_COMMIT,
    AUTOCOMMIT,
    DONE,
    FAILED
};

/* The parts of an answer. Only statements of the user's, init_sql, may give anything but one OK. */
enum await { NOTHING, FIRST, COLUMNS, ROWS };

void dbp_reset_init(struct dbp_reset *reset, enum dbp_reset_kind kind, bool autocommit, uint16_t status, uint32_t facts,
                    const char *collation) {
    memset(reset, 0, sizeof *reset);
    reset->collation = collation;
    reset->kind = (uint8_t)kind;
    reset->autocommit = autocommit;
    reset->facts = facts;
    switch (kind) {
    case DBP_RESET_ROLLBACK:
    case DBP_RESET_COMMIT:
        reset->stage = END_TRANSACTION;
        return;
    case DBP_RESET_PING:
        reset->stage = PING;
        return;
    case DBP_RESET_FULL:
        reset->stage = status & STATUS_IN_TRANS ? END_TRANSACTION : EMPTY;
        return;
    }
    reset->stage = FAILED; /* the word that the kind came from was written by another process */
}

enum dbp_reset_step dbp_reset_step(const struct dbp_reset *reset) {
    if (reset->stage == DONE)
        return DBP_RESET_DONE;
    if (reset->stage == FAILED)
        return DBP_RESET_FAILED;
    return reset->await == NOTHING ? DBP_RESET_SEND : DBP_RESET_READ;
}

void dbp_reset_names(char *sql, size_t n, const char *collation) {
    /* The server's own name of the character set, which begins that of each collation: "utf8" is not the same to all.
     */
    snprintf(sql, n, "SET NAMES %.*s COLLATE %s", (int)strcspn(collation, "_"), collation, collation);
}

static const char *init_statement(const struct dbp_reset *reset, const struct dbp_pool_spec *spec) {
    /* The list ends with an empty one; registry.c has checked that it does. */
    return reset->init_at < sizeof spec->init_sql ? spec->init_sql + reset->init_at : "";
}

static bool off_baseline(const struct dbp_reset *reset) {
    return ((reset->status & STATUS_AUTOCOMMIT) != 0) != reset->autocommit;
}

/* True when the session needs what this stage says. */
static bool applies(const struct dbp_reset *reset, const struct dbp_pool_spec *spec) {
    switch ((enum stage)reset->stage) {
    case ROLE:
        return reset->facts & DBP_FACT_ROLE_NONE;
    case NAMES:
        return reset->facts & DBP_FACT_NAMES;
    case TRACKING:
        return reset->facts & DBP_FACT_TRACKED;
    case AUTOCOMMIT_BEFORE:
    case AUTOCOMMIT:
        return off_baseline(reset);
    case INIT:
        return *init_statement(reset, spec) != '\0';
    case INIT_COMMIT:
        return reset->status & STATUS_IN_TRANS;
    default:
        return true;
    }
}

/* The text of this stage's command; *command gets its number. */
static const char *text_of(const struct dbp_reset *reset, const struct dbp_pool_spec *spec, char *room, size_t n,
                           uint8_t *command) {
    *command = COM_QUERY;
    switch ((enum stage)reset->stage) {
    case END_TRANSACTION:
        return reset->kind == DBP_RESET_COMMIT ? "COMMIT AND NO CHAIN NO RELEASE" : "ROLLBACK AND NO CHAIN NO RELEASE";
    case PING:
        *command = COM_PING;
        return "";
    case EMPTY:
        *command = COM_RESET_CONNECTION;
        return "";
    case DATABASE:
        if (spec->database[0]) {
            *command = COM_INIT_DB;
            return spec->database;
        }
        /* COM_RESET_CONNECTION keeps what USE chose, and nothing leads back to none: an error then (7 is no value), and
         * the session ends. */
        return "SET autocommit=IF(DATABASE() IS NULL, @@autocommit, 7)";
    case ROLE:
        return "SET ROLE NONE";
    case NAMES:
        dbp_reset_names(room, n, reset->collation);
        return room;
    case TRACKING:
        return DBP_TRACKING_SQL;
    case INIT:
        return init_statement(reset, spec);
    case INIT_COMMIT:
        return "COMMIT AND NO CHAIN NO RELEASE";
    case AUTOCOMMIT_BEFORE:
    case AUTOCOMMIT:
        return reset->autocommit ? "SET autocommit=1" : "SET autocommit=0";
    case DONE:
    case FAILED:
        break;
    }
    return "";
}

size_t dbp_reset_command(struct dbp_reset *reset, const struct dbp_pool_spec *spec, uint8_t *buf) {
    char room[DBP_RESET_NAMES_MAX];
    uint8_t command;
    const char *text = text_of(reset, spec, room, sizeof room, &command);
    size_t n = strlen(text);

    buf[0] = (uint8_t)((n + 1) & 0xffu);
    buf[1] = (uint8_t)((n + 1) >> 8);
    buf[2] = buf[3] = 0;
    buf[4] = command;
    memcpy(buf + 5, text, n);
    reset->await = FIRST;
    reset->sequence = 1;
    reset->n = 0;
    return n + 5;
}

/* ---- answers ---- */

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

static void fail(struct dbp_reset *reset, uint16_t error) {
    reset->stage = FAILED;
    reset->error = error;
}

/* A command was answered: on to the next that applies. */
static void go_on(struct dbp_reset *reset, const struct dbp_pool_spec *spec) {
    enum stage answered = (enum stage)reset->stage;

    reset->await = NOTHING;
    if ((reset->status & STATUS_IN_TRANS) && answered != INIT) {
        fail(reset, 0);
    } else if ((answered == PING || answered == AUTOCOMMIT || answered == AUTOCOMMIT_BEFORE) && off_baseline(reset)) {
        fail(reset, 0);
    } else if (answered == PING) {
        reset->stage = DONE;
    } else {
        if (answered == INIT)
            reset->init_at += (uint32_t)strlen(init_statement(reset, spec)) + 1;
        else
            reset->stage = answered != END_TRANSACTION     ? (uint8_t)(answered + 1)
                           : reset->kind == DBP_RESET_FULL ? EMPTY
                                                           : AUTOCOMMIT;
        while (reset->stage != DONE && !applies(reset, spec))
            reset->stage++;
    }
}

/* The end of one result: by its OK or its last EOF. */
static void result_over(struct dbp_reset *reset, const struct dbp_pool_spec *spec) {
    if (!(reset->status & STATUS_MORE_RESULTS))
        go_on(reset, spec);
    else if (reset->stage == INIT)
        reset->await = FIRST;
    else
        fail(reset, 0);
}

static uint16_t word_at(const uint8_t *p) {
    return (uint16_t)(p[0] | p[1] << 8);
}

/* One whole packet: length bytes of payload, of which p has the first DBP_RESET_SEEN. */
static void take_packet(struct dbp_reset *reset, const struct dbp_pool_spec *spec, const uint8_t *p, size_t length) {
    size_t seen = length < DBP_RESET_SEEN ? length : DBP_RESET_SEEN, at = 1;
    bool eof = length == 5 && p[0] == 0xfe;

    if (length > 0 && p[0] == 0xff) {
        fail(reset, length >= 3 ? word_at(p + 1) : 0);
        return;
    }
    switch ((enum await)reset->await) {
    case FIRST:
        if (length >= 7 && p[0] == 0x00 && skip_lenenc(p, seen, &at) && skip_lenenc(p, seen, &at) && seen - at >= 2) {
            reset->status = word_at(p + at);
            result_over(reset, spec);
        } else if (reset->stage == INIT && length > 0 && p[0] >= 1 && p[0] < 0xfe && p[0] != 0xfb) {
            reset->await = COLUMNS; /* the number of columns; 0xfb would ask for a local file */
        } else {
            fail(reset, 0);
        }
        return;
    case COLUMNS:
        if (eof)
            reset->await = ROWS;
        return;
    case ROWS:
        if (eof) {
            reset->status = word_at(p + 3);
            result_over(reset, spec);
        } else if (length > 0 && p[0] == 0xfe && length < EOF_MOST) {
            fail(reset, 0);
        }
        return;
    case NOTHING:
        fail(reset, 0);
    }
}

void dbp_reset_feed(struct dbp_reset *reset, const struct dbp_pool_spec *spec, const uint8_t *data, size_t n) {
    size_t length = 0;

    if (n > 0 && dbp_reset_step(reset) != DBP_RESET_READ)
        fail(reset, 0);
    while (n > 0 && reset->stage != FAILED) {
        /* Between two packets more may come only while an answer goes on. */
        if (dbp_reset_step(reset) != DBP_RESET_READ) {
            fail(reset, 0);
            return;
        }
        if (reset->n < 4) {
            reset->in[reset->n++] = *data++;
            n--;
        }
        if (reset->n < 4)
            continue;
        length = (size_t)reset->in[0] | (size_t)reset->in[1] << 8 | (size_t)reset->in[2] << 16;
        /* The sequence shows that it is the next packet of this answer, and not the end of something older. */
        if (length == 0xffffffu || reset->in[3] != reset->sequence ||
            (reset->stage != INIT && length > DBP_RESET_PACKET_MAX)) {
            fail(reset, 0);
            return;
        }
        size_t have = reset->n - 4, take = length - have < n ? length - have : n;
        if (have < DBP_RESET_SEEN)
            memcpy(reset->in + reset->n, data, take < DBP_RESET_SEEN - have ? take : DBP_RESET_SEEN - have);
        reset->n += (uint32_t)take;
        data += take;
        n -= take;
        if (reset->n == length + 4) {
            reset->n = 0;
            reset->sequence++;
            take_packet(reset, spec, reset->in + 4, length);
        }
    }
}

/* SPDX-License-Identifier: MIT
 * The login as bytes: see handshake.h. Layouts are those of MySQL's "Connection Phase Packets" and of MariaDB's
 * "Connecting" (which puts its extended capabilities into the last 4 of the 10 reserved bytes of the greeting and of
 * the 23 reserved bytes of the answer, when bit 0 is off).
 */
#include "handshake.h"

#include <string.h>

/* Any 20 bytes without NUL do: a replay accepts every answer to them. */
static const uint8_t scramble[DBP_SCRAMBLE_LEN + 1] = "dbpool-replays-login";

/* A reader that cannot leave its bytes: after the first miss it is bad and gives zeros. */
struct reader {
    const uint8_t *p, *end;
    bool bad;
};

static const uint8_t *take(struct reader *r, uint64_t n) {
    if (r->bad || n > (uint64_t)(r->end - r->p)) {
        r->bad = true;
        return NULL;
    }
    const uint8_t *at = r->p;
    r->p += n;
    return at;
}

static uint64_t take_int(struct reader *r, unsigned bytes) {
    const uint8_t *at = take(r, bytes);
    uint64_t v = 0;

    for (unsigned i = 0; at && i < bytes; i++)
        v |= (uint64_t)at[i] << (8 * i);
    return v;
}

static uint64_t take_lenenc(struct reader *r) {
    uint64_t first = take_int(r, 1);

    switch (first) {
    case 0xfc:
        return take_int(r, 2);
    case 0xfd:
        return take_int(r, 3);
    case 0xfe:
        return take_int(r, 8);
    case 0xfb: /* NULL in a row */
    case 0xff: /* the head of an ERR */
        r->bad = true;
        return 0;
    default:
        return first;
    }
}

static const char *take_string(struct reader *r) {
    const uint8_t *nul = r->bad ? NULL : memchr(r->p, 0, (size_t)(r->end - r->p));

    if (!nul) {
        r->bad = true;
        return "";
    }
    const char *at = (const char *)r->p;
    r->p = nul + 1;
    return at;
}

static void put_int(uint8_t *at, uint64_t v, unsigned bytes) {
    for (unsigned i = 0; i < bytes; i++)
        at[i] = (uint8_t)(v >> (8 * i));
}

int dbp_packet_peek(const uint8_t *data, size_t n, size_t max, struct dbp_packet *packetp) {
    struct reader r = {data, data + n, false};
    uint64_t len = take_int(&r, 3);
    uint64_t seq = take_int(&r, 1);

    if (n >= 3 && len > max)
        return DBP_E_INVALID;
    const uint8_t *payload = take(&r, len);
    if (r.bad)
        return DBP_E_BUSY;
    *packetp = (struct dbp_packet){payload, (size_t)len, (uint8_t)seq};
    return 0;
}

void dbp_packet_head(uint8_t head[DBP_PACKET_HEAD], size_t len, uint8_t seq) {
    put_int(head, len, 3);
    head[3] = seq;
}

/* ---- greeting ---- */

/* Where the fixed part stands that masking changes; it comes after a string of any length. */
static int greeting_split(const uint8_t *payload, size_t n, struct dbp_greeting *g, size_t *fixedp) {
    struct reader r = {payload, payload + n, false};

    if (take_int(&r, 1) != 10)
        return DBP_E_INVALID;
    g->version = take_string(&r);
    g->connection_id = (uint32_t)take_int(&r, 4);
    take(&r, 8 + 1); /* first part of the scramble, filler */
    *fixedp = (size_t)(r.p - payload);
    g->capabilities = (uint32_t)take_int(&r, 2);
    g->charset = (uint8_t)take_int(&r, 1);
    g->status = (uint16_t)take_int(&r, 2);
    g->capabilities |= (uint32_t)take_int(&r, 2) << 16;
    uint64_t auth_len = take_int(&r, 1);
    take(&r, 6);
    g->extended = (uint32_t)take_int(&r, 4);
    if (g->capabilities & DBP_CAP_LONG_PASSWORD)
        g->extended = 0; /* MySQL: the bytes mean nothing */
    if (r.bad || !(g->capabilities & DBP_CAP_PROTOCOL_41) || !(g->capabilities & DBP_CAP_SECURE_CONNECTION))
        return DBP_E_INVALID;
    take(&r, auth_len > 8 + 13 ? auth_len - 8 : 13);
    /* The plugin's name is not needed, and old servers leave its NUL away. */
    return r.bad ? DBP_E_INVALID : 0;
}

int dbp_greeting_parse(const uint8_t *payload, size_t n, struct dbp_greeting *greetingp) {
    struct dbp_greeting g;
    size_t fixed;
    int rc = greeting_split(payload, n, &g, &fixed);

    if (rc == 0)
        *greetingp = g;
    return rc;
}

/* fixed: capabilities low 2, charset 1, status 2, capabilities high 2, auth length 1, reserved 6, extended 4 */
static void greeting_patch(uint8_t *fixed, uint32_t capabilities, uint16_t status) {
    put_int(fixed, capabilities & 0xffffu, 2);
    put_int(fixed + 3, status, 2);
    put_int(fixed + 5, capabilities >> 16, 2);
    memset(fixed + 8, 0, 10);
}

int dbp_greeting_mask(uint8_t *payload, size_t n) {
    struct dbp_greeting g;
    size_t fixed;
    int rc = greeting_split(payload, n, &g, &fixed);

    if (rc == 0)
        greeting_patch(payload + fixed, g.capabilities & DBP_CAP_PASSED, g.status);
    return rc;
}

int dbp_greeting_rebuild(const uint8_t *payload, size_t n, uint32_t capabilities, uint16_t status, uint8_t *buf,
                         size_t max, size_t *lenp) {
    struct dbp_greeting g;
    size_t fixed;
    int rc = greeting_split(payload, n, &g, &fixed);

    if (rc != 0)
        return rc;
    size_t rest = fixed + 18, len = rest + 13 + sizeof DBP_NATIVE_PASSWORD;
    if (len > max)
        return DBP_E_INVALID;
    memcpy(buf, payload, rest);
    greeting_patch(buf + fixed, capabilities | DBP_CAP_PROTOCOL_41 | DBP_CAP_SECURE_CONNECTION | DBP_CAP_PLUGIN_AUTH,
                   status);
    memcpy(buf + fixed - 9, scramble, 8);
    buf[fixed + 7] = DBP_SCRAMBLE_LEN + 1;
    memcpy(buf + rest, scramble + 8, 13); /* with its NUL */
    memcpy(buf + rest + 13, DBP_NATIVE_PASSWORD, sizeof DBP_NATIVE_PASSWORD);
    *lenp = len;
    return 0;
}

/* ---- the client's answer ---- */

int dbp_login_parse(const uint8_t *payload, size_t n, uint32_t offered, struct dbp_login *loginp) {
    struct reader r = {payload, payload + n, false};
    struct dbp_login l = {.plugin = ""};

    l.capabilities = (uint32_t)take_int(&r, 4);
    take(&r, 4); /* max packet size: servers keep their own */
    l.charset = (uint8_t)take_int(&r, 1);
    take(&r, 19);
    l.extended = (uint32_t)take_int(&r, 4);
    if (r.bad || !(l.capabilities & DBP_CAP_PROTOCOL_41))
        return DBP_E_INVALID;
    if (l.capabilities & DBP_CAP_LONG_PASSWORD)
        l.extended = 0;
    if (n == 32) { /* nothing shorter than 34 is an answer: user and password have at least a byte each */
        if (!(l.capabilities & DBP_CAP_SSL))
            return DBP_E_INVALID;
        *loginp = (struct dbp_login){.ssl_request = true, .plugin = ""};
        return 0;
    }
    uint32_t both = l.capabilities & offered;
    take_string(&r); /* user */
    if (both & DBP_CAP_AUTH_LENENC)
        take(&r, take_lenenc(&r));
    else if (both & DBP_CAP_SECURE_CONNECTION)
        take(&r, take_int(&r, 1));
    else
        take_string(&r);
    if (both & DBP_CAP_CONNECT_WITH_DB)
        take_string(&r);
    if (both & DBP_CAP_PLUGIN_AUTH)
        l.plugin = take_string(&r);
    if (both & DBP_CAP_CONNECT_ATTRS)
        take(&r, take_lenenc(&r));
    if (r.bad)
        return DBP_E_INVALID;
    *loginp = l;
    return 0;
}

int dbp_login_mask(uint8_t *payload, size_t n, uint32_t offered) {
    struct dbp_login l;
    int rc = dbp_login_parse(payload, n, offered, &l);

    if (rc != 0)
        return rc;
    if (l.ssl_request)
        return DBP_E_INVALID;
    put_int(payload, l.capabilities & DBP_CAP_PASSED, 4);
    memset(payload + 9, 0, 23);
    return 0;
}

/* ---- OK, ERR, auth switch ---- */

size_t dbp_build_ok(uint8_t *buf, size_t max, uint8_t seq, uint16_t status) {
    size_t len = 7; /* head, affected rows 0, insert id 0, status, warnings 0 */

    if (max < DBP_PACKET_HEAD + len)
        return 0;
    dbp_packet_head(buf, len, seq);
    memset(buf + DBP_PACKET_HEAD, 0, len);
    put_int(buf + DBP_PACKET_HEAD + 3, status, 2);
    return DBP_PACKET_HEAD + len;
}

size_t dbp_build_err(uint8_t *buf, size_t max, uint8_t seq, uint16_t code, const char *sqlstate, const char *text) {
    size_t text_len = strlen(text), len = 1 + 2 + 1 + 5 + text_len;

    if (strlen(sqlstate) != 5 || max < DBP_PACKET_HEAD || max - DBP_PACKET_HEAD < len)
        return 0;
    dbp_packet_head(buf, len, seq);
    uint8_t *p = buf + DBP_PACKET_HEAD;
    *p++ = 0xff;
    put_int(p, code, 2);
    p += 2;
    *p++ = '#';
    memcpy(p, sqlstate, 5);
    memcpy(p + 5, text, text_len);
    return DBP_PACKET_HEAD + len;
}

size_t dbp_build_auth_switch(uint8_t *buf, size_t max, uint8_t seq) {
    size_t len = 1 + sizeof DBP_NATIVE_PASSWORD + sizeof scramble;

    if (max < DBP_PACKET_HEAD + len)
        return 0;
    dbp_packet_head(buf, len, seq);
    buf[DBP_PACKET_HEAD] = 0xfe;
    memcpy(buf + DBP_PACKET_HEAD + 1, DBP_NATIVE_PASSWORD, sizeof DBP_NATIVE_PASSWORD);
    memcpy(buf + DBP_PACKET_HEAD + 1 + sizeof DBP_NATIVE_PASSWORD, scramble, sizeof scramble);
    return DBP_PACKET_HEAD + len;
}

int dbp_ok_parse(const uint8_t *payload, size_t n, uint16_t *statusp) {
    struct reader r = {payload, payload + n, false};

    if (take_int(&r, 1) != 0)
        return DBP_E_INVALID;
    take_lenenc(&r);
    take_lenenc(&r);
    uint16_t status = (uint16_t)take_int(&r, 2);
    take(&r, 2); /* warnings */
    if (r.bad)
        return DBP_E_INVALID;
    *statusp = status;
    return 0;
}

int dbp_err_parse(const uint8_t *payload, size_t n, struct dbp_error *errorp) {
    struct reader r = {payload, payload + n, false};
    struct dbp_error e = {.sqlstate = "HY000"};

    if (take_int(&r, 1) != 0xff)
        return DBP_E_INVALID;
    e.code = (uint32_t)take_int(&r, 2);
    if (r.bad || e.code == 0xffff) /* MariaDB's progress report, which we never negotiate */
        return DBP_E_INVALID;
    if (r.p < r.end && *r.p == '#') {
        const uint8_t *state = take(&r, 6);
        if (!state)
            return DBP_E_INVALID;
        memcpy(e.sqlstate, state + 1, 5);
    }
    size_t len = (size_t)(r.end - r.p);
    if (len >= sizeof e.text)
        len = sizeof e.text - 1;
    memcpy(e.text, r.p, len);
    *errorp = e;
    return 0;
}

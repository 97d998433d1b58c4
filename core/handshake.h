/* SPDX-License-Identifier: MIT
 * The MySQL protocol's login as bytes: packets, the server's greeting, the client's answer, OK and ERR. No I/O, no
 * allocation; every parser takes any bytes and reads none outside of them. Only protocol 4.1 (MySQL 4.1, 2004) is
 * spoken.
 *
 * Masking is why this exists: a session is opened by one library and used by others, so it may only have capabilities
 * that all of them understand in the same way (DBP_CAP_PASSED). Masking changes no length.
 */
#ifndef DBPOOL_HANDSHAKE_H
#define DBPOOL_HANDSHAKE_H

#include "dbpool.h"

/* Capability bits as MySQL names them (CLIENT_*): core knows no mysql.h outside of the connector. */
#define DBP_CAP_LONG_PASSWORD (1u << 0) /* MariaDB: "no extended bits follow" (CLIENT_MYSQL) */
#define DBP_CAP_FOUND_ROWS (1u << 1)
#define DBP_CAP_CONNECT_WITH_DB (1u << 3)
#define DBP_CAP_NO_SCHEMA (1u << 4)
#define DBP_CAP_COMPRESS (1u << 5)
#define DBP_CAP_LOCAL_FILES (1u << 7)
#define DBP_CAP_IGNORE_SPACE (1u << 8)
#define DBP_CAP_PROTOCOL_41 (1u << 9)
#define DBP_CAP_INTERACTIVE (1u << 10)
#define DBP_CAP_SSL (1u << 11)
#define DBP_CAP_TRANSACTIONS (1u << 13)
#define DBP_CAP_SECURE_CONNECTION (1u << 15)
#define DBP_CAP_MULTI_STATEMENTS (1u << 16)
#define DBP_CAP_MULTI_RESULTS (1u << 17)
#define DBP_CAP_PS_MULTI_RESULTS (1u << 18)
#define DBP_CAP_PLUGIN_AUTH (1u << 19)
#define DBP_CAP_CONNECT_ATTRS (1u << 20)
#define DBP_CAP_AUTH_LENENC (1u << 21)
#define DBP_CAP_SESSION_TRACK (1u << 23)
#define DBP_CAP_DEPRECATE_EOF (1u << 24)
#define DBP_CAP_OPTIONAL_METADATA (1u << 25)
#define DBP_CAP_ZSTD (1u << 26)
#define DBP_CAP_QUERY_ATTRIBUTES (1u << 27)

/* What a pooled session may negotiate: the bits that drivers agree on. Bit 24 and above differ between stock drivers
 * (DEPRECATE_EOF, optional metadata, zstd, query attributes, MariaDB's old progress bit 29) or mean nothing on the
 * wire. */
#define DBP_CAP_PASSED (0x00ffffffu & ~(DBP_CAP_COMPRESS | DBP_CAP_SSL))

#define DBP_STATUS_IN_TRANS 0x0001u
#define DBP_STATUS_AUTOCOMMIT 0x0002u
#define DBP_STATUS_NO_BACKSLASH_ESCAPES 0x0200u
#define DBP_STATUS_IN_TRANS_READONLY 0x2000u
#define DBP_STATUS_ANSI_QUOTES 0x8000u
/* The bits of a status word that describe the session, not the last statement. */
#define DBP_STATUS_LASTING                                                                                          \
    (DBP_STATUS_IN_TRANS | DBP_STATUS_AUTOCOMMIT | DBP_STATUS_NO_BACKSLASH_ESCAPES | DBP_STATUS_IN_TRANS_READONLY | \
     DBP_STATUS_ANSI_QUOTES)

#define DBP_PACKET_HEAD 4u
#define DBP_SCRAMBLE_LEN 20u /* of mysql_native_password */
#define DBP_NATIVE_PASSWORD "mysql_native_password"

struct dbp_packet {
    const uint8_t *payload; /* into the caller's bytes */
    size_t len;
    uint8_t seq;
};

/* Finds the packet that data starts with. 0; DBP_E_BUSY: not whole yet; DBP_E_INVALID: longer than max (payload). */
int dbp_packet_peek(const uint8_t *data, size_t n, size_t max, struct dbp_packet *packetp) DBP_MUST_USE;
void dbp_packet_head(uint8_t head[DBP_PACKET_HEAD], size_t len, uint8_t seq);

struct dbp_greeting {
    const char *version; /* NUL-terminated, in the payload */
    uint32_t connection_id;
    uint32_t capabilities;
    uint32_t extended; /* MariaDB's bits 32..63, 0 when the server has none */
    uint16_t status;
    uint8_t charset;
};

/* Takes a HandshakeV10 payload apart. 0 or DBP_E_INVALID. */
int dbp_greeting_parse(const uint8_t *payload, size_t n, struct dbp_greeting *greetingp) DBP_MUST_USE;

/* Leaves only DBP_CAP_PASSED in a greeting, in place. 0 or DBP_E_INVALID (unchanged). */
int dbp_greeting_mask(uint8_t *payload, size_t n) DBP_MUST_USE;

/* Writes the greeting that a replay shows: the same server, but with these capabilities and this status, no extended
 * bits, and mysql_native_password with a scramble of our own (caching_sha2 would start a dialogue; the server's
 * scramble was for one login). 0 with *lenp, or DBP_E_INVALID (also when max is too small). */
int dbp_greeting_rebuild(const uint8_t *payload, size_t n, uint32_t capabilities, uint16_t status, uint8_t *buf,
                         size_t max, size_t *lenp) DBP_MUST_USE;

struct dbp_login {
    uint32_t capabilities;
    uint32_t extended; /* 0 unless the client says that it knows them */
    uint8_t charset;
    bool ssl_request;   /* asks for TLS: nothing else was sent, the other members are zero */
    const char *plugin; /* NUL-terminated, in the payload; "" when not named */
};

/* Takes a HandshakeResponse41 (or SSLRequest) payload apart. offered: the greeting's capabilities; clients set bits
 * that were not offered and leave out what would go with them. 0 or DBP_E_INVALID. */
int dbp_login_parse(const uint8_t *payload, size_t n, uint32_t offered, struct dbp_login *loginp) DBP_MUST_USE;

/* Leaves only DBP_CAP_PASSED in an answer, in place. 0; DBP_E_INVALID (not understood, or SSLRequest: unchanged). */
int dbp_login_mask(uint8_t *payload, size_t n, uint32_t offered) DBP_MUST_USE;

/* Whole packets with their head. Return the length, 0 when max is too small. */
size_t dbp_build_ok(uint8_t *buf, size_t max, uint8_t seq, uint16_t status);
size_t dbp_build_err(uint8_t *buf, size_t max, uint8_t seq, uint16_t code, const char *sqlstate, const char *text);
/* Asks the client to go on with mysql_native_password. */
size_t dbp_build_auth_switch(uint8_t *buf, size_t max, uint8_t seq);

/* The status word of an OK payload. 0 or DBP_E_INVALID (not an OK). */
int dbp_ok_parse(const uint8_t *payload, size_t n, uint16_t *statusp) DBP_MUST_USE;
/* An ERR payload, with sqlstate or (before the greeting) without. 0 or DBP_E_INVALID (not an ERR). */
int dbp_err_parse(const uint8_t *payload, size_t n, struct dbp_error *errorp) DBP_MUST_USE;

#endif

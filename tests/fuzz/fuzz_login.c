/* SPDX-License-Identifier: MIT
 * The bytes of a login from both sides: a server's greeting and answers through handshake.c as the relay uses it, and a
 * driver's through the replay, whose greeting was made from that very server's. What was masked must parse again and
 * have no capability that was masked; a replay must stay within its bytes, answer in whole packets, and be dead or
 * refusing once it said so.
 */
#include "fuzz.h"

#include "handshake.h"

#include <stdlib.h>
#include <string.h>

static uint8_t *copy_of(const uint8_t *bytes, size_t n) {
    uint8_t *copy = malloc(n ? n : 1); /* exactly so long, for the address sanitizer */

    FUZZ_CHECK(copy);
    memcpy(copy, bytes, n);
    return copy;
}

/* As relay.c: mask, parse, rebuild. True: facts has a greeting to replay. */
static bool greeting(const uint8_t *bytes, size_t n, struct dbp_session_facts *facts) {
    struct dbp_greeting before, after, replayed;
    uint8_t *payload = copy_of(bytes, n);
    size_t len = 0;

    bool parsed = dbp_greeting_parse(payload, n, &before) == 0;
    FUZZ_CHECK((dbp_greeting_mask(payload, n) == 0) == parsed);
    if (parsed) {
        FUZZ_CHECK(dbp_greeting_parse(payload, n, &after) == 0);
        FUZZ_CHECK(after.capabilities == (before.capabilities & DBP_CAP_PASSED) && after.extended == 0);
        FUZZ_CHECK(after.connection_id == before.connection_id && strlen(after.version) < n);
        parsed =
            dbp_greeting_rebuild(payload, n, after.capabilities, 2, facts->greeting, sizeof facts->greeting, &len) == 0;
    }
    if (parsed) {
        FUZZ_CHECK(len <= sizeof facts->greeting && dbp_greeting_parse(facts->greeting, len, &replayed) == 0);
        FUZZ_CHECK(!(replayed.capabilities & ~(DBP_CAP_PASSED)) && replayed.extended == 0);
        facts->greeting_len = (uint32_t)len;
        facts->capabilities = after.capabilities;
        facts->connection_id = after.connection_id;
    }
    free(payload);
    return parsed;
}

static void answer(const uint8_t *bytes, size_t n, struct dbp_session_facts *facts) {
    uint8_t *payload = copy_of(bytes, n);
    struct dbp_login before, after;
    uint32_t offered = facts->capabilities;

    bool parsed = dbp_login_parse(payload, n, offered, &before) == 0;
    FUZZ_CHECK((dbp_login_mask(payload, n, offered) == 0) == (parsed && !before.ssl_request));
    if (parsed && !before.ssl_request) {
        FUZZ_CHECK(dbp_login_parse(payload, n, offered, &after) == 0);
        FUZZ_CHECK(!(after.capabilities & ~(DBP_CAP_PASSED)) && after.extended == 0);
        FUZZ_CHECK(strlen(after.plugin) < n);
        facts->capabilities &= after.capabilities;
        facts->charset = after.charset;
    }
    free(payload);
}

static void replies(const uint8_t *bytes, size_t n) {
    uint8_t *payload = copy_of(bytes, n);
    struct dbp_error error;
    uint16_t status;

    int ok = dbp_ok_parse(payload, n, &status), err = dbp_err_parse(payload, n, &error);
    FUZZ_CHECK(ok != 0 || err != 0);
    if (err == 0)
        FUZZ_CHECK(memchr(error.text, 0, sizeof error.text) && error.sqlstate[5] == 0);
    free(payload);
}

static void replay(struct input *in, const struct dbp_session_facts *facts) {
    struct dbp_replay *r;
    struct dbp_packet packet;
    uint8_t out[4096];
    size_t n_out = 0, n;
    bool dead = false;

    if (dbp_replay_new(facts, "utf8mb4", 2, &r) != 0)
        return;
    for (uint32_t i = 0; i < 64 && in->p < in->end; i++) {
        const uint8_t *bytes = input_bytes(in, 1024, &n);
        uint8_t *copy = copy_of(bytes, n);
        int rc = dbp_replay_feed(r, copy, n);
        free(copy);
        FUZZ_CHECK(rc == 0 || rc == DBP_E_INVALID);
        FUZZ_CHECK(!dead || rc != 0 || n == 0);
        dead |= rc != 0;
        FUZZ_CHECK(!dead || dbp_replay_refusal(r));
        /* The driver reads what is there, or, seldom, nothing. */
        if (i % 8 != 7)
            n_out += dbp_replay_take(r, out + n_out, sizeof out - n_out);
        while (dbp_packet_peek(out, n_out, sizeof out, &packet) == 0) {
            FUZZ_CHECK(packet.len > 0);
            size_t used = DBP_PACKET_HEAD + packet.len;
            memmove(out, out + used, n_out - used);
            n_out -= used;
        }
    }
    n_out += dbp_replay_take(r, out + n_out, sizeof out - n_out);
    const char *why = dbp_replay_refusal(r);
    FUZZ_CHECK(!why || (why[0] && strlen(why) < 512));
    dbp_replay_free(r);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct dbp_session_facts *facts = calloc(1, sizeof *facts);
    struct input in = {data, data + size};
    size_t n;

    FUZZ_CHECK(facts);
    uint8_t raw = input_u8(&in);
    const uint8_t *bytes = input_bytes(&in, 1024, &n);
    replies(bytes, n);
    bool known = greeting(bytes, n, facts);
    if (!known && (raw & 1u)) { /* facts as a lying connector would deliver them */
        facts->greeting_len = (uint32_t)(n < sizeof facts->greeting ? n : sizeof facts->greeting);
        memcpy(facts->greeting, bytes, facts->greeting_len);
        facts->capabilities = input_u32(&in);
        known = true;
    }
    bytes = input_bytes(&in, 1024, &n);
    replies(bytes, n);
    if (known) {
        answer(bytes, n, facts);
        replay(&in, facts);
    }
    free(facts);
    return 0;
}

/* ---- seeds: what MariaDB, libmariadb and PyMySQL say ---- */

static size_t put(uint8_t *at, size_t n, const void *bytes, size_t len) {
    memcpy(at + n, bytes, len);
    return n + len;
}

static size_t make_greeting(uint8_t *at) {
    static const uint8_t fixed[] = {0xff, 0xf7, 45, 2, 0, 0xff, 0x81, 21, 0, 0, 0, 0, 0, 0, 0x1d, 0, 0, 0};
    size_t n = put(at, 0, "\n10.11.6-MariaDB\0\x2a\0\0\0abcdefgh", 1 + 15 + 1 + 4 + 8 + 1);

    n = put(at, n, fixed, sizeof fixed);
    n = put(at, n, "ijklmnopqrst", 13);
    return put(at, n, DBP_NATIVE_PASSWORD, sizeof DBP_NATIVE_PASSWORD);
}

static size_t make_login(uint8_t *at, uint32_t capabilities, const char *plugin) {
    uint8_t head[32] = {(uint8_t)capabilities,
                        (uint8_t)(capabilities >> 8),
                        (uint8_t)(capabilities >> 16),
                        (uint8_t)(capabilities >> 24),
                        0,
                        0,
                        0,
                        1,
                        45};
    size_t n = put(at, 0, head, sizeof head);

    n = put(at, n,
            "app\0\x14"
            "01234567890123456789shop",
            4 + 1 + 20 + 5);
    n = put(at, n, plugin, strlen(plugin) + 1);
    return put(at, n,
               "\x0d\x04_pid\x07"
               "1234567",
               14);
}

static void put_packet(struct output *out, const void *payload, size_t n, uint8_t seq) {
    uint8_t packet[512];

    dbp_packet_head(packet, n, seq);
    memcpy(packet + DBP_PACKET_HEAD, payload, n);
    output_bytes(out, packet, n + DBP_PACKET_HEAD);
}

size_t fuzz_seed(unsigned i, uint8_t *buf) {
    static const char *const sql[] = {"\003SET NAMES utf8mb4", "\003SET autocommit=1", "\003SELECT 'x'", "\016"};
    struct output out = {buf, 0};
    uint8_t bytes[512];
    uint32_t capabilities = 0x00bfa68fu & ~(DBP_CAP_LOCAL_FILES | DBP_CAP_FOUND_ROWS);
    const char *plugin = i % 2 ? "caching_sha2_password" : DBP_NATIVE_PASSWORD;

    if (i >= 6)
        return 0;
    output_u8(&out, (uint8_t)(i / 2));
    output_bytes(&out, bytes, make_greeting(bytes));
    size_t n = make_login(bytes, capabilities, plugin);
    output_bytes(&out, bytes, n);
    put_packet(&out, bytes, n < 123 ? n : 123, 1);
    if (i % 2)
        put_packet(&out, "0123456789abcdefghij", 20, 3);
    for (unsigned k = 0; k < 4; k++)
        put_packet(&out, sql[k], strlen(sql[k]), 0);
    put_packet(&out, "\001", 1, 0);
    return out.n;
}

/* SPDX-License-Identifier: MIT
 * The relay between any server and any client: what the two say, in which pieces and in which order, and who hangs up
 * when, is the input's. Nothing but a masked login may come through, a session may only be detached after one, and
 * no thread or fd may be left.
 */
#include "fuzz.h"

#include "handshake.h"
#include "relay.h"
#include "replay.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum op { OP_SERVER_SAYS, OP_CLIENT_SAYS, OP_SERVER_ENDS, OP_CLIENT_ENDS, OP_PAUSE, OP_READ, OPS };

static int listener = -1;
static char name[DBP_DOOR_NAME_MAX];

static int connect_to(const char *to) {
    struct sockaddr_un addr;
    socklen_t len;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    FUZZ_CHECK(fd >= 0 && dbp_unix_address(to, &addr, &len) == 0);
    FUZZ_CHECK(connect(fd, (struct sockaddr *)&addr, len) == 0);
    return fd;
}

/* Gives the relay's thread a chance: until it has sent something here, or a short time. */
static void pause_for(int fd) {
    struct pollfd p = {.fd = fd, .events = POLLIN};

    (void)poll(&p, 1, 1);
}

static size_t read_away(int fd, uint8_t *buf, size_t max) {
    ssize_t n = recv(fd, buf, max, MSG_DONTWAIT);

    return n > 0 ? (size_t)n : 0;
}

/* The first packet that arrives on either side has been masked. */
static void check_greeting(const uint8_t *bytes, size_t n) {
    struct dbp_packet p;
    struct dbp_greeting g;

    if (dbp_packet_peek(bytes, n, 65536, &p) != 0 || (p.len > 0 && p.payload[0] == 0xff))
        return;
    FUZZ_CHECK(dbp_greeting_parse(p.payload, p.len, &g) == 0);
    FUZZ_CHECK(!(g.capabilities & ~DBP_CAP_PASSED) && g.extended == 0);
}

static void check_login(const uint8_t *bytes, size_t n) {
    struct dbp_packet p;

    if (dbp_packet_peek(bytes, n, 65536, &p) != 0)
        return;
    FUZZ_CHECK(p.len >= 4 && p.payload[3] == 0); /* no capability above bit 23 */
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct input in = {data, data + size};
    struct dbp_relay_session session = {.fd = -1};
    struct dbp_relay *relay = NULL;
    struct dbp_error error;
    uint8_t to_client[4096], to_server[4096];
    size_t n_client = 0, n_server = 0, n;

    if (listener < 0)
        FUZZ_CHECK(dbp_door_open_unix(name, &listener) == 0);
    int before = fuzz_next_fd();
    struct dbp_relay_route route = {.host = "", .unix_socket = name, .stop_fd = -1};
    route.connect_deadline_us = route.deadline_us = dbp_now_us() + 20000000u;
    FUZZ_CHECK(dbp_relay_start(&route, &error, &relay) == 0);
    int server = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK),
        client = connect_to(dbp_relay_socket(relay));
    FUZZ_CHECK(server >= 0);
    for (uint32_t i = 0; i < 64 && in.p < in.end; i++) {
        enum op op = (enum op)(input_u8(&in) % OPS);
        switch (op) {
        case OP_SERVER_SAYS:
        case OP_CLIENT_SAYS: {
            const uint8_t *bytes = input_bytes(&in, 1024, &n);
            (void)!send(op == OP_SERVER_SAYS ? server : client, bytes, n, MSG_NOSIGNAL | MSG_DONTWAIT);
            break;
        }
        case OP_SERVER_ENDS:
            shutdown(server, SHUT_WR);
            break;
        case OP_CLIENT_ENDS:
            shutdown(client, SHUT_WR);
            break;
        case OP_PAUSE:
            pause_for(input_u8(&in) & 1u ? client : server);
            break;
        default:
            n_client += read_away(client, to_client + n_client, sizeof to_client - n_client);
            n_server += read_away(server, to_server + n_server, sizeof to_server - n_server);
            break;
        }
    }
    int rc = dbp_relay_detach(relay, client, &session);
    FUZZ_CHECK(rc == 0 || rc == DBP_E_INVALID || rc == -EPROTO);
    n_client += read_away(client, to_client + n_client, sizeof to_client - n_client);
    n_server += read_away(server, to_server + n_server, sizeof to_server - n_server);
    check_greeting(to_client, n_client);
    check_login(to_server, n_server);
    if (rc == 0) {
        struct dbp_greeting g;
        FUZZ_CHECK(session.fd >= 0 && session.greeting_len <= sizeof session.greeting);
        FUZZ_CHECK(dbp_greeting_parse(session.greeting, session.greeting_len, &g) == 0);
        FUZZ_CHECK(!(session.capabilities & ~DBP_CAP_PASSED));
        close(session.fd);
    }
    close(client);
    relay = dbp_relay_free(relay);
    close(server);
    FUZZ_CHECK(fuzz_next_fd() == before);
    return 0;
}

/* ---- seeds ---- */

static void put_packet(struct output *out, enum op op, const void *payload, size_t n, uint8_t seq, size_t cut) {
    uint8_t packet[256];

    dbp_packet_head(packet, n, seq);
    memcpy(packet + DBP_PACKET_HEAD, payload, n);
    n += DBP_PACKET_HEAD;
    for (size_t at = 0; at < n; at += cut) {
        output_u8(out, (uint8_t)op);
        output_bytes(out, packet + at, n - at < cut ? n - at : cut);
    }
    output_u8(out, OP_PAUSE);
    output_u8(out, op == OP_SERVER_SAYS);
}

size_t fuzz_seed(unsigned i, uint8_t *buf) {
    static const char greeting[] =
        "\n10.11.6-MariaDB\0\x2a\0\0\0abcdefgh\0\xff\xf7\x2d\2\0\xff\x81\x15\0\0\0\0\0\0\x1d\0\0\0"
        "ijklmnopqrst\0mysql_native_password";
    static const char login[] = "\x8f\xa6\xbf\0\0\0\0\1\x2d\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0app\0\x14"
                                "01234567890123456789shop\0mysql_native_password\0\x0d\4_pid\7"
                                "1234567";
    struct output out = {buf, 0};
    size_t cut = i < 2 ? 120 : 40;

    if (i >= 4)
        return 0;
    put_packet(&out, OP_SERVER_SAYS, greeting, sizeof greeting, 0, cut);
    put_packet(&out, OP_CLIENT_SAYS, login, sizeof login - 1, 1, cut);
    put_packet(&out, OP_SERVER_SAYS, "\0\0\0\2\0\0\0", 7, 2, cut);
    output_u8(&out, OP_READ);
    put_packet(&out, OP_CLIENT_SAYS, "\003SELECT 1", 9, 0, cut);
    output_u8(&out, OP_READ);
    if (i % 2) {
        put_packet(&out, OP_SERVER_SAYS, "\0\0\0\2\0\0\0", 7, 1, cut);
        output_u8(&out, OP_READ);
    } else {
        output_u8(&out, i ? OP_CLIENT_ENDS : OP_SERVER_ENDS);
    }
    return out.n;
}

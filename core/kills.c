/* SPDX-License-Identifier: MIT
 * KILL statements over one connection: see kills.h. Packet layout: MySQL client/server protocol, COM_QUERY (0x03),
 * OK_Packet (0x00), ERR_Packet (0xff, 2 bytes of code, '#', 5 bytes of SQLSTATE, the text).
 */
#include "kills.h"

#include "handshake.h"
#include "replay.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#define IN_FLIGHT 32u /* statements without an answer: few enough that neither side's buffers ever fill */
#define STATEMENT_MAX 64u
#define ANSWER_MAX 1024u /* a packet; OK and ERR are far shorter */

struct dialogue {
    struct dbp_kill *kills;
    size_t n, said, answered;
    size_t out_at, out_n; /* of out, bytes sent, and all of them */
    size_t in_n;
    uint8_t out[IN_FLIGHT * STATEMENT_MAX];
    uint8_t in[ANSWER_MAX + DBP_PACKET_HEAD];
};

static void say_more(struct dialogue *d) {
    if (d->out_at < d->out_n)
        return;
    d->out_at = d->out_n = 0;
    for (; d->said < d->n && d->said - d->answered < IN_FLIGHT; d->said++) {
        uint8_t *packet = d->out + d->out_n;
        char sql[STATEMENT_MAX - DBP_PACKET_HEAD - 1];
        int n = snprintf(sql, sizeof sql, "KILL CONNECTION %u", d->kills[d->said].connection_id);
        dbp_packet_head(packet, (size_t)n + 1, 0);
        packet[DBP_PACKET_HEAD] = 0x03;
        memcpy(packet + DBP_PACKET_HEAD + 1, sql, (size_t)n);
        d->out_n += DBP_PACKET_HEAD + 1 + (size_t)n;
    }
}

/* False: not an answer to a KILL. */
static bool take_answer(struct dbp_kill *kill, const struct dbp_packet *packet) {
    const uint8_t *p = packet->payload;

    kill->error = (struct dbp_error){0};
    if (packet->seq != 1 || packet->len < 3)
        return false;
    if (p[0] == 0x00)
        return true;
    if (p[0] != 0xff)
        return false;
    size_t text = packet->len >= 9 && p[3] == '#' ? 9 : 3;
    kill->error.code = (uint32_t)(p[1] | p[2] << 8);
    snprintf(kill->error.sqlstate, sizeof kill->error.sqlstate, "%.5s", text == 9 ? (const char *)p + 4 : "HY000");
    snprintf(kill->error.text, sizeof kill->error.text, "%.*s", (int)(packet->len - text), (const char *)p + text);
    return kill->error.code != 0;
}

/* False: end of file, or no MySQL. */
static bool receive(struct dialogue *d, int fd) {
    ssize_t n = recv(fd, d->in + d->in_n, sizeof d->in - d->in_n, MSG_DONTWAIT);

    if (n < 0)
        return errno == EAGAIN || errno == EINTR;
    if (n == 0)
        return false;
    d->in_n += (size_t)n;
    for (;;) {
        struct dbp_packet packet;
        int rc = dbp_packet_peek(d->in, d->in_n, ANSWER_MAX, &packet);
        if (rc == DBP_E_BUSY)
            return true;
        if (rc != 0 || d->answered == d->said || !take_answer(&d->kills[d->answered], &packet))
            return false;
        d->answered++;
        d->in_n -= packet.len + DBP_PACKET_HEAD;
        memmove(d->in, d->in + packet.len + DBP_PACKET_HEAD, d->in_n);
    }
}

static bool transmit(struct dialogue *d, int fd) {
    ssize_t n = send(fd, d->out + d->out_at, d->out_n - d->out_at, MSG_DONTWAIT | MSG_NOSIGNAL);

    if (n < 0)
        return errno == EAGAIN || errno == EINTR;
    d->out_at += (size_t)n;
    return true;
}

size_t dbp_kills_run(int fd, int stop_fd, uint64_t patience_us, struct dbp_kill *kills, size_t n) {
    struct dialogue d = {.kills = kills, .n = n};
    uint64_t deadline = dbp_now_us() + patience_us;

    while (d.answered < n) {
        struct pollfd p[2] = {{.fd = fd, .events = POLLIN}, {.fd = stop_fd, .events = POLLIN}};

        say_more(&d);
        if (d.out_at < d.out_n)
            p[0].events |= POLLOUT;
        int ready = poll(p, 2, dbp_poll_ms(deadline));
        if ((ready < 0 && errno != EINTR) || (ready > 0 && p[1].revents) || (ready <= 0 && dbp_now_us() >= deadline))
            break;
        if (ready <= 0)
            continue;
        size_t before = d.answered;
        if ((p[0].revents & POLLOUT) && !transmit(&d, fd))
            break;
        if ((p[0].revents & ~POLLOUT) && !receive(&d, fd))
            break;
        if (d.answered > before)
            deadline = dbp_now_us() + patience_us;
    }
    return d.answered;
}

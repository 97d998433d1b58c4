/* SPDX-License-Identifier: MIT
 * The control protocol as the broker meets it: any bytes with any fds, in any order, from processes in any role, the
 * connector's included. The real broker runs beside it in its thread. After each input an honest client must still be
 * served, and when the broker has stopped no fd may be left.
 */
#include "fuzz.h"

#include "attach.h"
#include "broker.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define SLOTS 3u
#define CHANNELS 4u
#define FDS_MAX 253u /* SCM_MAX_FD */

enum op { OP_ATTACH, OP_SEND, OP_SEND_RAW, OP_READ, OP_CLOSE, OP_RING, OP_SYNC, OP_CONTROL, OPS };
enum fd_kind { FD_STREAM, FD_SEQPACKET, FD_FILE, FD_EVENT, FD_CHANNEL, FD_KINDS };

static struct dbp_share share;
static int channels[CHANNELS];
static _Atomic bool connector_may;

static void no_log(enum dbp_log_level level, const char *text) {
    (void)level;
    FUZZ_CHECK(strlen(text) < 2 * DBP_TEXT_MAX && !strstr(text, "sEcReT"));
}

static bool connector_is(void *arg, int32_t pid) {
    (void)arg;
    return atomic_load(&connector_may) && pid == getpid();
}

/* ---- sending what no honest process sends ---- */

static int make_fd(enum fd_kind kind, int channel) {
    int pair[2];

    switch (kind) {
    case FD_FILE:
        return open("/dev/null", O_RDWR | O_CLOEXEC);
    case FD_EVENT:
        return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    case FD_CHANNEL:
        if (channel >= 0)
            return fcntl(channel, F_DUPFD_CLOEXEC, 3);
        /* fall through */
    default:
        FUZZ_CHECK(socketpair(AF_UNIX,
                              (kind == FD_STREAM ? SOCK_STREAM : SOCK_SEQPACKET) | SOCK_CLOEXEC | SOCK_NONBLOCK, 0,
                              pair) == 0);
        close(pair[1]);
        return pair[0];
    }
}

static void send_any(int sock, const void *bytes, size_t n, uint32_t n_fds, enum fd_kind kind) {
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(FDS_MAX * sizeof(int))];
    } control;
    struct iovec iov = {.iov_base = (void *)(uintptr_t)bytes, .iov_len = n};
    struct msghdr mh = {.msg_iov = &iov, .msg_iovlen = 1};

    if (n_fds > 0) {
        int fd = make_fd(kind, sock);
        memset(&control, 0, sizeof control);
        mh.msg_control = control.bytes;
        mh.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
        struct cmsghdr *cmsg = CMSG_FIRSTHDR(&mh);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
        for (uint32_t i = 0; i < n_fds; i++)
            memcpy(CMSG_DATA(cmsg) + i * sizeof fd, &fd, sizeof fd);
        (void)!sendmsg(sock, &mh, MSG_DONTWAIT | MSG_NOSIGNAL);
        close(fd);
        return;
    }
    (void)!sendmsg(sock, &mh, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void drain(int channel) {
    union dbp_wire_any msg;
    int fd, rc;

    while ((rc = dbp_wire_recv(channel, &msg, &fd, NULL)) == 0)
        if (fd >= 0)
            close(fd);
    FUZZ_CHECK(rc == -EAGAIN || rc == -EPIPE); /* whatever the broker sends is understood */
}

static void sane_spec(struct dbp_pool_spec *spec, uint8_t alias) {
    memset(spec, 0, sizeof *spec);
    spec->alias[0] = (char)('a' + alias % 8u);
    memcpy(spec->password, "sEcReT", 7);
    spec->connect_timeout_s = 1;
    spec->pool_size = 1u + alias % 4u;
    spec->min_size = alias % 2u;
}

/* A message of a known type, right but for what the input changes in it. */
static void send_message(struct input *in, int sock) {
    union dbp_wire_any msg;
    uint8_t type = input_u8(in) % DBP_WIRE_TYPES, what = input_u8(in);
    size_t n;

    memset(&msg, 0, sizeof msg);
    dbp_wire_head_init(&msg.head, (enum dbp_wire_type)type, what);
    switch (type) {
    case DBP_WIRE_ATTACH:
        msg.attach.role = what % 4u;
        memset(msg.attach.label, 'l', sizeof msg.attach.label);
        break;
    case DBP_WIRE_REGISTER:
        sane_spec(&msg.reg.spec, what);
        break;
    case DBP_WIRE_FETCH:
        msg.fetch.session = what % 8u;
        msg.fetch.generation = what / 8u;
        break;
    case DBP_WIRE_OPENED:
        msg.opened.session = what % 4u;
        msg.opened.incarnation = 1u + what / 64u;
        break;
    case DBP_WIRE_FAILED:
        msg.failed.session = what % 4u;
        msg.failed.incarnation = 1u + what / 64u;
        memset(msg.failed.error.text, '%', sizeof msg.failed.error.text);
        break;
    case DBP_WIRE_KILLED:
        msg.killed.session = what % 4u;
        msg.killed.incarnation = 1u + what / 64u;
        msg.killed.error.code = what & 1u;
        memset(msg.killed.error.text, '%', sizeof msg.killed.error.text);
        break;
    default:
        break;
    }
    uint8_t fds = input_u8(in); /* low bits: as many as belong to it, or others */
    uint32_t n_fds = (fds & 7u) == 0 ? (type == DBP_WIRE_ATTACH || type == DBP_WIRE_SESSION || type == DBP_WIRE_OPENED)
                     : (fds & 7u) == 7 ? FDS_MAX
                                       : (fds & 7u) - 1u;
    size_t length = 0;
    static const size_t lengths[DBP_WIRE_TYPES] = {sizeof msg,         sizeof msg.attach,     sizeof msg.attached,
                                                   sizeof msg.reg,     sizeof msg.registered, sizeof msg.fetch,
                                                   sizeof msg.session, sizeof msg.open,       sizeof msg.opened,
                                                   sizeof msg.failed,  sizeof msg.kill,       sizeof msg.killed};
    length = lengths[type];
    uint16_t at = input_u16(in);
    const uint8_t *over = input_bytes(in, sizeof msg - at % sizeof msg, &n);
    memcpy((uint8_t *)&msg + at % sizeof msg, over, n);
    if (fds & 0x80u)
        length = at % (sizeof msg + 1);
    send_any(sock, &msg, length, n_fds, (enum fd_kind)((fds >> 3) % FD_KINDS));
}

/* Returns when the broker has read all that was sent before. */
static void sync_with_broker(void) {
    int pair[2];
    union dbp_wire_any msg;

    FUZZ_CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) == 0);
    memset(&msg, 0, sizeof msg);
    dbp_wire_head_init(&msg.head, DBP_WIRE_ATTACH, 1);
    msg.attach.role = 9; /* is refused: takes no slot */
    while (dbp_wire_send(share.control_fd, &msg, pair[1]) == -EAGAIN)
        continue;
    close(pair[1]);
    FUZZ_CHECK(dbp_wait_readable(pair[0], dbp_now_us() + 20000000u) == 0);
    close(pair[0]);
}

static void act(struct input *in) {
    enum op op = (enum op)(input_u8(in) % OPS);
    uint8_t what = input_u8(in);
    int *channel = &channels[what % CHANNELS];
    uint64_t one = 1;
    uint32_t slot;
    size_t n;

    switch (op) {
    case OP_ATTACH:
        if (*channel >= 0)
            return;
        atomic_store(&connector_may, (what & 0x10u) != 0);
        int rc = dbp_attach(&share, what & 0x20u ? DBP_ROLE_CONNECTOR : DBP_ROLE_CLIENT, "fuzz",
                            dbp_now_us() + 20000000u, channel, &slot);
        FUZZ_CHECK(rc == 0 || rc == DBP_E_FULL || rc == DBP_E_INVALID);
        return;
    case OP_SEND:
        if (*channel >= 0)
            send_message(in, *channel);
        return;
    case OP_CONTROL:
        send_message(in, share.control_fd);
        return;
    case OP_SEND_RAW: {
        const uint8_t *bytes = input_bytes(in, 2048, &n);
        send_any(*channel >= 0 && what & 0x80u ? *channel : share.control_fd, bytes, n, what >> 4 & 3u, FD_FILE);
        return;
    }
    case OP_READ:
        if (*channel >= 0)
            drain(*channel);
        return;
    case OP_CLOSE:
        if (*channel >= 0)
            close(*channel);
        *channel = -1;
        return;
    case OP_RING:
        for (uint32_t i = 0; i < DBP_POOLS_MAX; i++)
            (void)dbp_attention_set(share.table, i);
        (void)!write(share.doorbell_fd, &one, sizeof one);
        return;
    default:
        sync_with_broker();
        return;
    }
}

static void serves_an_honest_client(void) {
    struct dbp_pool_spec spec;
    union dbp_wire_any msg;
    uint32_t slot;
    int channel, fd = -1, rc;

    while ((rc = dbp_attach(&share, DBP_ROLE_CLIENT, "honest", dbp_now_us() + 20000000u, &channel, &slot)) ==
           DBP_E_FULL)
        continue; /* until the hung up ones are seen */
    FUZZ_CHECK(rc == 0);
    sane_spec(&spec, 1);
    memset(&msg, 0, sizeof msg);
    dbp_wire_head_init(&msg.head, DBP_WIRE_REGISTER, 77);
    msg.reg.spec = spec;
    FUZZ_CHECK(dbp_wire_send(channel, &msg, -1) == 0);
    FUZZ_CHECK(dbp_wait_readable(channel, dbp_now_us() + 20000000u) == 0);
    FUZZ_CHECK(dbp_wire_recv(channel, &msg, &fd, NULL) == 0);
    FUZZ_CHECK(msg.head.type == DBP_WIRE_REGISTERED && msg.head.serial == 77);
    close(channel);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct dbp_broker_ops ops = {.log = no_log, .connector_is = connector_is};
    struct input in = {data, data + size};
    struct dbp_broker *broker = NULL;
    int control;

    int fd = fuzz_next_fd();
    FUZZ_CHECK(dbp_share_new(SLOTS, &share, &control) == 0);
    FUZZ_CHECK(dbp_broker_start(&share, control, &ops, &broker) == 0);
    memset(channels, -1, sizeof channels);
    for (uint32_t n = 0; in.p < in.end && n < 128; n++)
        act(&in);
    for (uint32_t i = 0; i < CHANNELS; i++)
        if (channels[i] >= 0)
            close(channels[i]);
    serves_an_honest_client();
    broker = dbp_broker_stop(broker);
    dbp_share_free(&share);
    FUZZ_CHECK(fuzz_next_fd() == fd);
    return 0;
}

size_t fuzz_seed(unsigned i, uint8_t *buf) {
    /* A connector, a client that registers a pool with a floor, its session delivered, fetched; then who may not say
     * what. In each seed after the first, one type of message comes between with something changed. */
    static const uint8_t life[][2] = {{OP_ATTACH, 0x30},
                                      {OP_ATTACH, 0x01},
                                      {OP_SEND, DBP_WIRE_REGISTER},
                                      {OP_SYNC, 0},
                                      {OP_SEND, DBP_WIRE_OPENED},
                                      {OP_SYNC, 0},
                                      {OP_READ, 1},
                                      {OP_SEND, DBP_WIRE_FETCH},
                                      {OP_RING, 0},
                                      {OP_SEND, DBP_WIRE_KILLED},
                                      {OP_CONTROL, DBP_WIRE_ATTACH},
                                      {OP_SEND_RAW, 0x80},
                                      {OP_CLOSE, 0},
                                      {OP_READ, 1}};
    struct output out = {buf, 0};

    if (i >= 2 * DBP_WIRE_TYPES)
        return 0;
    for (size_t step = 0; step < sizeof life / sizeof *life; step++) {
        uint8_t op = life[step][0], what = life[step][1];
        bool message = op == OP_SEND || op == OP_CONTROL;
        output_u8(&out, op);
        output_u8(&out, message ? what == DBP_WIRE_REGISTER || what == DBP_WIRE_FETCH : what);
        if (message) {
            output_u8(&out, what);
            output_u8(&out, 1);
            output_u8(&out, 0);
            output_u16(&out, 0);
            output_bytes(&out, "", 0);
        } else if (op == OP_SEND_RAW) {
            output_bytes(&out, "garbage", 7);
        }
        if (i == 0 || step < 2)
            continue;
        output_u8(&out, OP_SEND);
        output_u8(&out, (uint8_t)(step % 2));
        output_u8(&out, (uint8_t)(i / 2));
        output_u8(&out, (uint8_t)(step * 16 + i));
        output_u8(&out, (uint8_t)(i % 2 ? step * 8 : step));
        output_u16(&out, (uint16_t)(i % 2 ? 8 + step * 4 : 0));
        output_bytes(&out, "\xff\xff", i % 2 ? 2 : 0);
    }
    return out.n;
}

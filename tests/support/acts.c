/* SPDX-License-Identifier: MIT
 * The operations that are stepped through: see acts.h.
 */
#include "acts.h"

#include "attach.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* ---- before ---- */

static void attached(struct actor *a) {
    if (dbp_client_attach(&a->arena->share, "stepped", in_seconds(WAIT_S), &a->client) != 0)
        _exit(10);
}

static void registered(struct actor *a) {
    if (!arena_client(a->arena, "stepped", &a->client))
        _exit(11);
}

static void leased(struct actor *a) {
    registered(a);
    if (dbp_acquire(a->client, a->arena->pool, in_seconds(WAIT_S), NULL, NULL, &a->lease) != 0)
        _exit(12);
}

static void waiting(struct actor *a) {
    registered(a);
    if (dbp_wait_begin(a->client, a->arena->pool, DBP_WAIT_EVENT, &a->wait) != 0)
        _exit(13);
}

static void connected(struct actor *a) {
    uint32_t slot;

    atomic_store(&a->arena->fake->stand_in, getpid());
    if (dbp_attach(&a->arena->share, DBP_ROLE_CONNECTOR, "stepped", in_seconds(WAIT_S), &a->channel, &slot) != 0)
        _exit(14);
}

/* ---- the client's operations ---- */

static int attach(struct actor *a) {
    return dbp_client_attach(&a->arena->share, "stepped", in_seconds(WAIT_S), &a->client);
}

static int enrol(struct actor *a) {
    struct dbp_pool_spec spec = arena_spec(a->arena);
    char text[128];

    return dbp_client_register(a->client, &spec, in_seconds(WAIT_S), text, sizeof text, &a->arena->pool);
}

static int fetch(struct actor *a) {
    struct dbp_session_facts facts;
    int fd;

    return dbp_session_fetch(a->client, &a->lease, in_seconds(WAIT_S), &fd, &facts);
}

static int take(struct actor *a) {
    return dbp_acquire_now(a->client, a->arena->pool, &a->lease);
}

static int acquire(struct actor *a) {
    return dbp_acquire(a->client, a->arena->pool, in_seconds(WAIT_S), NULL, NULL, &a->lease);
}

static int begin(struct actor *a) {
    return dbp_wait_begin(a->client, a->arena->pool, DBP_WAIT_EVENT, &a->wait);
}

static int claim(struct actor *a) {
    return dbp_wait_poll(a->client, &a->wait, &a->lease);
}

static int cancel(struct actor *a) {
    return dbp_wait_cancel(a->client, &a->wait, &a->lease);
}

/* As an event loop does it. */
static int watch(struct actor *a) {
    uint64_t deadline = in_seconds(WAIT_S), drain;
    int rc = begin(a);

    while (rc == 0 && (rc = claim(a)) == DBP_E_BUSY && dbp_now_us() < deadline) {
        rc = dbp_wait_readable(dbp_wait_fd(a->client), deadline);
        if (rc == 0 && read(dbp_wait_fd(a->client), &drain, sizeof drain) < 0 && errno != EAGAIN)
            return -errno;
    }
    return rc;
}

static int give_back(struct actor *a) {
    return dbp_release(a->client, &a->lease, 2, DBP_RETURN_CLEAN);
}

static int give_back_for_reset(struct actor *a) {
    return dbp_release(a->client, &a->lease, 3, DBP_RETURN_RESET);
}

static int give_back_doomed(struct actor *a) {
    return dbp_release(a->client, &a->lease, 2, DBP_RETURN_DOOM);
}

/* ---- the connector's: one OPEN, and its answer ---- */

static int serve_open(struct actor *a) {
    union dbp_wire_any msg, answer;
    int pair[2], fd = -1;

    int rc = dbp_wait_readable(a->channel, in_seconds(WAIT_S));
    if (rc == 0)
        rc = dbp_wire_recv(a->channel, &msg, &fd, NULL);
    if (rc != 0 || msg.head.type != DBP_WIRE_OPEN)
        return rc ? rc : -EPROTO;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) != 0)
        return -errno;
    memset(&answer.opened, 0, sizeof answer.opened);
    dbp_wire_head_init(&answer.head, DBP_WIRE_OPENED, msg.head.serial);
    answer.opened.session = msg.open.session;
    answer.opened.incarnation = msg.open.incarnation;
    answer.opened.facts.connection_id = 1;
    answer.opened.facts.status = 2;
    rc = dbp_wire_send(a->channel, &answer, pair[0]);
    close(pair[0]);
    return rc; /* the server's end lives as long as this process */
}

const struct act acts[] = {
    {"attach", HOLD_BROKER, NULL, attach, false, 0, 0},
    {"register", HOLD_BROKER, attached, enrol, false, 0, 0},
    {"fetch", HOLD_BROKER, leased, fetch, false, 0, 0},
    {"acquire_now", ALL_IDLE, registered, take, true, 0, DBP_E_BUSY},
    {"acquire, opens one", NONE_OPEN, registered, acquire, true, 0, 0},
    {"acquire, sleeps", HOLD_ALL, registered, acquire, true, 0, 0},
    {"wait by event fd", HOLD_ALL, registered, watch, true, 0, 0},
    {"wait_begin, one is idle", ALL_IDLE, registered, begin, false, 0, 0},
    {"wait_begin at the cap", HOLD_ALL, registered, begin, false, 0, 0},
    {"wait_poll of a grant", HOLD_ALL_GRANT, waiting, claim, true, 0, 0},
    {"wait_cancel of a grant", HOLD_ALL_GRANT, waiting, cancel, true, 0, 0},
    {"wait_cancel before another", HOLD_ALL_WAIT, waiting, cancel, true, DBP_E_TIMEOUT, 0},
    {"release", ALL_IDLE, leased, give_back, false, 0, 0},
    {"release to an event loop", HOLD_ONE_AND_WAIT, leased, give_back, false, 0, 0},
    {"release to a sleeper", HOLD_ONE_AND_SLEEP, leased, give_back, false, 0, 0},
    {"release for reset", HOLD_ONE_AND_WAIT, leased, give_back_for_reset, false, 0, 0},
    {"release doomed", HOLD_ONE_AND_WAIT, leased, give_back_doomed, false, 0, 0},
    {"the connector's OPEN", CONNECT, connected, serve_open, false, 0, 0},
};
const size_t n_acts = sizeof acts / sizeof *acts;

void act_out(const struct act *act, struct arena *arena, struct act_report *report) {
    struct actor a = {.arena = arena, .report = report, .channel = -1};

    if (act->before)
        act->before(&a);
    if (!stepper_offer())
        _exit(77);
    atomic_store(&report->phase, STEP_INSIDE);
    int rc = act->act(&a);
    report->rc = rc;
    report->leased = act->leases && rc == 0;
    report->lease = a.lease;
    atomic_store(&report->phase, STEP_AFTER);
    for (;;)
        pause();
}

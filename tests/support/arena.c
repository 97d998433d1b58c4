/* SPDX-License-Identifier: MIT
 * The stage of the race tests: see arena.h.
 */
#include "arena.h"

#include "wire.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static _Atomic int32_t connector_pid;

/* ---- holding the broker: it asks us whether we are the connector, and we think about it ---- */

enum holding { NOT_HELD, TO_BE_HELD, HELD };
static _Atomic uint32_t holding;

static bool connector_is(void *arg, int32_t pid) {
    struct arena *arena = arg;
    uint32_t asked = TO_BE_HELD;

    if (pid == getpid() && atomic_compare_exchange_strong(&holding, &asked, HELD))
        for (uint64_t deadline = in_seconds(WAIT_S); atomic_load(&holding) == HELD && dbp_now_us() < deadline;)
            poll(NULL, 0, 1);
    return pid == atomic_load(&connector_pid) || pid == atomic_load(&arena->fake->stand_in);
}

static bool is_held(void *arg) {
    (void)arg;
    return atomic_load(&holding) == HELD;
}

bool arena_hold_broker(struct arena *arena) {
    union dbp_wire_any msg;
    int pair[2];

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) != 0)
        return false;
    memset(&msg.attach, 0, sizeof msg.attach);
    dbp_wire_head_init(&msg.head, DBP_WIRE_ATTACH, 1);
    msg.attach.role = DBP_ROLE_CONNECTOR;
    atomic_store(&holding, TO_BE_HELD);
    int rc = dbp_wire_send(arena->share.control_fd, &msg, pair[1]);
    close(pair[0]);
    close(pair[1]);
    return rc == 0 && eventually(is_held, NULL);
}

void arena_let_broker_go(void) {
    atomic_store(&holding, NOT_HELD);
}

/* ---- the connector goes and comes back ---- */

static bool is_away(void *arg) {
    const struct arena *arena = arg;

    return atomic_load(&arena->fake->away) == 2;
}

bool arena_connector_away(struct arena *arena) {
    atomic_store(&arena->fake->away, 1);
    fake_poke(arena->fake);
    return eventually(is_away, arena);
}

bool arena_connector_back(struct arena *arena) {
    uint32_t attached = atomic_load(&arena->fake->attached);

    atomic_store(&arena->fake->stand_in, 0);
    atomic_store(&arena->fake->reconnect, 1);
    fake_poke(arena->fake);
    return eventually_at_least(&arena->fake->attached, attached + 1);
}

static bool complain(const char *what, long long got, long long expected) {
    fprintf(stderr, "NOT WHOLE: %s is %lld, expected %lld\n", what, got, expected);
    return false;
}

static uint32_t overflow;

struct dbp_pool_spec arena_spec(const struct arena *arena) {
    return test_spec("race", (uint32_t)arena->cap - overflow, overflow);
}

bool arena_open(struct arena *arena, uint32_t n_procs, uint32_t pool_size, uint32_t max_overflow) {
    struct dbp_broker_ops ops = {.log = test_log, .connector_is = connector_is, .arg = arena};

    memset(arena, 0, sizeof *arena);
    arena->fds_before = fd_census(0);
    arena->cap = (int)(pool_size + max_overflow);
    overflow = max_overflow;
    if (dbp_share_new(n_procs, &arena->share, &arena->control) != 0)
        return complain("share", -1, 0);
    arena->count = &arena->share.table->pools[0].count;
    arena->connector = fake_start(&arena->share, &arena->fake);
    atomic_store(&connector_pid, arena->connector);
    if (dbp_broker_start(&arena->share, arena->control, &ops, &arena->broker) != 0)
        return complain("broker", -1, 0);
    if (!eventually_at_least(&arena->fake->attached, 1))
        return complain("connector", 0, 1);
    return arena_client(arena, "arena", &arena->client);
}

bool arena_client(struct arena *arena, const char *label, struct dbp_client **clientp) {
    static struct dbp_client *volatile all[64]; /* a client is never freed: kept where a leak checker finds it */
    static uint32_t n_all;
    struct dbp_pool_spec spec = arena_spec(arena);
    char text[128];

    int rc = dbp_client_attach(&arena->share, label, in_seconds(WAIT_S), clientp);
    if (rc == 0)
        rc = dbp_client_register(*clientp, &spec, in_seconds(WAIT_S), text, sizeof text, &arena->pool);
    arena->clients++;
    if (rc == 0 && n_all < sizeof all / sizeof *all)
        all[n_all++] = *clientp;
    return rc == 0 ? true : complain("attach", rc, 0);
}

static bool states_settled(void *arg) {
    struct arena *arena = arg;
    int64_t words[DBP_STATES] = {0}, size = 0;

    for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++)
        words[dbp_word_state(atomic_load(&arena->share.table->sessions[i].word))]++;
    for (int state = DBP_OPENING; state < DBP_STATES; state++) {
        if (dbp_pool_count(arena->share.table, 0, (enum dbp_state)state) != words[state])
            return false;
        size += words[state];
    }
    return atomic_load(&arena->count->size) == size && size == words[DBP_IDLE] && size <= arena->cap - (int)overflow &&
           atomic_load(&arena->fake->alive) == size && atomic_load(&arena->count->waiting) == 0;
}

bool arena_only_ours_are_attached(void *arg) {
    const struct arena *arena = arg;
    uint32_t n = 0;

    for (uint32_t slot = 0; slot < DBP_PROCS_MAX; slot++)
        n += atomic_load(&arena->share.table->procs[slot].pid) != 0;
    return n == arena->clients + 1; /* and the connector */
}

static void print_states(const struct arena *arena) {
    static const char *const names[DBP_STATES] = {"empty",  "opening",   "idle",   "granted",
                                                  "leased", "resetting", "closing"};
    int64_t words[DBP_STATES] = {0};

    for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++)
        words[dbp_word_state(atomic_load(&arena->share.table->sessions[i].word))]++;
    for (int state = DBP_OPENING; state < DBP_STATES; state++)
        fprintf(stderr, "  %s: %lld counted, %lld in the words\n", names[state],
                (long long)dbp_pool_count(arena->share.table, 0, (enum dbp_state)state), (long long)words[state]);
    fprintf(stderr, "  size %lld, waiting %lld, at the server %u\n", (long long)atomic_load(&arena->count->size),
            (long long)atomic_load(&arena->count->waiting), atomic_load(&arena->fake->alive));
}

/* Has all sessions of the cap at once, asks each something, returns them. */
static bool have_all(struct arena *arena) {
    struct dbp_lease leases[64];
    bool whole = true;
    int n = 0;

    for (; n < arena->cap; n++) {
        int rc = dbp_acquire(arena->client, arena->pool, in_seconds(WAIT_S), NULL, NULL, &leases[n]);
        if (rc != 0) {
            whole = complain("I2: acquiring one more", rc, 0);
            break;
        }
        for (int i = 0; i < n; i++)
            if (leases[i].session == leases[n].session)
                whole = complain("I1: the same session twice", leases[n].session, -1);
        struct dbp_session_facts facts;
        uint64_t nonce = 0;
        int fd = -1;
        rc = dbp_session_fetch(arena->client, &leases[n], in_seconds(WAIT_S), &fd, &facts);
        if (rc == 0)
            rc = session_query(fd, "Q 99", &nonce, NULL);
        if (rc != 0 || nonce != 99)
            whole = complain("I5: the answer of a session", rc, 0);
        if (fd >= 0) {
            dbp_unguard_fd(arena->client, fd);
            close(fd);
        }
    }
    while (n-- > 0)
        if (dbp_release(arena->client, &leases[n], 2, DBP_RETURN_CLEAN) != 0)
            whole = complain("release", -1, 0);
    return whole;
}

bool arena_is_whole(struct arena *arena) {
    if (!have_all(arena))
        return false;
    if (!eventually(states_settled, arena)) {
        print_states(arena);
        return complain("I2: counters against words", 0, 1);
    }
    if (!eventually(arena_only_ours_are_attached, arena))
        return complain("slots of the dead are free", 0, 1);
    if (!dbp_table_valid(arena->share.table))
        return complain("the table", 0, 1);
    if (atomic_load(&arena->fake->most) > (uint32_t)arena->cap)
        return complain("I3: most sessions at the server", atomic_load(&arena->fake->most), arena->cap);
    if (atomic_load(&arena->fake->strange) != 0)
        return complain("strange commands at the server", atomic_load(&arena->fake->strange), 0);
    return true;
}

bool arena_close(struct arena *arena) {
    bool whole = true;

    arena->broker = dbp_broker_stop(arena->broker);
    int code = wait_child(arena->connector); /* it leaves when the broker hangs up */
    if (code != 0)
        whole = complain("the connector's exit", code, 0);
    if (reap_all() != 0)
        whole = complain("children left", 1, 0);
    if (waitpid(-1, NULL, WNOHANG) != -1 || errno != ECHILD)
        whole = complain("processes left", 1, 0);
    close(arena->fake->poke_fd);
    munmap(arena->fake, sizeof *arena->fake);
    dbp_share_free(&arena->share);
    int fds = fd_census(0), expected = arena->fds_before + 1; /* a client's channel lives as long as its process */
    if (fds != expected)
        whole = complain("fds", fds, expected);
    return whole;
}

/* SPDX-License-Identifier: MIT
 * The shared segment with any content: the broker's keeper and a client work on a table into which the input writes as
 * it likes (a worker that scribbles), while a connector answers and servers speak as the input says. Nobody may crash,
 * leave an array or go round in circles; and when the writing has stopped, the broker's next sweep leaves a table in
 * which every word is possible again and every session can be had (I2).
 */
#include "fuzz.h"

#include "handoff.h"
#include "keeper.h"
#include "share.h"
#include "ending.h"
#include "opening.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define POOLS 2u
#define SESSIONS 6u /* slots that the input aims at */
#define LEASES 4u
#define SLOT 1u /* the client's */
#define OTHER_SLOT 2u

enum op {
    OP_SCRIBBLE,
    OP_SCRIBBLE_WORD,
    OP_SCRIBBLE_SESSION,
    OP_SCRIBBLE_PLACE,
    OP_SCRIBBLE_QUEUE,
    OP_SCRIBBLE_POOL,
    OP_ACQUIRE_NOW,
    OP_ACQUIRE,
    OP_WAIT_BEGIN,
    OP_WAIT_POLL,
    OP_WAIT_CANCEL,
    OP_RELEASE,
    OP_INSPECT,
    OP_OTHER_WAITS,
    OP_OTHER_TAKES,
    OP_DELIVER,
    OP_FAIL,
    OP_KILLED,
    OP_ATTEND,
    OP_TICK,
    OP_EVENT,
    OP_SERVER_SPEAKS,
    OP_SERVER_HANGS_UP,
    OP_HOLDER_DIES,
    OP_CONNECTOR,
    OP_LOOKUP,
    OP_REGISTER,
    OPS
};

/* ---- the outside: a clock, a connector, an epoll ---- */

static uint64_t now = 1000000000;

/* Instead of clock.c: the input says how time passes; it never stands still. */
uint64_t dbp_now_us(void) {
    return now++;
}

static void no_log(void *arg, enum dbp_log_level level, const char *text) {
    (void)arg;
    (void)level;
    FUZZ_CHECK(!strstr(text, "sEcReT"));
}

static int connector_works;
static struct { uint32_t session, incarnation; } asked[64]; /* OPEN requests, for answers that fit */
static uint32_t n_asked;

static int to_connector(void *arg, const union dbp_wire_any *msg) {
    (void)arg;
    if (!connector_works)
        return -EAGAIN;
    if (msg->head.type == DBP_WIRE_OPEN) {
        FUZZ_CHECK(msg->open.session < DBP_SESSIONS_MAX);
        asked[n_asked % 64].session = msg->open.session;
        asked[n_asked++ % 64].incarnation = msg->open.incarnation;
    }
    return 0;
}

static int watch(void *arg, uint32_t session, uint32_t incarnation, int fd, uint32_t events, bool first) {
    (void)incarnation;
    (void)arg;
    (void)events;
    (void)first;
    FUZZ_CHECK(session < DBP_SESSIONS_MAX);
    return fd < 0 ? -EBADF : 0;
}

/* ---- the stage ---- */

static struct dbp_share share;
static int control, channel;
static struct dbp_client *client;
static struct dbp_keeper *keeper;
static struct dbp_registry *registry;
static struct dbp_lease leases[LEASES];
static struct dbp_wait waits[LEASES];
static bool waiting[LEASES];
static uint32_t other_tickets[LEASES];
static int servers[DBP_SESSIONS_MAX];

static struct dbp_pool_spec spec_of(uint32_t i) {
    struct dbp_pool_spec spec;

    memset(&spec, 0, sizeof spec);
    spec.alias[0] = (char)('a' + i);
    memcpy(spec.password, "sEcReT", 7);
    spec.autocommit = 1;
    spec.connect_timeout_s = 1;
    spec.pool_size = 2;
    spec.max_overflow = 1;
    spec.min_size = i;
    spec.keepalive_s = 3 * i;
    spec.idle_timeout_s = 5 * i;
    spec.max_lifetime_s = 20 * i;
    return spec;
}

static void put_pool(uint32_t i, uint32_t pool_size) {
    struct dbp_pool_spec spec = spec_of(i);
    char text[DBP_TEXT_MAX];
    uint32_t pool;
    bool added;

    spec.pool_size = pool_size;
    FUZZ_CHECK(dbp_registry_put(registry, share.table, &spec, text, &pool, &added) == 0 && pool == i);
}

/* The broker that the client attaches to. */
static void *answer_attach(void *arg) {
    union dbp_wire_any msg;

    (void)arg;
    while (dbp_wire_recv(control, &msg, &channel, NULL) == -EAGAIN)
        sched_yield();
    memset(&msg, 0, sizeof msg);
    dbp_wire_head_init(&msg.head, DBP_WIRE_ATTACHED, 1);
    msg.attached.slot = SLOT;
    msg.attached.attach = 1;
    FUZZ_CHECK(dbp_wire_send(channel, &msg, -1) == 0);
    return NULL;
}

static void stage_build(void) {
    pthread_t thread;

    FUZZ_CHECK(dbp_share_new(4, &share, &control) == 0);
    FUZZ_CHECK(pthread_create(&thread, NULL, answer_attach, NULL) == 0);
    FUZZ_CHECK(dbp_client_attach(&share, "fuzz", UINT64_MAX / 2, &client) == 0);
    pthread_join(thread, NULL);
}

static void stage_open(void) {
    struct dbp_keeper_ops ops = {.log = no_log, .to_connector = to_connector, .watch = watch};

    memset(share.table->procs, 0, sizeof *share.table - offsetof(struct dbp_table, procs));
    atomic_store(&share.table->broker_up, 1);
    atomic_store(&share.table->n_pools, 0);
    FUZZ_CHECK(dbp_registry_new(&registry) == 0);
    FUZZ_CHECK(dbp_keeper_new(&share, registry, &ops, DBP_SESSIONS_MAX, &keeper) == 0);
    for (uint32_t i = 0; i < POOLS; i++)
        put_pool(i, 2);
    memset(leases, 0, sizeof leases);
    memset(waiting, 0, sizeof waiting);
    memset(servers, -1, sizeof servers);
    n_asked = 0;
    connector_works = 1;
    dbp_keeper_attached(keeper, SLOT, 1);
    dbp_keeper_attached(keeper, OTHER_SLOT, 1);
    dbp_keeper_connector_ready(keeper);
}

static void stage_close(void) {
    keeper = dbp_keeper_free(keeper);
    registry = dbp_registry_free(registry);
    for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++)
        if (servers[i] >= 0)
            close(servers[i]);
}

/* ---- what the input may do ---- */

static void scribble(struct input *in, enum op op) {
    struct dbp_table *table = share.table;

    switch (op) {
    case OP_SCRIBBLE: {
        /* The head of the table is only read when a process attaches. */
        size_t from = offsetof(struct dbp_table, broker_up), n;
        size_t at = from + input_u32(in) % (sizeof *table - from);
        const uint8_t *bytes = input_bytes(in, sizeof *table - at, &n);
        memcpy((uint8_t *)table + at, bytes, n);
        return;
    }
    case OP_SCRIBBLE_WORD: {
        uint32_t i = input_u8(in) % SESSIONS;
        dbp_word word = atomic_load(&table->sessions[i].word);
        uint8_t state = input_u8(in);
        /* With the generation kept, a lease or a grant may still seem to fit. */
        atomic_store(&table->sessions[i].word,
                     state < 0x80 ? (word & ~(dbp_word)0xffffffffu) | (state & 0xfu) | (dbp_word)input_u16(in) << 4
                                  : input_u64(in));
        return;
    }
    case OP_SCRIBBLE_SESSION: {
        struct dbp_session *s = &table->sessions[input_u8(in) % SESSIONS];
        switch (input_u8(in) % 5) {
        case 0:
            atomic_store(&s->pool, input_u32(in));
            return;
        case 1:
            atomic_store(&s->incarnation, input_u32(in));
            return;
        case 2:
            atomic_store(&s->unfit, input_u8(in));
            return;
        case 3:
            atomic_store(&s->opened_us, input_u64(in));
            return;
        default:
            atomic_store(&s->returned_us, input_u64(in));
            return;
        }
    }
    case OP_SCRIBBLE_PLACE: {
        struct dbp_queue *queue = &table->pools[input_u8(in) % POOLS].queue;
        uint32_t ticket = atomic_load(&queue->head) + input_u8(in) % 8u;
        dbp_place place = atomic_load(&queue->places[ticket % DBP_WAITERS_MAX]);
        uint8_t state = input_u8(in);
        atomic_store(&queue->places[ticket % DBP_WAITERS_MAX],
                     state < 0x80 ? (place & ~(dbp_place)0xfu) | (state & 0xfu) : input_u64(in));
        return;
    }
    case OP_SCRIBBLE_QUEUE: {
        struct dbp_queue *queue = &table->pools[input_u8(in) % POOLS].queue;
        _Atomic uint32_t *counter = input_u8(in) & 1u ? &queue->head : &queue->tail;
        uint8_t by = input_u8(in);
        uint32_t value = by - 128u + atomic_load(counter);
        atomic_store(counter, by == 0 ? input_u32(in) : value);
        return;
    }
    default: {
        struct dbp_pool *pool = &table->pools[input_u8(in) % POOLS];
        uint8_t what = input_u8(in);
        uint64_t v = input_u64(in);
        if (what < DBP_STATES)
            atomic_store(&pool->count.state[what], (int64_t)v);
        else if (what == 8)
            atomic_store(&pool->count.size, (int64_t)v);
        else if (what == 9)
            atomic_store(&pool->count.waiting, (int64_t)v);
        else if (what == 10)
            atomic_store(&pool->idle[0], v);
        else if (what == 11)
            atomic_store(&pool->live, (uint32_t)v);
        else if (what == 12)
            atomic_store(&table->n_pools, (uint32_t)v);
        else if (what == 13)
            atomic_store(&table->broker_up, (uint32_t)v & 1u);
        else if (what == 14)
            memset(pool->alias, 'x', sizeof pool->alias);
        else if (what == 15)
            atomic_store(&pool->error_seq, (uint32_t)v);
        else
            atomic_store(v & 0x80u ? &table->procs[v % 4].attached : &table->procs[v % 4].pid, (uint32_t)(v >> 8));
        return;
    }
    }
}

static void keep(uint32_t i, const struct dbp_lease *lease) {
    FUZZ_CHECK(lease->session < DBP_SESSIONS_MAX && lease->pool < POOLS);
    leases[i] = *lease;
}

static void client_acts(struct input *in, enum op op) {
    uint32_t i = input_u8(in) % LEASES, pool = input_u8(in) % POOLS;
    struct dbp_lease lease;

    switch (op) {
    case OP_ACQUIRE_NOW:
        if (dbp_acquire_now(client, pool, &lease) == 0)
            keep(i, &lease);
        return;
    case OP_ACQUIRE:
        if (dbp_acquire(client, pool, now, NULL, NULL, &lease) == 0)
            keep(i, &lease);
        return;
    case OP_WAIT_BEGIN:
        if (!waiting[i])
            waiting[i] = dbp_wait_begin(client, pool, i & 1u ? DBP_WAIT_EVENT : DBP_WAIT_FUTEX, &waits[i]) == 0;
        return;
    case OP_WAIT_POLL:
    case OP_WAIT_CANCEL: {
        if (!waiting[i])
            return;
        int rc =
            op == OP_WAIT_POLL ? dbp_wait_poll(client, &waits[i], &lease) : dbp_wait_cancel(client, &waits[i], &lease);
        waiting[i] = rc == DBP_E_BUSY;
        if (rc == 0)
            keep(i, &lease);
        return;
    }
    case OP_RELEASE: {
        bool valid = dbp_lease_valid(client, &leases[i]);
        int rc = dbp_release(client, &leases[i], dbp_lease_status(client, &leases[i]),
                             (enum dbp_return)(pool * 2 + (i & 1u)));
        FUZZ_CHECK((rc == 0) == valid); /* nobody else acts in between */
        return;
    }
    default: {
        struct dbp_stats stats;
        struct dbp_error error;
        struct dbp_holder holders[4];
        dbp_pool_stats(client, pool, &stats);
        dbp_pool_error(client, pool, &error);
        FUZZ_CHECK(memchr(error.text, 0, sizeof error.text) && memchr(error.sqlstate, 0, sizeof error.sqlstate));
        FUZZ_CHECK(dbp_pool_holders(client, pool, 4, holders) <= DBP_PROCS_MAX);
        (void)dbp_table_valid(share.table);
        return;
    }
    }
}

/* Another process, which has no code of its own here: it waits, and takes without asking. */
static void other_acts(struct input *in, enum op op) {
    uint32_t i = input_u8(in) % LEASES, pool = input_u8(in) % POOLS, session;
    dbp_word word;

    if (op == OP_OTHER_WAITS) {
        bool pushed = dbp_queue_push(&share.table->pools[pool].queue, OTHER_SLOT, i & 1u, &other_tickets[i]);
        (void)pushed;
    } else if (i & 1u) {
        bool took = dbp_idle_take(share.table, pool, DBP_LEASED, dbp_holder(OTHER_SLOT, 1), &session, &word);
        (void)took;
    } else {
        int rc = dbp_handoff_claim(&share, pool, other_tickets[i], dbp_holder(OTHER_SLOT, 1), &session, &word);
        (void)rc;
    }
}

static void deliver(uint32_t session, uint32_t incarnation, uint32_t facts) {
    struct dbp_wire_opened opened;
    int pair[2];

    FUZZ_CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) == 0);
    memset(&opened, 0, sizeof opened);
    opened.session = session;
    opened.incarnation = incarnation;
    opened.facts.connection_id = 7;
    opened.facts.status = 2;
    opened.facts.greeting_len = facts;
    if (session < DBP_SESSIONS_MAX) {
        if (servers[session] >= 0)
            close(servers[session]);
        servers[session] = pair[1];
    } else {
        close(pair[1]);
    }
    dbp_opening_delivered(keeper, &opened, pair[0]);
}

static void broker_acts(struct input *in, enum op op) {
    uint32_t i = input_u8(in), session = i % SESSIONS;
    bool fits = i < 0xc0 && n_asked > 0;
    uint32_t of = fits ? asked[(n_asked - 1 - i % 4u % n_asked) % 64].session : input_u32(in);
    uint32_t incarnation = fits ? asked[(n_asked - 1 - i % 4u % n_asked) % 64].incarnation : input_u32(in);

    switch (op) {
    case OP_DELIVER:
        deliver(of, incarnation, fits ? 0 : input_u32(in) % 1024u);
        return;
    case OP_FAIL: {
        struct dbp_wire_failed failed = {.session = of, .incarnation = incarnation, .error = {.code = 1045}};
        memset(failed.error.text, 'x', sizeof failed.error.text);
        dbp_opening_failed(keeper, &failed);
        return;
    }
    case OP_KILLED: {
        struct dbp_wire_killed killed = {.session = session, .incarnation = incarnation, .error = {.code = i & 1u}};
        killed.incarnation = i & 2u ? atomic_load(&share.table->sessions[session].incarnation) : incarnation;
        memset(killed.error.text, 'x', sizeof killed.error.text);
        dbp_ending_killed(keeper, &killed);
        return;
    }
    case OP_ATTEND:
        dbp_keeper_attend(keeper, i % POOLS);
        return;
    case OP_TICK:
        now += (uint64_t)i * i * 1000u;
        (void)dbp_keeper_tick(keeper);
        return;
    case OP_EVENT:
        dbp_keeper_event(keeper, session, i & 0x80u ? EPOLLRDHUP | EPOLLIN : EPOLLIN);
        return;
    case OP_SERVER_SPEAKS: {
        static const uint8_t ok[] = {7, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0};
        size_t n = sizeof ok;
        const uint8_t *bytes = i & 0x80u ? input_bytes(in, 64, &n) : ok;
        if (servers[session] >= 0 && send(servers[session], bytes, n, MSG_NOSIGNAL | MSG_DONTWAIT) > 0)
            dbp_keeper_event(keeper, session, EPOLLIN);
        return;
    }
    case OP_SERVER_HANGS_UP:
        if (servers[session] >= 0) {
            close(servers[session]);
            servers[session] = -1;
            dbp_keeper_event(keeper, session, EPOLLIN | EPOLLRDHUP);
        }
        return;
    case OP_HOLDER_DIES:
        dbp_keeper_holder_died(keeper, i & 1u ? OTHER_SLOT : i);
        return;
    case OP_CONNECTOR:
        connector_works = i & 1u;
        if (i & 2u)
            dbp_keeper_connector_lost(keeper);
        if (connector_works)
            dbp_keeper_connector_ready(keeper);
        return;
    case OP_LOOKUP: {
        const struct dbp_session_facts *facts;
        static const uint64_t all[DBP_POOLS_MAX / 64u] = {UINT64_MAX};
        int fd;
        if (dbp_keeper_lookup(keeper, SLOT, all, fits ? leases[i % LEASES].session : of, leases[i % LEASES].generation,
                              &fd, &facts) == 0)
            FUZZ_CHECK(fd >= 0 && facts);
        return;
    }
    default:
        put_pool(i % POOLS, 1 + i / 64);
        return;
    }
}

/* ---- afterwards ---- */

/* A second has passed, and everybody answers. */
static void a_second(void) {
    now += 1000000;
    (void)dbp_keeper_tick(keeper);
    for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++) {
        enum dbp_state state = dbp_word_state(atomic_load(&share.table->sessions[i].word));
        if (servers[i] >= 0 && state == DBP_CLOSING) {
            close(servers[i]);
            servers[i] = -1;
            dbp_keeper_event(keeper, i, EPOLLIN | EPOLLRDHUP);
        } else if (servers[i] >= 0 && state == DBP_RESETTING) {
            static const uint8_t ok[] = {7, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0};
            if (send(servers[i], ok, sizeof ok, MSG_NOSIGNAL | MSG_DONTWAIT) > 0)
                dbp_keeper_event(keeper, i, EPOLLIN);
        }
    }
    for (uint32_t i = 0; i < n_asked && i < 64; i++) {
        uint32_t session = asked[i].session;
        if (dbp_word_state(atomic_load(&share.table->sessions[session].word)) == DBP_OPENING &&
            atomic_load(&share.table->sessions[session].incarnation) == asked[i].incarnation)
            deliver(session, asked[i].incarnation, 0);
    }
    (void)dbp_keeper_tick(keeper);
}

static void everything_is_whole_again(void) {
    uint32_t total[DBP_POOLS_MAX] = {0};
    struct dbp_lease lease;

    /* What broker.c looks after itself. */
    atomic_store(&share.table->broker_up, 1);
    connector_works = 1;
    dbp_keeper_connector_ready(keeper);
    for (uint32_t pool = 0; pool < POOLS; pool++)
        put_pool(pool, 2);
    dbp_keeper_holder_died(keeper, OTHER_SLOT);
    dbp_keeper_holder_died(keeper, SLOT); /* the client starts anew, as its slot's next process */
    a_second();
    for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++) {
        dbp_word word = atomic_load(&share.table->sessions[i].word);
        FUZZ_CHECK(dbp_word_state(word) < DBP_STATES);
        FUZZ_CHECK((dbp_word_state(word) != DBP_EMPTY) == (keeper->home[i] != 0));
        if (keeper->home[i]) {
            FUZZ_CHECK(atomic_load(&share.table->sessions[i].pool) == keeper->home[i] - 1u);
            total[keeper->home[i] - 1]++;
        }
    }
    for (uint32_t pool = 0; pool < POOLS; pool++)
        FUZZ_CHECK(keeper->pools[pool].total == total[pool]);
    for (uint32_t pool = 0; pool < POOLS; pool++) {
        uint32_t got = 0, rounds = 0;
        struct dbp_lease all[3];
        while (got < 3 && rounds++ < 400) {
            struct dbp_wait wait;
            int rc = dbp_wait_begin(client, pool, DBP_WAIT_EVENT, &wait);
            if (rc == 0) {
                dbp_keeper_attend(keeper, pool);
                a_second();
                rc = dbp_wait_cancel(client, &wait, &lease);
            } else {
                a_second();
            }
            if (rc == 0 && dbp_lease_valid(client, &lease)) {
                for (uint32_t i = 0; i < got; i++)
                    FUZZ_CHECK(all[i].session != lease.session); /* I1 */
                all[got++] = lease;
            }
        }
        FUZZ_CHECK(got == 3); /* I2: pool_size and max_overflow */
        FUZZ_CHECK(keeper->pools[pool].total <= 3);
        while (got-- > 0)
            FUZZ_CHECK(dbp_release(client, &all[got], 2, DBP_RETURN_CLEAN) == 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct input in = {data, data + size};
    uint64_t rings;

    if (!client)
        stage_build();
    int fd = fuzz_next_fd();
    stage_open();
    for (uint32_t n = 0; in.p < in.end && n < 256; n++) {
        enum op op = (enum op)(input_u8(&in) % OPS);
        if (op <= OP_SCRIBBLE_POOL)
            scribble(&in, op);
        else if (op <= OP_INSPECT)
            client_acts(&in, op);
        else if (op <= OP_OTHER_TAKES)
            other_acts(&in, op);
        else
            broker_acts(&in, op);
        if (read(share.doorbell_fd, &rings, sizeof rings) > 0)
            for (uint32_t pool = 0; pool < POOLS; pool++)
                if (dbp_attention(share.table, pool))
                    dbp_keeper_attend(keeper, pool);
    }
    everything_is_whole_again();
    stage_close();
    FUZZ_CHECK(fuzz_next_fd() == fd);
    return 0;
}

size_t fuzz_seed(unsigned i, uint8_t *buf) {
    struct output out = {buf, 0};

    if (i > OP_SCRIBBLE_POOL + 1)
        return 0;
    /* A life: two waiters, two logins, a lease, its return, a holder's death. After each step the scribbler's turn. */
    static const uint8_t life[][3] = {
        {OP_WAIT_BEGIN, 0, 0}, {OP_OTHER_WAITS, 1, 0}, {OP_ATTEND, 0},          {OP_DELIVER, 0},
        {OP_DELIVER, 1},       {OP_WAIT_POLL, 0, 0},   {OP_OTHER_TAKES, 0, 0},  {OP_LOOKUP, 0},
        {OP_TICK, 40},         {OP_RELEASE, 0, 0},     {OP_RELEASE, 1, 0},      {OP_SERVER_SPEAKS, 0},
        {OP_HOLDER_DIES, 1},   {OP_KILLED, 2},         {OP_SERVER_HANGS_UP, 1}, {OP_TICK, 120},
        {OP_ACQUIRE, 2, 1},    {OP_INSPECT, 0, 1},     {OP_WAIT_CANCEL, 0, 0},
    };
    for (size_t step = 0; step < sizeof life / sizeof *life; step++) {
        uint8_t op = life[step][0];
        output_u8(&out, op);
        output_u8(&out, life[step][1]);
        if (op >= OP_ACQUIRE_NOW && op <= OP_OTHER_TAKES)
            output_u8(&out, life[step][2]);
        if (i == 0 || step % 3 != i % 3)
            continue;
        output_u8(&out, (uint8_t)(i - 1));
        output_u64(&out, 0x8101000001ull * (step + 1));
    }
    return out.n;
}

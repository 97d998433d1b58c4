/* SPDX-License-Identifier: MIT
 * A client that does everything at random and checks what it sees: see racer.h.
 */
#include "racer.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

const char *const racer_steps[RACER_STEPS] = {"idle",    "attaching",   "acquire_now", "acquire",  "wait_begin",
                                              "waiting", "wait_cancel", "fetch",       "querying", "release"};

struct holding {
    struct dbp_lease lease;
    int fd;
    bool held, transaction, dirty;
};

struct racer {
    struct race *race;
    const struct dbp_share *share;
    struct dbp_client *client;
    uint32_t pool, number;
    uint64_t random;
    bool events;
    struct holding holdings[RACER_LEASES];
};

static void step(const struct racer *r, enum racer_step s) {
    atomic_store_explicit(&r->race->step[r->number], s, memory_order_relaxed);
}

static uint32_t dice(struct racer *r, uint32_t sides) {
    return (uint32_t)(test_random(&r->random) >> 33) % sides;
}

static void unexpected(const struct racer *r, int rc) {
    if (atomic_fetch_add(&r->race->unexpected, 1) == 0)
        atomic_store(&r->race->first_unexpected, rc);
}

/* The lease is ours: nobody else may say so of this incarnation. */
static void stamp(struct racer *r, struct holding *h) {
    uint64_t mine = (uint64_t)h->lease.incarnation << 32 | (r->number + 1);
    uint64_t before = atomic_exchange(&r->race->stamps[h->lease.session], mine);

    if ((uint32_t)before != 0 && before >> 32 == h->lease.incarnation)
        atomic_fetch_add(&r->race->lent_twice, 1);
    h->held = true;
    h->transaction = h->dirty = false;
    h->fd = -1;
    atomic_fetch_add(&r->race->leases, 1);
}

static void unstamp(struct racer *r, const struct holding *h) {
    uint64_t mine = (uint64_t)h->lease.incarnation << 32 | (r->number + 1);

    if (!atomic_compare_exchange_strong(&r->race->stamps[h->lease.session], &mine,
                                        (uint64_t)h->lease.incarnation << 32))
        atomic_fetch_add(&r->race->lent_twice, 1);
}

static void give_back(struct racer *r, struct holding *h) {
    enum dbp_return how = h->dirty ? DBP_RETURN_DOOM : h->transaction ? DBP_RETURN_RESET : DBP_RETURN_CLEAN;

    if (h->fd >= 0) {
        dbp_unguard_fd(r->client, h->fd);
        close(h->fd);
    }
    unstamp(r, h);
    step(r, RACER_RELEASING);
    int rc = dbp_release(r->client, &h->lease, h->transaction ? 3 : 2, how);
    step(r, RACER_IDLE);
    if (rc != 0)
        unexpected(r, 100 + rc);
    else if (dbp_release(r->client, &h->lease, 2, DBP_RETURN_CLEAN) != DBP_E_STALE)
        unexpected(r, 200); /* twice must not work */
    h->held = false;
    if (how == DBP_RETURN_DOOM)
        atomic_fetch_add(&r->race->dooms, 1);
    if (how == DBP_RETURN_RESET)
        atomic_fetch_add(&r->race->resets, 1);
}

static void ask(struct racer *r, struct holding *h) {
    uint64_t nonce = test_random(&r->random) >> 1, got = 0;
    char sql[32];
    uint16_t status = 0;

    snprintf(sql, sizeof sql, "Q %llu", (unsigned long long)nonce);
    step(r, RACER_QUERYING);
    int rc = session_query(h->fd, sql, &got, &status);
    step(r, RACER_IDLE);
    if (rc != 0 || got != nonce)
        atomic_fetch_add(&r->race->garbled, 1);
    if (!h->transaction && (status & 3) != 2)
        atomic_fetch_add(&r->race->in_transaction, 1);
    atomic_fetch_add(&r->race->queries, 1);
}

static void use(struct racer *r, struct holding *h) {
    struct dbp_session_facts facts;

    if (h->dirty || dice(r, 4) != 0)
        return;
    if (h->fd < 0) {
        if ((dbp_lease_status(r->client, &h->lease) & 3) != 2)
            atomic_fetch_add(&r->race->in_transaction, 1);
        step(r, RACER_FETCHING);
        int rc = dbp_session_fetch(r->client, &h->lease, in_seconds(WAIT_S), &h->fd, &facts);
        step(r, RACER_IDLE);
        if (rc != 0) {
            unexpected(r, 300 + rc);
            return;
        }
    }
    ask(r, h);
    uint32_t what = dice(r, 16);
    if (what < 4 && !h->transaction) {
        h->transaction = session_query(h->fd, "BEGIN", NULL, NULL) == 0;
        ask(r, h);
    } else if (what == 4) { /* leaves in the middle of a command */
        h->dirty = session_send(h->fd, dice(r, 2) ? "HANG" : "Q 1") == 0;
    }
}

/* ---- getting one ---- */

/* We hold ticket's session: nobody who came earlier may still be waiting, since who left WAITING never comes back. */
static void check_order(const struct racer *r, uint32_t ticket) {
    const struct dbp_queue *queue = &r->share->table->pools[r->pool].queue;

    for (uint32_t back = 1; back <= 128; back++) {
        dbp_place place = dbp_queue_look(queue, ticket - back);
        if (dbp_place_ticket(place) == ticket - back && dbp_place_state(place) == DBP_PLACE_WAITING)
            atomic_fetch_add(&r->race->overtaken, 1);
    }
}

/* True when a wait may end so: logins are made to fail. Looks at the error, which the broker may be writing. */
static bool login_failed(const struct racer *r, int rc) {
    struct dbp_error error;

    if (rc != DBP_E_FAILED || !atomic_load(&r->race->may_fail))
        return false;
    dbp_pool_error(r->client, r->pool, &error);
    size_t n = strlen(error.text);
    if (error.code < FAKE_LONG_TEXT || n != sizeof error.text - 1)
        atomic_fetch_add(&r->race->torn, 1);
    for (size_t i = 0; i < n; i++)
        if ((uint32_t)error.text[i] != 'a' + error.code % 26) {
            atomic_fetch_add(&r->race->torn, 1);
            break;
        }
    atomic_fetch_add(&r->race->failures, 1);
    return true;
}

static void take_now(struct racer *r, struct holding *h) {
    step(r, RACER_TAKING);
    int rc = dbp_acquire_now(r->client, r->pool, &h->lease);
    step(r, RACER_IDLE);
    if (rc == 0)
        stamp(r, h);
    else if (rc != DBP_E_BUSY)
        unexpected(r, 400 + rc);
}

static void acquire(struct racer *r, struct holding *h, bool patient) {
    uint64_t deadline = patient ? in_seconds(WAIT_S) : dbp_now_us() + dice(r, 3000);

    step(r, RACER_ACQUIRING);
    int rc = dbp_acquire(r->client, r->pool, deadline, NULL, NULL, &h->lease);
    step(r, RACER_IDLE);
    if (rc == 0)
        stamp(r, h);
    else if (!login_failed(r, rc) && (rc != DBP_E_TIMEOUT || (patient && !atomic_load(&r->race->stop))))
        unexpected(r, 500 + rc);
}

/* Nothing but taking and returning, for the narrowest windows. */
static void rush(struct racer *r, struct holding *h) {
    for (int i = 0; i < 1000 && !atomic_load(&r->race->stop); i++) {
        take_now(r, h);
        if (h->held)
            give_back(r, h);
    }
}

/* Several waits at once, as greenlets of one process: those that are granted beyond what is wanted go back at once. */
static void wait_on_events(struct racer *r, struct holding *h, bool patient) {
    struct dbp_wait waits[RACER_WAITS];
    struct dbp_lease lease;
    uint32_t n = 1 + dice(r, RACER_WAITS), first = 0;
    uint64_t deadline = patient ? in_seconds(WAIT_S) : dbp_now_us() + dice(r, 3000);
    bool failed = false;

    for (uint32_t i = 0; i < n; i++) {
        step(r, RACER_BEGINNING);
        int rc = dbp_wait_begin(r->client, r->pool, DBP_WAIT_EVENT, &waits[i]);
        if (rc != 0) {
            unexpected(r, 600 + rc);
            n = i;
        }
    }
    atomic_fetch_add(&r->race->waits, n);
    step(r, RACER_POLLING);
    while (first < n && !h->held) {
        int rc = dbp_wait_poll(r->client, &waits[first], &lease);
        if (rc == 0) {
            check_order(r, waits[first].ticket);
            h->lease = lease;
            stamp(r, h);
            first++;
            break;
        }
        if (rc != DBP_E_BUSY) {
            if (!login_failed(r, rc))
                unexpected(r, 700 + rc);
            failed = true;
            first++;
            continue;
        }
        uint64_t now = dbp_now_us(), drain;
        if (now >= deadline || atomic_load(&r->race->stop))
            break;
        struct pollfd p = {.fd = dbp_wait_fd(r->client), .events = POLLIN};
        poll(&p, 1, deadline - now > 50000 ? 50 : (int)((deadline - now) / 1000) + 1);
        ssize_t got = read(p.fd, &drain, sizeof drain);
        (void)got; /* EAGAIN: nothing new */
    }
    if (patient && !h->held && !failed && !atomic_load(&r->race->stop))
        unexpected(r, 800);
    for (; first < n; first++) {
        step(r, RACER_CANCELLING);
        int rc = dbp_wait_cancel(r->client, &waits[first], &lease);
        atomic_fetch_add(&r->race->cancels, 1);
        if (rc == 0) {
            struct holding extra = {.lease = lease};
            stamp(r, &extra);
            give_back(r, &extra);
        } else if (rc != DBP_E_TIMEOUT)
            unexpected(r, 900 + rc);
    }
    step(r, RACER_IDLE);
}

void racer_run(struct race *race, const struct dbp_share *share, struct dbp_client *client, uint32_t pool,
               uint32_t number, uint64_t seed, bool events) {
    struct racer r = {race, share, client, pool, number, seed, events, {{.fd = -1}}};

    while (!atomic_load(&race->stop)) {
        struct holding *h = &r.holdings[dice(&r, RACER_LEASES)], *other = &r.holdings[h == &r.holdings[0]];
        bool empty = !r.holdings[0].held && !r.holdings[1].held;
        if (atomic_load(&race->pause) && empty) {
            poll(NULL, 0, 1);
        } else if (atomic_load(&race->rush) && empty) {
            rush(&r, h);
        } else if (h->held) {
            use(&r, h);
            if (dice(&r, 2))
                give_back(&r, h);
        } else if (dice(&r, 3) == 0) {
            take_now(&r, h);
        } else if (events) {
            wait_on_events(&r, h, !other->held); /* who has one waits a little only, or all would wait for each other */
        } else {
            acquire(&r, h, !other->held);
        }
        atomic_fetch_add_explicit(&race->rounds[number], 1, memory_order_relaxed);
    }
    for (uint32_t i = 0; i < RACER_LEASES; i++)
        if (r.holdings[i].held)
            give_back(&r, &r.holdings[i]);
}

uint32_t race_report(struct race *race) {
    printf("leases %llu, event waits %llu, cancels %llu, queries %llu, resets %llu, dooms %llu, failed %llu\n",
           (unsigned long long)race->leases, (unsigned long long)race->waits, (unsigned long long)race->cancels,
           (unsigned long long)race->queries, (unsigned long long)race->resets, (unsigned long long)race->dooms,
           (unsigned long long)race->failures);
    printf("I1 lent twice %u, I4 overtaken %u, I5 garbled %u, I6 in transaction %u, torn %u, unexpected outcomes %u "
           "(first %d)\n",
           race->lent_twice, race->overtaken, race->garbled, race->in_transaction, race->torn, race->unexpected,
           race->first_unexpected);
    fflush(stdout);
    return race->lent_twice + race->overtaken + race->garbled + race->in_transaction + race->torn + race->unexpected;
}

void race_sum(const struct race *race, const char *name, uint32_t kills, uint32_t lost) {
    printf("%s: leases=%llu kills=%u lost=%u double=%u crosstalk=%u\n", name, (unsigned long long)race->leases, kills,
           lost, race->lent_twice, race->garbled + race->in_transaction);
    fflush(stdout);
}

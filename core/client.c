/* SPDX-License-Identifier: MIT
 * The client: one per worker, mule or spooler. Acquire and release touch only the shared table; the channel to the
 * broker serves what needs an answer (registering, fetching a session's fd): see asking.h.
 */
#include "asking.h"
#include "attach.h"
#include "handoff.h"
#include "inspect.h"
#include "recent.h"
#include "reset.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SLEEP_SLICE_US                                                                             \
    1000000u /* longest futex sleep: then the broker's being alive and signals are looked at again \
              */

#define ROOM_LOOK_US 10000u     /* between two questions whether there is room for a pool */
#define ATTACHING_LOOK_US 5000u /* while another thread or greenlet attaches */

/* Whoever closes fds that are not his (closefrom) may have taken the number from us, and somebody else may have it. */
struct own_socket {
    int fd; /* -1: none */
    uint64_t inode;
};

struct dbp_client {
    struct dbp_share share;
    char label[24];
    uint32_t place;
    _Atomic uint32_t holder; /* dbp_holder(): the attach in force, as we know it; changes when it attaches anew */
    _Atomic bool foreign;    /* this process is a forked child of the one that attached: nothing here is ours */
    struct own_socket channel;
    struct own_socket joining; /* the channel of an attach that has no answer yet */
    struct dbp_asking asking;
    int *guarded; /* session fds of this process, for the child after a fork */
    size_t n_guarded, guarded_room;
    struct dbp_recent *recent; /* DBP_POOLS_MAX */
};

/* ---- a forked child must neither use nor keep the parent's sessions (I11) ---- */

static struct dbp_client *the_client; /* atfork handlers have no argument; one client per process */
static struct dbp_client *attaching;  /* waits for the broker's answer; nobody else of its process attaches meanwhile */
static pid_t attaching_pid;           /* whose it is: a child, which cannot go on with it, finds it too */

/* Guards both pointers, and each client's channels, asking and guarded. Always there, so that a fork holds it whatever
 * another thread is about: it meets neither a client that it has not locked nor a channel that no list names. Never
 * held while anything is waited for. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void before_fork(void) {
    pthread_mutex_lock(&lock);
}

static void after_fork_parent(void) {
    pthread_mutex_unlock(&lock);
}

static bool is_ours(const struct own_socket *s) {
    return s->inode != 0 && dbp_socket_inode(s->fd) == s->inode;
}

static void drop(struct own_socket *s) {
    if (is_ours(s))
        close(s->fd);
    *s = (struct own_socket){.fd = -1};
}

static void after_fork_child(void) {
    struct dbp_client *client = the_client;

    if (attaching)
        drop(&attaching->joining); /* it stays: a greenlet of this thread may be in the middle of it */
    pthread_mutex_unlock(&lock);
    if (!client)
        return;
    atomic_store(&client->foreign, true);
    drop(&client->channel);
    dbp_asking_fork_child(&client->asking);
    /* Fenced rather than closed: the drivers' objects were copied too and will write to, or close, these numbers. Where
     * no dead socket is to be had, closed is still better than shared. */
    for (size_t i = 0; i < client->n_guarded; i++)
        if (dbp_fence_fd(client->guarded[i]) != 0)
            close(client->guarded[i]);
    client->n_guarded = 0;
    the_client = NULL; /* the child may attach on its own */
}

int dbp_fence_fd(int fd) {
    int pair[2], rc = 0;

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) == 0)
        close(pair[1]);                                             /* reads see the end of the stream, writes EPIPE */
    else if ((pair[0] = open("/dev/null", O_RDWR | O_CLOEXEC)) < 0) /* needs one free number, not two */
        return -errno;
    if (dup3(pair[0], fd, O_CLOEXEC) < 0)
        rc = -errno;
    close(pair[0]);
    return rc;
}

static int guard_locked(struct dbp_client *client, int fd) {
    for (size_t i = 0; i < client->n_guarded; i++)
        if (client->guarded[i] == fd)
            return 0;
    if (client->n_guarded == client->guarded_room) {
        size_t room = client->guarded_room ? 2 * client->guarded_room : 16;
        int *grown = realloc(client->guarded, room * sizeof *grown);
        if (!grown)
            return -ENOMEM;
        client->guarded = grown;
        client->guarded_room = room;
    }
    client->guarded[client->n_guarded++] = fd;
    return 0;
}

int dbp_guard_fd(struct dbp_client *client, int fd) {
    pthread_mutex_lock(&lock);
    int rc = guard_locked(client, fd);
    pthread_mutex_unlock(&lock);
    return rc;
}

void dbp_unguard_fd(struct dbp_client *client, int fd) {
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < client->n_guarded; i++)
        if (client->guarded[i] == fd) {
            client->guarded[i] = client->guarded[--client->n_guarded];
            break;
        }
    pthread_mutex_unlock(&lock);
}

/* ---- attaching, and asking the broker ---- */

static pthread_once_t atfork_once = PTHREAD_ONCE_INIT;
static int atfork_error;

static void install_atfork(void) {
    atfork_error = pthread_atfork(before_fork, after_fork_parent, after_fork_child);
}

static uint32_t holder_of(const struct dbp_client *client) {
    return atomic_load_explicit(&client->holder, memory_order_relaxed);
}

/* This attach is in force: the broker has not let go of us, as it does when somebody closes our channel, and for the
 * sake of others. seq_cst: after something was taken it says whether the broker looked before that for what we have. */
static bool attached_as(const struct dbp_client *client, uint32_t holder) {
    return atomic_load(&client->share.table->procs[dbp_holder_slot(holder)].attached) == dbp_holder_attach(holder);
}

static bool attached(const struct dbp_client *client) {
    return attached_as(client, holder_of(client));
}

static int wait_unlocked(int fd, uint64_t deadline_us) {
    pthread_mutex_unlock(&lock);
    int rc = dbp_wait_as_told(fd, deadline_us);
    pthread_mutex_lock(&lock);
    return rc;
}

static int pause_unlocked(uint64_t us, uint64_t deadline_us) {
    uint64_t until = dbp_now_us() + us;

    if (until >= deadline_us)
        return DBP_E_TIMEOUT;
    int rc = wait_unlocked(-1, until);
    return rc == DBP_E_TIMEOUT ? 0 : rc;
}

/* -EAGAIN: no answer yet. */
static int join(struct dbp_client *client) {
    uint32_t holder = 0;
    uint64_t stale; /* the slot's previous process may have left a count */

    if (!is_ours(&client->joining))
        return -EBADF;
    int rc = dbp_attach_take(client->joining.fd, &holder);
    if (rc != 0)
        return rc;
    if (dbp_holder_slot(holder) >= client->share.n_wake_fds)
        return DBP_E_FULL;
    if (read(client->share.wake_fds[dbp_holder_slot(holder)], &stale, sizeof stale) < 0 && errno != EAGAIN)
        return -errno;
    client->channel = client->joining;
    client->joining = (struct own_socket){.fd = -1};
    atomic_store(&client->holder, holder);
    return 0;
}

static int ask_to_join(struct dbp_client *client, uint64_t deadline_us) {
    int rc = dbp_attach_begin(&client->share, DBP_ROLE_CLIENT, client->label, client->place, deadline_us,
                              &client->joining.fd);
    if (rc != 0)
        return rc;
    client->joining.inode = dbp_socket_inode(client->joining.fd);
    do {
        rc = wait_unlocked(client->joining.fd, deadline_us);
        if (rc == 0)
            rc = join(client);
    } while (rc == -EAGAIN);
    drop(&client->joining);
    return rc;
}

/* Nothing where the client is attached. With the lock held, which is let go while it waits. */
static int attach(struct dbp_client *client, uint64_t deadline_us) {
    uint64_t pause_us;
    int rc = 0;

    while (rc == 0 && attaching && attaching_pid == getpid())
        rc = pause_unlocked(ATTACHING_LOOK_US, deadline_us);
    if (rc == 0 && atomic_load(&client->foreign))
        rc = DBP_E_CLOSED;
    if (rc != 0 || (is_ours(&client->channel) && attached(client)))
        return rc;
    if (is_ours(&client->channel))
        shutdown(client->channel.fd, SHUT_RDWR); /* whoever waits for it wakes */
    drop(&client->channel);
    dbp_asking_over(&client->asking);
    attaching = client;
    attaching_pid = getpid();
    while ((pause_us = dbp_attach_again_us(rc = ask_to_join(client, deadline_us))) > 0) {
        int why = rc;
        rc = pause_unlocked(pause_us, deadline_us);
        if (rc != 0) {
            rc = rc == DBP_E_TIMEOUT && why == DBP_E_BUSY ? DBP_E_FULL : rc;
            break;
        }
    }
    if (attaching == client)
        attaching = NULL;
    return rc;
}

/* Most of `recent` is of pools that this process never meets: memory that nobody touches. */
static struct dbp_client *client_new(void) {
    struct dbp_client *client = calloc(1, sizeof *client);
    void *recent =
        mmap(NULL, DBP_POOLS_MAX * sizeof *client->recent, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (client && recent != MAP_FAILED) {
        client->recent = recent;
        client->channel.fd = client->joining.fd = -1;
        return client;
    }
    free(client);
    if (recent != MAP_FAILED)
        munmap(recent, DBP_POOLS_MAX * sizeof *client->recent);
    return NULL;
}

static void client_free(struct dbp_client *client) {
    munmap(client->recent, DBP_POOLS_MAX * sizeof *client->recent);
    free(client);
}

int dbp_client_attach(const struct dbp_share *share, const char *label, uint64_t deadline_us,
                      struct dbp_client **clientp) {
    return dbp_client_attach_own(share, label, 0, deadline_us, clientp);
}

int dbp_client_attach_own(const struct dbp_share *share, const char *label, uint32_t place, uint64_t deadline_us,
                          struct dbp_client **clientp) {
    if (!dbp_table_valid(share->table))
        return -EPROTO;
    pthread_once(&atfork_once, install_atfork);
    if (atfork_error)
        return -atfork_error;
    pthread_mutex_lock(&lock); /* before anything is made: a forked child could not give it back */
    struct dbp_client *client = client_new();
    int rc = client ? 0 : -ENOMEM;
    if (rc == 0) {
        client->share = *share;
        client->place = place;
        snprintf(client->label, sizeof client->label, "%s", label);
        rc = attach(client, deadline_us);
    }
    if (rc == 0)
        the_client = *clientp = client;
    else if (client)
        client_free(client);
    pthread_mutex_unlock(&lock);
    return rc;
}

/* For good, as far as this client goes. */
static bool over(const struct dbp_client *client) {
    return atomic_load_explicit(&client->foreign, memory_order_relaxed) ||
           !atomic_load_explicit(&client->share.table->broker_up, memory_order_relaxed);
}

static bool closed(const struct dbp_client *client) {
    return over(client) || !attached(client);
}

/* DBP_E_BUSY, or what the register ends with. */
static int look_for_room_again(uint64_t deadline_us) {
    uint64_t until = dbp_now_us() + ROOM_LOOK_US;

    if (until >= deadline_us)
        return DBP_E_FULL;
    int rc = dbp_wait_as_told(-1, until);
    return rc == 0 || rc == DBP_E_TIMEOUT ? DBP_E_BUSY : rc;
}

int dbp_client_register(struct dbp_client *client, const struct dbp_pool_spec *spec, uint64_t deadline_us, char *errbuf,
                        size_t errlen, uint32_t *poolp) {
    union dbp_wire_any msg;
    int fd = -1, rc = DBP_E_CLOSED;

    memset(&msg.head, 0, sizeof msg.head);
    /* Twice: the broker may let go of us between our look and its answer. And again while it makes room for a pool. */
    for (int tries = 0; tries < 2 && (rc == DBP_E_CLOSED || rc == DBP_E_BUSY) && !over(client);) {
        pthread_mutex_lock(&lock);
        rc = attach(client, deadline_us);
        /* Now: a greenlet's stack is copied while it waits, and here is a password. */
        memset(&msg.reg, 0, sizeof msg.reg);
        dbp_wire_head_init(&msg.head, DBP_WIRE_REGISTER, 0);
        msg.reg.spec = *spec;
        if (rc == 0)
            rc = dbp_asking(&client->asking, &lock, &client->channel.fd, &msg, DBP_WIRE_REGISTERED, deadline_us, &fd);
        pthread_mutex_unlock(&lock);
        tries += rc == DBP_E_CLOSED;
        if (rc == DBP_E_BUSY)
            rc = look_for_room_again(deadline_us);
    }
    if (fd >= 0)
        close(fd);
    if (rc == 0)
        *poolp = msg.registered.pool;
    else if (errlen > 0)
        snprintf(errbuf, errlen, "%.*s", (int)sizeof msg.registered.text - 1,
                 msg.head.type == DBP_WIRE_REGISTERED ? msg.registered.text
                 : rc == DBP_E_FULL                   ? "no process slot is free"
                                                      : "the broker did not answer");
    explicit_bzero(&msg, sizeof msg); /* the password */
    return rc;
}

int dbp_session_fetch(struct dbp_client *client, const struct dbp_lease *lease, uint64_t deadline_us, int *fdp,
                      struct dbp_session_facts *factsp) {
    union dbp_wire_any msg;
    int fd = -1;

    if (closed(client))
        return DBP_E_CLOSED;
    memset(&msg.fetch, 0, sizeof msg.fetch);
    dbp_wire_head_init(&msg.head, DBP_WIRE_FETCH, 0);
    msg.fetch.session = lease->session;
    msg.fetch.generation = lease->generation;
    pthread_mutex_lock(&lock);
    int rc = !is_ours(&client->channel)
                 ? DBP_E_CLOSED
                 : dbp_asking(&client->asking, &lock, &client->channel.fd, &msg, DBP_WIRE_SESSION, deadline_us, &fd);
    if (rc == 0 &&
        (fd < 0 || msg.session.facts.greeting_len > DBP_GREETING_MAX || msg.session.facts.row_len > DBP_FACTS_ROW_MAX))
        rc = -EPROTO;
    /* Before the lock is let go: another thread's fork waits for it, and its child must not keep this fd. */
    if (rc == 0)
        rc = guard_locked(client, fd);
    pthread_mutex_unlock(&lock);
    if (rc != 0) {
        if (fd >= 0)
            close(fd);
        return rc;
    }
    *fdp = fd;
    *factsp = msg.session.facts;
    return 0;
}

/* ---- acquire and release: the table only ---- */

static void fill_lease(const struct dbp_client *client, uint32_t pool, uint32_t session, dbp_word word,
                       struct dbp_lease *leasep) {
    struct dbp_session *s = &client->share.table->sessions[session];

    leasep->pool = pool;
    leasep->session = session;
    leasep->generation = dbp_word_generation(word);
    leasep->incarnation = atomic_load_explicit(&s->incarnation, memory_order_relaxed);
    uint32_t slot = dbp_holder_slot(holder_of(client));
    uint64_t bit = (uint64_t)1 << (slot % 64u);
    if (!(atomic_load_explicit(&s->users, memory_order_relaxed) & bit))
        atomic_fetch_or_explicit(&s->users, bit, memory_order_relaxed);
    dbp_pool_count_acquire(client->share.table, pool, slot);
}

/* A session that died, or grew too old, between its return and now: ended here instead of handed out. */
static bool refused_as_unfit(const struct dbp_client *client, uint32_t pool, uint32_t session, dbp_word word) {
    struct dbp_table *table = client->share.table;

    if (!atomic_load_explicit(&table->sessions[session].unfit, memory_order_relaxed))
        return false;
    if (dbp_session_move(table, session, word, DBP_CLOSING, 0, NULL))
        dbp_handoff_ring(&client->share, pool);
    return true;
}

/* Taken just when the broker let go of us: nobody's, or the slot's next process would answer for it. */
static void hand_back(const struct dbp_client *client, uint32_t pool, uint32_t session, dbp_word word) {
    if (dbp_idle_put(client->share.table, session, word))
        dbp_handoff_match(&client->share, pool);
}

static bool exists(const struct dbp_client *client, uint32_t pool) {
    return dbp_pool_lives(client->share.table, pool);
}

int dbp_acquire_now(struct dbp_client *client, uint32_t pool, struct dbp_lease *leasep) {
    struct dbp_table *table = client->share.table;
    struct dbp_queue *queue;
    uint32_t session;
    dbp_word word;
    dbp_place oldest;

    if (closed(client))
        return DBP_E_CLOSED;
    if (!exists(client, pool))
        return DBP_E_INVALID;
    queue = &dbp_pool_at(table, pool)->queue;
    if (!dbp_queue_quiet(queue) && dbp_queue_oldest(queue, &oldest))
        return DBP_E_BUSY;
    uint32_t holder = holder_of(client);
    while (dbp_recent_take(&client->recent[dbp_pool_place(pool)], table, pool, holder, &session, &word) ||
           dbp_idle_take(table, pool, DBP_LEASED, holder, &session, &word)) {
        if (refused_as_unfit(client, pool, session, word))
            continue;
        if (!attached_as(client, holder)) {
            hand_back(client, pool, session, word);
            return DBP_E_CLOSED;
        }
        fill_lease(client, pool, session, word, leasep);
        return 0;
    }
    return DBP_E_BUSY;
}

int dbp_wait_begin(struct dbp_client *client, uint32_t pool, enum dbp_wait_kind kind, struct dbp_wait *waitp) {
    struct dbp_pool *p;
    uint32_t ticket;

    if (closed(client))
        return DBP_E_CLOSED;
    if (!exists(client, pool))
        return DBP_E_INVALID;
    p = dbp_pool_at(client->share.table, pool);
    uint32_t max_waiting = atomic_load_explicit(&p->max_waiting, memory_order_relaxed);
    if (max_waiting > 0 && atomic_load_explicit(&p->count.waiting, memory_order_relaxed) >= (int64_t)max_waiting)
        return DBP_E_FULL;
    uint32_t holder = holder_of(client);
    if (!dbp_queue_push(&p->queue, dbp_holder_slot(holder), kind == DBP_WAIT_EVENT, &ticket)) {
        dbp_handoff_ring(&client->share, pool); /* should the ring be damaged, the broker's next sweep mends it */
        return DBP_E_FULL;
    }
    atomic_fetch_add_explicit(&p->count.waiting, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&p->count.waits, 1, memory_order_relaxed);
    if (dbp_idle_any(client->share.table, pool))
        dbp_handoff_match(&client->share, pool);
    /* At the cap nobody can open one more, and every return serves the queue: the broker need not know. It lowers the
     * size before it looks for waiters, and we have queued before we look at the size: one of the two sees the other.
     */
    dbp_place place = dbp_queue_look(&p->queue, ticket);
    if (dbp_place_ticket(place) == ticket && dbp_place_state(place) == DBP_PLACE_WAITING &&
        atomic_load(&p->count.size) < atomic_load(&p->count.max))
        dbp_handoff_ring(&client->share, pool);
    /* Said by the broker before it looked who waits: it has seen us, or we see it. */
    if (!attached_as(client, holder) || !exists(client, pool)) {
        uint32_t session;
        dbp_word word;
        if (dbp_handoff_cancel(&client->share, pool, ticket, holder, &session, &word) == 0)
            hand_back(client, pool, session, word);
        return attached_as(client, holder) ? DBP_E_INVALID : DBP_E_CLOSED;
    }
    waitp->pool = pool;
    waitp->ticket = ticket;
    waitp->holder = holder;
    return 0;
}

int dbp_wait_poll(struct dbp_client *client, const struct dbp_wait *wait, struct dbp_lease *leasep) {
    uint32_t session;
    dbp_word word;

    if (atomic_load(&client->foreign))
        return DBP_E_CLOSED;
    if (!attached_as(client, wait->holder)) /* the broker has ended what this attach had */
        return dbp_wait_cancel(client, wait, leasep) == 0 ? 0 : DBP_E_CLOSED;
    int rc = dbp_handoff_claim(&client->share, wait->pool, wait->ticket, wait->holder, &session, &word);
    if (rc == 0)
        fill_lease(client, wait->pool, session, word, leasep);
    else if (rc == DBP_E_BUSY && over(client))
        return dbp_wait_cancel(client, wait, leasep) == 0 ? 0 : DBP_E_CLOSED;
    return rc == DBP_E_FAILED && !exists(client, wait->pool) ? DBP_E_INVALID : rc;
}

int dbp_wait_cancel(struct dbp_client *client, const struct dbp_wait *wait, struct dbp_lease *leasep) {
    uint32_t session;
    dbp_word word;

    if (atomic_load(&client->foreign))
        return DBP_E_TIMEOUT;
    int rc = dbp_handoff_cancel(&client->share, wait->pool, wait->ticket, wait->holder, &session, &word);
    if (rc == 0 && !attached_as(client, wait->holder)) {
        hand_back(client, wait->pool, session, word);
        return DBP_E_TIMEOUT;
    }
    if (rc == 0)
        fill_lease(client, wait->pool, session, word, leasep);
    else
        atomic_fetch_add_explicit(&dbp_pool_at(client->share.table, wait->pool)->count.timeouts, 1,
                                  memory_order_relaxed);
    return rc;
}

int dbp_wait_fd(const struct dbp_client *client) {
    return client->share.wake_fds[dbp_holder_slot(holder_of(client))];
}

/* Sleeps while the place is as it was seen, at most until `until`, or until a signal. */
static void sleep_on(struct dbp_client *client, const struct dbp_wait *wait, uint64_t until) {
    struct dbp_queue *queue = &dbp_pool_at(client->share.table, wait->pool)->queue;
    dbp_place seen = dbp_queue_look(queue, wait->ticket);
    uint64_t now = dbp_now_us();

    if (dbp_place_ticket(seen) != wait->ticket || dbp_place_state(seen) != DBP_PLACE_WAITING || now >= until)
        return;
    uint64_t us = until - now;
    struct timespec ts = {.tv_sec = (time_t)(us / 1000000u), .tv_nsec = (long)(us % 1000000u) * 1000};
    syscall(SYS_futex, dbp_queue_futex(queue, wait->ticket), FUTEX_WAIT, (uint32_t)seen, &ts, NULL, 0);
}

int dbp_acquire(struct dbp_client *client, uint32_t pool, uint64_t deadline_us, bool (*interrupted)(void *arg),
                void *arg, struct dbp_lease *leasep) {
    struct dbp_wait wait;

    int rc = dbp_acquire_now(client, pool, leasep);
    if (rc != DBP_E_BUSY)
        return rc;
    rc = dbp_wait_begin(client, pool, DBP_WAIT_FUTEX, &wait);
    if (rc != 0)
        return rc;
    uint64_t began = dbp_now_us();
    while ((rc = dbp_wait_poll(client, &wait, leasep)) == DBP_E_BUSY) {
        uint64_t now = dbp_now_us();
        if (now >= deadline_us) {
            rc = dbp_wait_cancel(client, &wait, leasep);
            break;
        }
        uint64_t slice = now + SLEEP_SLICE_US;
        sleep_on(client, &wait, deadline_us < slice ? deadline_us : slice);
        /* After every sleep, not only after EINTR: the signal may have come just before it. */
        if (interrupted && interrupted(arg)) {
            rc = DBP_E_INTERRUPTED;
            if (dbp_wait_cancel(client, &wait, leasep) == 0 &&
                dbp_release(client, leasep, dbp_lease_status(client, leasep), DBP_RETURN_CLEAN) != 0)
                rc = DBP_E_CLOSED;
            break;
        }
    }
    dbp_wait_account(client, pool, dbp_now_us() - began);
    return rc;
}

void dbp_wait_account(struct dbp_client *client, uint32_t pool, uint64_t waited_us) {
    atomic_fetch_add_explicit(&dbp_pool_at(client->share.table, pool)->count.wait_us, (int64_t)waited_us,
                              memory_order_relaxed);
}

/* The word of the lease if it is this caller's still. */
static bool held(const struct dbp_client *client, const struct dbp_lease *lease, dbp_word *wordp) {
    if (lease->session >= DBP_SESSIONS_MAX || atomic_load_explicit(&client->foreign, memory_order_relaxed))
        return false;
    dbp_word word = atomic_load(&client->share.table->sessions[lease->session].word);
    *wordp = word;
    return dbp_word_generation(word) == lease->generation && dbp_word_state(word) == DBP_LEASED &&
           dbp_word_owner(word) == holder_of(client);
}

int dbp_release(struct dbp_client *client, const struct dbp_lease *lease, uint16_t status, enum dbp_return how) {
    struct dbp_table *table = client->share.table;
    dbp_word word;

    if (!held(client, lease, &word))
        return atomic_load(&client->foreign) ? DBP_E_CLOSED : DBP_E_STALE;
    struct dbp_session *s = &table->sessions[lease->session];
    struct dbp_pool *p = dbp_pool_at(table, lease->pool);
    atomic_store_explicit(&s->status, status & (DBP_STATUS_KEPT | DBP_STATUS_WROTE),
                          memory_order_relaxed); /* published by the move, read after an acquire */
    atomic_store_explicit(&s->returned_us, dbp_now_us(), memory_order_relaxed);

    if (how == DBP_RETURN_DOOM || atomic_load_explicit(&s->unfit, memory_order_relaxed)) {
        if (!dbp_session_move(table, lease->session, word, DBP_CLOSING, how == DBP_RETURN_DOOM, NULL))
            return DBP_E_STALE;
        dbp_handoff_ring(&client->share, lease->pool);
        return 0;
    }
    if (how != DBP_RETURN_CLEAN) {
        enum dbp_reset_kind kind = how == DBP_RETURN_COMMIT ? DBP_RESET_COMMIT
                                   : how == DBP_RETURN_FULL ? DBP_RESET_FULL
                                                            : DBP_RESET_ROLLBACK;
        if (!dbp_session_move(table, lease->session, word, DBP_RESETTING, kind, NULL))
            return DBP_E_STALE;
        dbp_handoff_ring(&client->share, lease->pool);
        return 0;
    }
    if (!dbp_idle_put(table, lease->session, word))
        return DBP_E_STALE;
    dbp_recent_note(&client->recent[dbp_pool_place(lease->pool)], lease->session);
    if (!dbp_queue_quiet(&p->queue))
        dbp_handoff_match(&client->share, lease->pool);
    /* An overflow session: the broker ends it if nobody waits, where it does so at once. And one that became unfit
     * while it was moved, when the broker looked before the move and we before the mark. */
    if (atomic_load_explicit(&p->count.size, memory_order_relaxed) >
            (int64_t)atomic_load_explicit(&p->ring_above, memory_order_relaxed) ||
        atomic_load(&s->unfit))
        dbp_handoff_ring(&client->share, lease->pool);
    return 0;
}

uint16_t dbp_lease_status(const struct dbp_client *client, const struct dbp_lease *lease) {
    return (uint16_t)atomic_load_explicit(&client->share.table->sessions[lease->session].status, memory_order_relaxed);
}

bool dbp_lease_valid(const struct dbp_client *client, const struct dbp_lease *lease) {
    dbp_word word;

    return held(client, lease, &word);
}

void dbp_pool_stats(const struct dbp_client *client, uint32_t pool, struct dbp_stats *statsp) {
    dbp_inspect_stats(client->share.table, pool, statsp);
}

void dbp_pool_error(const struct dbp_client *client, uint32_t pool, struct dbp_error *errorp) {
    dbp_inspect_error(client->share.table, pool, errorp);
}

uint32_t dbp_pool_holders(const struct dbp_client *client, uint32_t pool, uint32_t n, struct dbp_holder *holders) {
    return dbp_inspect_holders(client->share.table, pool, n, holders);
}

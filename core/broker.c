/* SPDX-License-Identifier: MIT
 * The broker's loop: see broker.h. Who may say what is a table (legal[]); what is done about sessions is keeper.c.
 */
#include "broker.h"

#include "ending.h"
#include "failure.h"
#include "keeper.h"
#include "logger.h"
#include "opening.h"
#include "parking.h"
#include "thread.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_pidfd_open /* headers before Linux 5.3; the number is the same on all machines */
#define SYS_pidfd_open 434
#endif
#define EVENTS_MAX 64
#define NO_ROOM "the master has as many files open as it may (RLIMIT_NOFILE)"
#define STOP_MOST_US 2000000u    /* for the KILLs that are left when the host stops */
#define LOG_MOST_US 1000000u     /* for the last lines */
#define STOP_LOOK_US 10000u      /* between two looks then */
#define PARKED_MOST_US 60000000u /* no attach request waits longer for a slot */
#define PARKED_LOOK_US 10000u    /* who holds nothing any more says so to nobody: between two looks for a slot */
#define IDLE_LEAST_US 100000u    /* who attached or asked so lately is about to take something: not let go of */
#define CHANGES_LOGGED 64u       /* a site has few aliases, and few reloads change them */
#define MESSAGES_MAX 16          /* per channel and turn, so that one that floods does not starve the rest */

/* What an epoll event is about: kind in the top byte, then a serial that a closed and reused index no longer matches.
 */
enum kind { KIND_CONTROL, KIND_DOORBELL, KIND_STOP, KIND_CHANNEL, KIND_PIDFD, KIND_SESSION };

struct proc {
    int channel; /* -1: free slot */
    int pidfd;   /* -1: not to be had (other pid namespace); the channel's end of file serves alone then */
    int32_t pid;
    enum dbp_role role;
    uint32_t serial;
    uint64_t freed;                      /* the broker's n_freed when it became free */
    uint64_t pools[DBP_POOLS_MAX / 64u]; /* a bit for each that it registered */
};

struct dbp_broker {
    struct dbp_share share;
    struct dbp_broker_ops ops;
    struct dbp_logger *logger;
    struct dbp_registry *registry;
    struct dbp_keeper *keeper;
    int control_fd, epoll_fd, stop_fd;
    int connector;         /* its slot, -1: none */
    uint64_t stop_by_us;   /* 0: it does not stop */
    bool ended_all;        /* and all sessions are being ended */
    uint32_t max_sessions; /* of all pools together */
    uint32_t refused;      /* messages not understood, logged at powers of two */
    uint32_t fds_lost;     /* likewise, fds that found no room in this process */
    uint32_t changes;      /* pools that became current: likewise, after the first ones */
    uint32_t crowded;      /* likewise, attach requests that found no slot */
    uint64_t n_freed;      /* slots that became free */
    uint32_t unread;       /* likewise, answers that found a full channel: who floods must not fill the log as well */
    pthread_t thread;
    pthread_mutex_t lock; /* held while a batch of events is handled: a fork of the master waits for its end, which is
                             near because nothing in a batch blocks, and so never sees an fd that no list names yet */
    struct dbp_parking parking;
    struct proc procs[DBP_PROCS_MAX];
};

static uint64_t tag(enum kind kind, uint32_t serial, uint32_t index) {
    return (uint64_t)kind << 56 | (uint64_t)(serial & 0xffffffu) << 32 | index;
}

static void say(const struct dbp_broker *broker, enum dbp_log_level level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static void say(const struct dbp_broker *broker, enum dbp_log_level level, const char *format, ...) {
    char text[DBP_TEXT_MAX];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    dbp_logger_say(broker->logger, level, text);
}

static int epoll_add(const struct dbp_broker *broker, int fd, uint32_t events, uint64_t data) {
    struct epoll_event event = {.events = events, .data.u64 = data};

    return epoll_ctl(broker->epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0 ? 0 : -errno;
}

/* ---- what the keeper needs ---- */

static void keeper_log(void *arg, enum dbp_log_level level, const char *text) {
    dbp_logger_say(((struct dbp_broker *)arg)->logger, level, text);
}

static int keeper_to_connector(void *arg, const union dbp_wire_any *msg) {
    struct dbp_broker *broker = arg;

    return broker->connector < 0 ? -ENOTCONN : dbp_wire_send(broker->procs[broker->connector].channel, msg, -1);
}

static int keeper_watch(void *arg, uint32_t session, uint32_t incarnation, int fd, uint32_t events, bool first) {
    struct dbp_broker *broker = arg;
    struct epoll_event event = {.events = events, .data.u64 = tag(KIND_SESSION, incarnation, session)};
    int op = events == 0 ? EPOLL_CTL_DEL : first ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;

    return epoll_ctl(broker->epoll_fd, op, fd, &event) == 0 ? 0 : -errno;
}

/* ---- processes coming and going ---- */

static void set_proc_fds(struct proc *proc, int channel, int pidfd) {
    if (proc->channel >= 0)
        close(proc->channel);
    if (proc->pidfd >= 0)
        close(proc->pidfd);
    proc->channel = channel;
    proc->pidfd = pidfd;
}

static bool has_registered(const struct proc *proc, uint32_t pool) {
    return proc->pools[pool / 64u] >> pool % 64u & 1u;
}

/* Whatever lives in its place next, nobody has registered that. */
static void keeper_pool_gone(void *arg, uint32_t pool) {
    struct dbp_broker *broker = arg;

    for (uint32_t slot = 0; slot < DBP_PROCS_MAX; slot++)
        broker->procs[slot].pools[pool / 64u] &= ~((uint64_t)1 << pool % 64u);
}

static void proc_gone(struct dbp_broker *broker, uint32_t slot) {
    struct proc *proc = &broker->procs[slot];

    epoll_ctl(broker->epoll_fd, EPOLL_CTL_DEL, proc->channel, NULL);
    if (proc->pidfd >= 0)
        epoll_ctl(broker->epoll_fd, EPOLL_CTL_DEL, proc->pidfd, NULL);
    set_proc_fds(proc, -1, -1);
    proc->serial++;
    proc->freed = ++broker->n_freed;
    dbp_keeper_attached(broker->keeper, slot, 0); /* first: what it takes from now on is a stranger's */
    if (broker->connector == (int)slot) {
        broker->connector = -1;
        dbp_keeper_connector_lost(broker->keeper);
    } else {
        dbp_keeper_holder_died(broker->keeper, slot);
    }
    /* The slot is free only now: nothing in the table names it any more. */
    atomic_store(&broker->share.table->procs[slot].pid, 0);
    for (uint32_t pool = 0; pool < DBP_POOLS_MAX; pool++)
        if (has_registered(proc, pool)) {
            proc->pools[pool / 64u] &= ~((uint64_t)1 << pool % 64u);
            dbp_keeper_left(broker->keeper, pool);
        }
}

/* Another one at each attach of the slot. */
static uint32_t attach_of(const struct proc *proc) {
    return proc->serial % DBP_ATTACHES + 1u;
}

/* ---- slots ---- */

static bool is_dead(const struct proc *proc) {
    struct pollfd p[2] = {{.fd = proc->channel, .events = POLLRDHUP}, {.fd = proc->pidfd, .events = POLLIN}};

    return poll(p, 2, 0) > 0 && (p[0].revents & (POLLRDHUP | POLLHUP | POLLERR) || p[1].revents);
}

/* The slot that is kept for one of the host's own processes, -1: none. Its last process may be dead and not seen to be
 * so yet; where it lives, the newcomer is not who it says it is. */
static int own_slot(struct dbp_broker *broker, uint32_t slot, int32_t pid) {
    struct proc *proc = &broker->procs[slot];

    if (slot >= broker->ops.n_own || slot >= broker->share.n_wake_fds)
        return -1;
    if (proc->channel < 0)
        return (int)slot;
    if (!(pid > 0 && proc->pid == pid) && !is_dead(proc))
        return -1;
    proc_gone(broker, slot);
    return (int)slot;
}

/* The one that has been free longest: whoever still thinks that it has it has had time to find out. */
static int free_slot(const struct dbp_broker *broker) {
    int found = -1;

    for (uint32_t slot = broker->ops.n_own; slot < broker->share.n_wake_fds; slot++)
        if (broker->procs[slot].channel < 0 && (found < 0 || broker->procs[slot].freed < broker->procs[found].freed))
            found = (int)slot;
    return found;
}

static int idle_longest(struct dbp_broker *broker, const uint64_t *busy) {
    uint64_t since = dbp_now_us() - IDLE_LEAST_US;
    int found = -1;

    for (uint32_t slot = broker->ops.n_own; slot < broker->share.n_wake_fds; slot++) {
        const struct proc *proc = &broker->procs[slot];
        if (proc->channel < 0 || proc->role != DBP_ROLE_CLIENT || (busy[slot / 64u] >> slot % 64u & 1u) ||
            dbp_keeper_seen_us(broker->keeper, slot) > since)
            continue;
        found = (int)slot;
        since = dbp_keeper_seen_us(broker->keeper, slot);
    }
    return found;
}

/* Lets go of the process that has held nothing longest; it attaches anew when it needs to. -1: all hold something. */
static int vacated_slot(struct dbp_broker *broker) {
    uint64_t busy[DBP_PROCS_MAX / 64u];
    int slot;

    dbp_keeper_busy(broker->keeper, busy);
    while ((slot = idle_longest(broker, busy)) >= 0) {
        /* First said, then looked: what it takes from now on it gives back, what it took before is seen. */
        dbp_keeper_attached(broker->keeper, (uint32_t)slot, 0);
        dbp_keeper_busy(broker->keeper, busy);
        if (!(busy[(uint32_t)slot / 64u] >> (uint32_t)slot % 64u & 1u)) {
            proc_gone(broker, (uint32_t)slot);
            return slot;
        }
        dbp_keeper_attached(broker->keeper, (uint32_t)slot, attach_of(&broker->procs[slot]));
    }
    return -1;
}

static int any_slot(struct dbp_broker *broker) {
    int slot = free_slot(broker);

    return slot >= 0 ? slot : vacated_slot(broker);
}

static void refuse(int channel, enum dbp_error_code why) {
    union dbp_wire_any answer;

    memset(&answer.attached, 0, sizeof answer.attached);
    dbp_wire_head_init(&answer.head, DBP_WIRE_ATTACHED, 1);
    answer.head.result = (uint32_t)why;
    int rc = dbp_wire_send(channel, &answer, -1);
    (void)rc; /* closing says no as well */
    close(channel);
}

/* Consumes channel. */
static void admit(struct dbp_broker *broker, const struct dbp_wire_attach *msg, int channel, int32_t pid, int slot) {
    bool connector = msg->role == DBP_ROLE_CONNECTOR;
    struct proc *proc = &broker->procs[slot];
    int pidfd = pid > 0 ? (int)syscall(SYS_pidfd_open, pid, 0) : -1; /* CLOEXEC by definition */
    set_proc_fds(proc, channel, pidfd);
    proc->pid = pid;
    proc->role = connector ? DBP_ROLE_CONNECTOR : DBP_ROLE_CLIENT;
    int rc = epoll_add(broker, channel, EPOLLIN | EPOLLRDHUP, tag(KIND_CHANNEL, proc->serial, (uint32_t)slot));
    if (rc == 0 && pidfd >= 0)
        rc = epoll_add(broker, pidfd, EPOLLIN, tag(KIND_PIDFD, proc->serial, (uint32_t)slot));
    if (rc != 0) {
        say(broker, DBP_LOG_ERROR, "process %d cannot be watched: %s", pid, strerror(-rc));
        set_proc_fds(proc, -1, -1);
        return;
    }
    struct dbp_proc *shared = &broker->share.table->procs[slot];
    memcpy(shared->label, msg->label, sizeof shared->label);
    shared->label[sizeof shared->label - 1] = '\0';
    atomic_store(&shared->pid, (uint32_t)pid);
    dbp_keeper_attached(broker->keeper, (uint32_t)slot, attach_of(proc));
    dbp_keeper_saw(broker->keeper, (uint32_t)slot);

    union dbp_wire_any answer;
    memset(&answer.attached, 0, sizeof answer.attached);
    dbp_wire_head_init(&answer.head, DBP_WIRE_ATTACHED, 1);
    answer.attached.slot = (uint32_t)slot;
    answer.attached.attach = attach_of(proc);
    if (dbp_wire_send(channel, &answer, -1) != 0) {
        proc_gone(broker, (uint32_t)slot);
        return;
    }
    if (connector) {
        broker->connector = slot;
        dbp_keeper_connector_ready(broker->keeper);
    }
}

static void refuse_for_want_of_a_slot(struct dbp_broker *broker, int channel, int32_t pid) {
    broker->crowded++;
    if ((broker->crowded & (broker->crowded - 1)) == 0)
        say(broker, DBP_LOG_WARNING,
            "process %d cannot be attached: each of the %u slots for processes other than the host's own is taken by "
            "one that holds a session or waits for one (%u so far)",
            pid, broker->share.n_wake_fds - broker->ops.n_own, broker->crowded);
    refuse(channel, DBP_E_FULL);
}

static void attach(struct dbp_broker *broker, const struct dbp_wire_attach *msg, int channel, int32_t pid) {
    bool connector = msg->role == DBP_ROLE_CONNECTOR;
    int type = 0;
    socklen_t length = sizeof type;

    if ((!connector && msg->role != DBP_ROLE_CLIENT) || getsockopt(channel, SOL_SOCKET, SO_TYPE, &type, &length) != 0 ||
        type != SOCK_SEQPACKET) {
        say(broker, DBP_LOG_WARNING, "process %d cannot be attached: bad request", pid);
        refuse(channel, DBP_E_INVALID);
        return;
    }
    if (connector && !broker->ops.connector_is(broker->ops.arg, pid)) {
        say(broker, DBP_LOG_WARNING, "process %d asked to be the connector and is not", pid);
        refuse(channel, DBP_E_INVALID);
        return;
    }
    if (connector && broker->connector >= 0)
        proc_gone(broker, (uint32_t)broker->connector); /* respawned before its end of file was read */
    int slot = connector || msg->place > 0 ? own_slot(broker, connector ? 0 : msg->place, pid) : -1;
    if (slot < 0 && (connector || broker->parking.n == 0)) /* nobody overtakes those who wait */
        slot = any_slot(broker);
    uint64_t patience_us = 1000ull * msg->patience_ms;
    if (slot >= 0)
        admit(broker, msg, channel, pid, slot);
    else if (!dbp_parking_put(&broker->parking, msg, channel, pid,
                              dbp_now_us() + (patience_us < PARKED_MOST_US ? patience_us : PARKED_MOST_US)))
        refuse(channel, DBP_E_BUSY);
}

/* Those who wait for a slot. */
static void serve_parked(struct dbp_broker *broker, uint64_t *nextp) {
    struct dbp_parked parked;
    int slot;

    while (broker->parking.n > 0 && (slot = any_slot(broker)) >= 0 && dbp_parking_take(&broker->parking, &parked))
        admit(broker, &parked.msg, parked.channel, parked.pid, slot);
    while (dbp_parking_take_overdue(&broker->parking, dbp_now_us(), &parked))
        refuse_for_want_of_a_slot(broker, parked.channel, parked.pid);
    if (broker->parking.n > 0 && *nextp > dbp_now_us() + PARKED_LOOK_US)
        *nextp = dbp_now_us() + PARKED_LOOK_US;
}

/* ---- what processes ask ---- */

/* text: DBP_TEXT_MAX bytes. */
static int register_pool(struct dbp_broker *broker, const struct dbp_pool_spec *spec, char *text, uint32_t *poolp) {
    uint32_t most = broker->max_sessions;
    uint64_t turn = dbp_registry_turn(broker->registry);
    bool changed = false;

    if (spec->min_size > most && spec->min_size <= DBP_SESSIONS_MAX) {
        snprintf(text, DBP_TEXT_MAX, "min_size is %u: all pools together may have %u sessions (max_sessions)",
                 spec->min_size, most);
        return DBP_E_INVALID;
    }
    int rc = dbp_registry_put(broker->registry, broker->share.table, spec, text, poolp, &changed);
    if (rc == DBP_E_FULL && (rc = dbp_keeper_make_room(broker->keeper)) == 0)
        rc = dbp_registry_put(broker->registry, broker->share.table, spec, text, poolp, &changed);
    if (rc != 0)
        return rc;
    dbp_keeper_used(broker->keeper, *poolp);
    if (changed)
        dbp_keeper_tidy(broker->keeper);
    if (dbp_registry_turn(broker->registry) != turn)
        dbp_opening_forgive(broker->keeper, *poolp);
    if (changed && broker->ops.pool_current)
        broker->ops.pool_current(broker->ops.arg, *poolp, spec->alias);
    /* An alias whose settings change all the time (a database for each tenant) must not fill the log. */
    broker->changes += changed;
    bool quiet = broker->changes > CHANGES_LOGGED && (broker->changes & (broker->changes - 1)) != 0;
    if (changed && !quiet)
        say(broker, DBP_LOG_INFO, "pool '%s': up to %u sessions for all processes", spec->alias,
            spec->pool_size + spec->max_overflow);
    if (changed && !quiet && text[0])
        say(broker, DBP_LOG_INFO,
            "pool '%s': other settings than before (%s); the pool of those goes with the last process that uses it",
            spec->alias, text);
    if (changed && spec->pool_size + spec->max_overflow > most)
        say(broker, DBP_LOG_WARNING, "pool '%s': pool_size + max_overflow is %u, all pools together may have %u",
            spec->alias, spec->pool_size + spec->max_overflow, most);
    dbp_keeper_attend(broker->keeper, *poolp); /* a new pool's floor; a cap that was raised serves those who wait */
    return 0;
}

static void answer(struct dbp_broker *broker, uint32_t slot, const union dbp_wire_any *msg, int fd) {
    int rc = dbp_wire_send(broker->procs[slot].channel, msg, fd);

    if (rc == 0)
        return;
    broker->unread++;
    if ((broker->unread & (broker->unread - 1)) == 0)
        say(broker, DBP_LOG_WARNING, "process %d does not read its answers: %s (%u so far)", broker->procs[slot].pid,
            strerror(-rc), broker->unread);
}

static void on_register(struct dbp_broker *broker, uint32_t slot, const union dbp_wire_any *msg, int fd) {
    struct proc *proc = &broker->procs[slot];
    union dbp_wire_any reply;
    uint32_t pool = 0;

    (void)fd; /* this format has none */
    memset(&reply.registered, 0, sizeof reply.registered);
    dbp_wire_head_init(&reply.head, DBP_WIRE_REGISTERED, msg->head.serial);
    uint64_t turn = dbp_registry_turn(broker->registry);
    int rc = register_pool(broker, &msg->reg.spec, reply.registered.text, &pool);
    if (rc == 0 && dbp_registry_candidate(broker->registry, pool) > turn)
        say(broker, DBP_LOG_INFO, "pool '%s': process %d has another password than it had: the next login tries it",
            msg->reg.spec.alias, proc->pid);
    reply.head.result = (uint32_t)rc;
    if (rc == 0) {
        reply.registered.pool = dbp_registry_handle(broker->registry, pool);
        if (!has_registered(proc, pool)) {
            proc->pools[pool / 64u] |= (uint64_t)1 << pool % 64u;
            dbp_keeper_joined(broker->keeper, pool);
        }
    }
    answer(broker, slot, &reply, -1);
}

static void on_fetch(struct dbp_broker *broker, uint32_t slot, const union dbp_wire_any *msg, int fd) {
    union dbp_wire_any reply;
    const struct dbp_session_facts *facts = NULL;
    int session_fd = -1;

    (void)fd;
    memset(&reply.session, 0, sizeof reply.session);
    dbp_wire_head_init(&reply.head, DBP_WIRE_SESSION, msg->head.serial);
    int rc = dbp_keeper_lookup(broker->keeper, slot, broker->procs[slot].pools, msg->fetch.session,
                               msg->fetch.generation, &session_fd, &facts);
    reply.head.result = (uint32_t)rc;
    if (rc == 0)
        reply.session.facts = *facts;
    answer(broker, slot, &reply, rc == 0 ? session_fd : -1);
}

static void on_opened(struct dbp_broker *broker, uint32_t slot, const union dbp_wire_any *msg, int fd) {
    (void)slot;
    dbp_opening_delivered(broker->keeper, &msg->opened, fd);
}

static void on_failed(struct dbp_broker *broker, uint32_t slot, const union dbp_wire_any *msg, int fd) {
    (void)slot;
    (void)fd;
    dbp_opening_failed(broker->keeper, &msg->failed);
}

static void on_killed(struct dbp_broker *broker, uint32_t slot, const union dbp_wire_any *msg, int fd) {
    (void)slot;
    (void)fd;
    dbp_ending_killed(broker->keeper, &msg->killed);
}

static const struct {
    enum dbp_role from;
    void (*handle)(struct dbp_broker *broker, uint32_t slot, const union dbp_wire_any *msg, int fd);
} legal[DBP_WIRE_TYPES] = {
    [DBP_WIRE_REGISTER] = {DBP_ROLE_CLIENT, on_register}, [DBP_WIRE_FETCH] = {DBP_ROLE_CLIENT, on_fetch},
    [DBP_WIRE_OPENED] = {DBP_ROLE_CONNECTOR, on_opened},  [DBP_WIRE_FAILED] = {DBP_ROLE_CONNECTOR, on_failed},
    [DBP_WIRE_KILLED] = {DBP_ROLE_CONNECTOR, on_killed},
};

static void not_understood(struct dbp_broker *broker, int32_t pid) {
    broker->refused++;
    if ((broker->refused & (broker->refused - 1)) == 0)
        say(broker, DBP_LOG_WARNING, "a message of process %d was not understood and is dropped (%u so far)", pid,
            broker->refused);
}

/* The sender has closed its copy already: what came with it is gone. Its sender learns it from the end of file. */
static void fd_lost(struct dbp_broker *broker, int32_t pid) {
    broker->fds_lost++;
    if ((broker->fds_lost & (broker->fds_lost - 1)) == 0)
        say(broker, DBP_LOG_ERROR, "a file descriptor of process %d is lost: " NO_ROOM " (%u so far)", pid,
            broker->fds_lost);
}

/* A session that was logged in is gone again: its place must not wait for the answer that was this one. */
static void session_lost(struct dbp_broker *broker, const struct dbp_wire_opened *msg) {
    struct dbp_wire_failed failed = {
        .session = msg->session,
        .incarnation = msg->incarnation,
        .error = {.code = 2004, .sqlstate = "HY000", .text = "dbpool: " NO_ROOM}, /* CR_IPSOCK_ERROR, as a driver */
    };

    dbp_opening_failed(broker->keeper, &failed);
}

static void read_channel(struct dbp_broker *broker, uint32_t slot) {
    union dbp_wire_any msg;
    struct proc *proc = &broker->procs[slot];
    uint32_t serial = proc->serial;

    for (int i = 0; i < MESSAGES_MAX && proc->serial == serial; i++) {
        int fd = -1;
        int rc = dbp_wire_recv(proc->channel, &msg, &fd, NULL);
        if (rc == -EAGAIN)
            break;
        if (rc == DBP_E_INVALID) {
            not_understood(broker, proc->pid);
            continue;
        }
        if (rc == -EMFILE) {
            fd_lost(broker, proc->pid);
            if (msg.head.type == DBP_WIRE_OPENED && proc->role == DBP_ROLE_CONNECTOR)
                session_lost(broker, &msg.opened);
            continue;
        }
        if (rc != 0) {
            proc_gone(broker, slot);
            break;
        }
        dbp_keeper_saw(broker->keeper, slot);
        if (legal[msg.head.type].handle && legal[msg.head.type].from == proc->role) {
            legal[msg.head.type].handle(broker, slot, &msg, fd); /* OPENED consumes fd, the others have none */
        } else {
            not_understood(broker, proc->pid);
            if (fd >= 0)
                close(fd);
        }
    }
    explicit_bzero(&msg, sizeof msg); /* a REGISTER has a password */
}

static void read_control(struct dbp_broker *broker) {
    union dbp_wire_any msg;

    for (int i = 0; i < MESSAGES_MAX; i++) {
        int fd = -1;
        int32_t pid = 0;
        int rc = dbp_wire_recv(broker->control_fd, &msg, &fd, &pid);
        if (rc == DBP_E_INVALID) {
            not_understood(broker, pid);
            continue;
        }
        if (rc == -EMFILE) {
            fd_lost(broker, pid);
            continue;
        }
        if (rc != 0)
            break;
        if (msg.head.type == DBP_WIRE_ATTACH) {
            attach(broker, &msg.attach, fd, pid);
            continue;
        }
        not_understood(broker, pid);
        if (fd >= 0)
            close(fd);
    }
    explicit_bzero(&msg, sizeof msg); /* a REGISTER in the wrong place has one too */
}

static void answer_doorbell(struct dbp_broker *broker) {
    struct dbp_table *table = broker->share.table;
    uint64_t rings;

    if (read(broker->share.doorbell_fd, &rings, sizeof rings) < 0 && errno != EAGAIN)
        say(broker, DBP_LOG_ERROR, "doorbell: %s", strerror(errno));
    for (uint32_t word = 0; word < DBP_ATTENTION_WORDS; word++)
        for (uint64_t bits = atomic_load(&table->attention[word]); bits; bits &= bits - 1) {
            uint32_t pool = 64u * word + (uint32_t)__builtin_ctzll(bits);
            if (dbp_registry_spec(broker->registry, pool))
                dbp_keeper_attend(broker->keeper, pool);
            else /* of a client that came too late */
                dbp_attention_take(table, pool);
        }
}

/* ---- the loop ---- */

static void begin_stop(struct dbp_broker *broker) {
    uint64_t rings;

    if (read(broker->stop_fd, &rings, sizeof rings) > 0)
        broker->stop_by_us = dbp_now_us() + STOP_MOST_US;
}

/* A quiet turn shows that every death so far was seen, and what the dead held is ended. Then the rest, and the KILLs.
 */
static bool stop_is_over(struct dbp_broker *broker, bool quiet) {
    if (dbp_now_us() >= broker->stop_by_us)
        return true;
    if (!broker->ended_all && quiet) {
        dbp_keeper_end_all(broker->keeper);
        broker->ended_all = true;
    }
    return broker->ended_all && !dbp_keeper_kills_pending(broker->keeper);
}

static void dispatch(struct dbp_broker *broker, const struct epoll_event *event) {
    enum kind kind = (enum kind)(event->data.u64 >> 56);
    uint32_t serial = (uint32_t)(event->data.u64 >> 32) & 0xffffffu, index = (uint32_t)event->data.u64;

    switch (kind) {
    case KIND_STOP:
        begin_stop(broker);
        break;
    case KIND_CONTROL:
        read_control(broker);
        break;
    case KIND_DOORBELL:
        answer_doorbell(broker);
        break;
    case KIND_CHANNEL:
        if ((broker->procs[index].serial & 0xffffffu) == serial && broker->procs[index].channel >= 0)
            read_channel(broker, index);
        break;
    case KIND_PIDFD:
        if ((broker->procs[index].serial & 0xffffffu) == serial && broker->procs[index].channel >= 0)
            proc_gone(broker, index);
        break;
    case KIND_SESSION:
        if ((dbp_keeper_incarnation(broker->keeper, index) & 0xffffffu) == serial)
            dbp_keeper_event(broker->keeper, index, event->events);
        break;
    }
}

/* One batch. False: stop. */
static bool turn(struct dbp_broker *broker, const struct epoll_event *events, int n, uint64_t *nextp) {
    bool go_on = true;

    pthread_mutex_lock(&broker->lock);
    for (int i = 0; i < n; i++)
        dispatch(broker, &events[i]);
    *nextp = dbp_keeper_tick(broker->keeper);
    serve_parked(broker, nextp);
    if (broker->stop_by_us) {
        go_on = !stop_is_over(broker, n <= 0);
        *nextp = dbp_now_us() + (broker->ended_all ? STOP_LOOK_US : 0);
    } else if (atomic_load(&broker->share.table->broker_up) == 0) { /* some process wrote where it may not */
        atomic_store(&broker->share.table->broker_up, 1);
    }
    pthread_mutex_unlock(&broker->lock);
    return go_on;
}

static void *run(void *arg) {
    struct dbp_broker *broker = arg;
    struct epoll_event events[EVENTS_MAX];
    uint64_t next = 0;
    int n;

    do {
        uint64_t now = dbp_now_us();
        int timeout_ms = next > now ? (int)((next - now + 999) / 1000) : 0;
        n = epoll_wait(broker->epoll_fd, events, EVENTS_MAX, timeout_ms);
        if (n < 0 && errno != EINTR) {
            say(broker, DBP_LOG_ERROR, "the broker's loop failed: %s", strerror(errno));
            atomic_store(&broker->share.table->broker_up, 0);
            break;
        }
    } while (turn(broker, events, n, &next));
    return NULL;
}

/* ---- forks of the master: a child holds nothing of the broker's ---- */

static struct dbp_broker *the_broker; /* atfork handlers have no argument */

static void before_fork(void) {
    if (the_broker)
        pthread_mutex_lock(&the_broker->lock);
}

static void after_fork_parent(void) {
    if (the_broker)
        pthread_mutex_unlock(&the_broker->lock);
}

static void after_fork_child(void) {
    struct dbp_broker *broker = the_broker;

    if (!broker)
        return;
    /* Before anything else: a copy of a session's fd here would keep the server from ever seeing it closed. The locks
     * are left locked; nobody in this process uses them. */
    dbp_keeper_fork_child(broker->keeper);
    dbp_registry_fork_child(broker->registry);
    for (uint32_t slot = 0; slot < DBP_PROCS_MAX; slot++) {
        if (broker->procs[slot].channel >= 0)
            close(broker->procs[slot].channel);
        if (broker->procs[slot].pidfd >= 0)
            close(broker->procs[slot].pidfd);
    }
    dbp_parking_clear(&broker->parking);
    close(broker->epoll_fd);
    close(broker->stop_fd);
    close(broker->control_fd);
    the_broker = NULL;
}

static pthread_once_t atfork_once = PTHREAD_ONCE_INIT;
static int atfork_error;

static void install_atfork(void) {
    atfork_error = pthread_atfork(before_fork, after_fork_parent, after_fork_child);
}

/* ---- life ---- */

static struct dbp_broker *broker_free(struct dbp_broker *broker) {
    broker->keeper = dbp_keeper_free(broker->keeper);
    broker->registry = dbp_registry_free(broker->registry);
    for (uint32_t slot = 0; slot < DBP_PROCS_MAX; slot++)
        set_proc_fds(&broker->procs[slot], -1, -1);
    dbp_parking_clear(&broker->parking);
    if (broker->epoll_fd >= 0)
        close(broker->epoll_fd);
    if (broker->stop_fd >= 0)
        close(broker->stop_fd);
    close(broker->control_fd);
    broker->logger = dbp_logger_free(broker->logger, LOG_MOST_US);
    pthread_mutex_destroy(&broker->lock);
    free(broker);
    return NULL;
}

/* Everything but the thread. *stepp: what cannot be made, when it fails. */
static int make_parts(struct dbp_broker *broker, const char **stepp) {
    struct dbp_keeper_ops keeper_ops = {.log = keeper_log,
                                        .to_connector = keeper_to_connector,
                                        .watch = keeper_watch,
                                        .pool_gone = keeper_pool_gone,
                                        .arg = broker};
    int rc;

    *stepp = "its event queue (epoll_create1)";
    if ((broker->epoll_fd = epoll_create1(EPOLL_CLOEXEC)) < 0)
        return -errno;
    *stepp = "the call to stop (eventfd)";
    if ((broker->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) < 0)
        return -errno;
    *stepp = "the thread that writes the log";
    if ((rc = dbp_logger_new(broker->ops.log, &broker->logger)) != 0)
        return rc;
    *stepp =
        "memory for passwords, kept out of core dumps (mmap; madvise, MADV_DONTDUMP: a sandbox or emulator without "
        "it cannot be used)";
    if ((rc = dbp_registry_new(&broker->registry)) != 0)
        return rc;
    *stepp = "memory for its sessions";
    rc = dbp_keeper_new(&broker->share, broker->registry, &keeper_ops, broker->max_sessions, &broker->keeper);
    if (rc != 0)
        return rc;
    *stepp = "watching its fds (epoll_ctl)";
    if ((rc = epoll_add(broker, broker->control_fd, EPOLLIN, tag(KIND_CONTROL, 0, 0))) != 0 ||
        (rc = epoll_add(broker, broker->share.doorbell_fd, EPOLLIN, tag(KIND_DOORBELL, 0, 0))) != 0)
        return rc;
    return epoll_add(broker, broker->stop_fd, EPOLLIN, tag(KIND_STOP, 0, 0));
}

int dbp_broker_start(const struct dbp_share *share, int control_fd, const struct dbp_broker_ops *ops,
                     struct dbp_broker **brokerp) {
    const char *step = "memory, or fork handlers (pthread_atfork)";

    pthread_once(&atfork_once, install_atfork);
    struct dbp_broker *broker = atfork_error ? NULL : calloc(1, sizeof *broker);
    int rc = broker ? 0 : atfork_error ? -atfork_error : -ENOMEM;
    if (!broker) {
        close(control_fd);
        return dbp_failed(step, -rc);
    }
    broker->share = *share;
    broker->ops = *ops;
    broker->control_fd = control_fd;
    broker->connector = broker->epoll_fd = broker->stop_fd = -1;
    broker->max_sessions =
        ops->max_sessions && ops->max_sessions < DBP_SESSIONS_MAX ? ops->max_sessions : DBP_SESSIONS_MAX;
    atomic_store(&share->table->max_sessions, broker->max_sessions);
    for (uint32_t slot = 0; slot < DBP_PROCS_MAX; slot++)
        broker->procs[slot].channel = broker->procs[slot].pidfd = -1;
    pthread_mutex_init(&broker->lock, NULL);
    rc = make_parts(broker, &step);
    if (rc == 0) {
        step = "its thread";
        atomic_store(&share->table->broker_up, 1);
        the_broker = broker;
        rc = dbp_thread_start(0, run, broker, &broker->thread);
    }
    if (rc == 0) {
        *brokerp = broker;
        return 0;
    }
    the_broker = NULL;
    atomic_store(&share->table->broker_up, 0);
    broker_free(broker);
    return dbp_failed(step, -rc);
}

int dbp_broker_register(struct dbp_broker *broker, const struct dbp_pool_spec *spec, char *text) {
    uint64_t one = 1;
    uint32_t pool;

    pthread_mutex_lock(&broker->lock);
    int rc = register_pool(broker, spec, text, &pool);
    pthread_mutex_unlock(&broker->lock);
    if (write(broker->share.doorbell_fd, &one, sizeof one) < 0 && errno != EAGAIN)
        say(broker, DBP_LOG_ERROR, "doorbell: %s", strerror(errno)); /* the tick comes within a second */
    return rc;
}

struct dbp_broker *dbp_broker_stop(struct dbp_broker *broker) {
    uint64_t one = 1;

    if (!broker)
        return NULL;
    atomic_store(&broker->share.table->broker_up, 0);
    if (write(broker->stop_fd, &one, sizeof one) == (ssize_t)sizeof one)
        pthread_join(broker->thread, NULL);
    atomic_store(&broker->share.table->broker_up, 0); /* its last turn may have raised it again */
    the_broker = NULL;                                /* no fork can come in between: this is the thread that forks */
    return broker_free(broker);
}

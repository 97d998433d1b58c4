/* SPDX-License-Identifier: MIT
 * dbpool core: one pool of live MySQL sessions, leased across processes. This header is the manual.
 *
 * Three kinds of process use it (core/DESIGN.md has the picture):
 *   broker     a thread of the host's master: owns every session, hands out file descriptors, never blocks
 *   connector  a child of the master: logs in and kills, the only user of libmysqlclient
 *   client     a worker, mule or spooler: leases sessions and talks to the server directly
 *
 * Units: every time named *_us is microseconds of CLOCK_MONOTONIC (dbp_now_us); deadlines are absolute.
 * Returns: 0 is success; a negative value is -errno: something is broken here, forward it; a positive value is
 * DBP_E_*: an outcome the direct caller handles. Out-parameters come last and are untouched on failure.
 * File descriptors: "none" is -1. Every fd that core makes is CLOEXEC. core never exits, never prints: it logs
 * through dbp_log_fn.
 */
#ifndef DBPOOL_H
#define DBPOOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DBP_MUST_USE __attribute__((warn_unused_result))

/* Changes with every change of this header, the shared layout or the wire: all parts of one instance must agree. */
#define DBP_VERSION 4u

enum dbp_error_code {
    DBP_E_BUSY = 1,       /* nothing idle now (acquire_now), or not granted yet (wait_poll) */
    DBP_E_TIMEOUT = 2,    /* the deadline passed before a session came */
    DBP_E_FAILED = 3,     /* no session can be opened: dbp_pool_error() has the server's or the network's own words */
    DBP_E_FULL = 4,       /* as many wait as may (max_waiting, or the queue's DBP_WAITERS_MAX) */
    DBP_E_CLOSED = 5,     /* the broker is gone, or this process was forked from an attached one */
    DBP_E_INVALID = 6,    /* an argument or a message is out of range */
    DBP_E_STALE = 7,      /* the lease is not this caller's any more: it was returned or ended before */
    DBP_E_INTERRUPTED = 8 /* the interrupted() callback of dbp_acquire, or a dbp_wait_fn, asked to stop */
};

/* ---- limits (each is a size in the shared table; memory is only touched where it is used) ---- */

#define DBP_POOLS_MAX 256u     /* pools at a time; who needs one more takes the place of one that is not in use */
#define DBP_SESSIONS_MAX 1024u /* server sessions of all pools together; one 64 byte line each */
#define DBP_WAITERS_MAX 16384u /* waiters of one pool, a power of two: the ring's size (brief: 10,000 waiters) */
#define DBP_PROCS_MAX 512u     /* attached processes at a time, the connector included */

#define DBP_ALIAS_MAX 64u
#define DBP_TEXT_MAX 512u
#define DBP_GREETING_MAX 512u
#define DBP_FACTS_ROW_MAX 1024u

/* ---- what a pool is ---- */

/* A pool's identity (all that the server can see) and its policy. Plain data, no pointers, so that it is also the body
 * of a message. Strings are NUL-terminated; an empty one means "not given". Holds the password: wipe copies. */
struct dbp_pool_spec {
    char alias[DBP_ALIAS_MAX];
    /* identity */
    char host[256];        /* TCP when set and unix_socket is empty; "" means 127.0.0.1 */
    char unix_socket[108]; /* path; wins over host */
    char user[132];        /* MySQL: 32 characters of up to 4 bytes; MariaDB: 128 bytes */
    char password[4100];   /* clouds take tokens of some kilobytes */
    char database[260];    /* 64 characters of up to 4 bytes */
    char charset[64];      /* as for MYSQL_SET_CHARSET_NAME, e.g. utf8mb4 */
    char init_sql[2048];   /* statements, each NUL-terminated, run in order on a new session and after a full reset */
    char facts_sql[512];   /* one query run once per new session; its first row comes with dbp_session_facts.row */
    uint32_t port;         /* 0: 3306 */
    uint32_t client_flags; /* CLIENT_FOUND_ROWS, CLIENT_MULTI_STATEMENTS, CLIENT_LOCAL_FILES, CLIENT_INTERACTIVE,
                              CLIENT_IGNORE_SPACE */
    uint32_t autocommit;   /* baseline: 0 or 1; every session is in it when it is handed out */
    uint32_t connect_timeout_s; /* of one login, 1..3600 */
    /* policy */
    uint32_t pool_size;      /* sessions that are kept, 1..DBP_SESSIONS_MAX */
    uint32_t max_overflow;   /* further sessions while they are needed (overflow_grace_ms) */
    uint32_t recycle_s;      /* a session older than this is ended instead of handed out; 0: no limit */
    uint32_t max_lifetime_s; /* as recycle_s, but each session a random part of a tenth earlier, and replaced before; 0:
                                none */
    uint32_t idle_timeout_s; /* a session above min_size that nobody used for so long is ended; 0: no limit */
    uint32_t keepalive_s;    /* an idle session that is silent for so long is pinged; 0: never */
    uint32_t min_size;       /* sessions that are kept open also when nobody has asked yet */
    uint32_t core_size;      /* idle sessions above it are retired gradually; 0: pool_size, none are */
    uint32_t retire_interval_ms; /* 0: never */
    uint32_t retire_quantity;    /* at most so many per interval */
    uint32_t unload_timeout_ms;  /* with core_size leased, a random part of this passes before one more is opened */
    uint32_t max_waiting;        /* more waiters than this are refused at once; 0: DBP_WAITERS_MAX */
    uint32_t overflow_grace_ms;  /* a session above pool_size that nobody used for so long is ended; 0: at its return */
};

/* What a process must know of a session to make a stock driver believe that it logged in itself. Not secret.
 * row: columns of facts_sql's first row, each as uint16 length (host order, 0xFFFF = NULL) followed by that many bytes.
 */
struct dbp_session_facts {
    uint32_t connection_id;
    uint32_t capabilities; /* CLIENT_* that the session was opened with */
    uint32_t charset;      /* collation id of the login */
    char collation[64];    /* its name, where COM_RESET_CONNECTION loses it (DBP_FACT_NAMES) */
    uint32_t status;       /* server status word after opening; above its 16 bits DBP_FACT_* */
    uint32_t greeting_len;
    uint32_t row_len;
    uint32_t row_columns;
    uint8_t
        greeting[DBP_GREETING_MAX]; /* payload of the greeting to replay: masked, auth plugin mysql_native_password */
    uint8_t row[DBP_FACTS_ROW_MAX];
};

/* What the connector found out about the session, for whoever resets it (reset.h). */
#define DBP_FACT_TRACKED (1u << 16) /* the server reports changes of its state: bit DBP_STATUS_CHANGED */
#define DBP_FACT_ROLE_NONE                                                                                           \
    (1u << 17)                       /* it has roles and none is set; COM_RESET_CONNECTION keeps what SET ROLE chose \
                                      */
#define DBP_FACT_NAMES (1u << 18)    /* COM_RESET_CONNECTION loses the login's character set */
#define DBP_FACT_NO_RESET (1u << 19) /* no reset leads back to what it is now: another session takes its place */

struct dbp_error {
    uint32_t code; /* the server's or client library's errno, e.g. 1045, 2003; 0: none */
    char sqlstate[8];
    char text[DBP_TEXT_MAX];
};

/* A lease: plain value, owned by the caller. generation makes each lease of a session different, so that a lease kept
 * past its return can do nothing (DBP_E_STALE); incarnation tells a new session in the same slot from the old one. */
struct dbp_lease {
    uint32_t pool;
    uint32_t session;
    uint32_t generation;
    uint32_t incarnation;
};

/* A place in the queue of a pool: plain value, owned by the caller, ended by exactly one of wait_poll (other than
 * DBP_E_BUSY) or wait_cancel. */
struct dbp_wait {
    uint32_t pool;
    uint32_t ticket;
    uint32_t holder; /* the attach that it was begun in */
};

enum dbp_wait_kind {
    DBP_WAIT_FUTEX = 0, /* a thread sleeps in dbp_acquire or dbp_wait_sleep */
    DBP_WAIT_EVENT = 1  /* an event loop watches dbp_wait_fd() and polls */
};

enum dbp_return {
    DBP_RETURN_CLEAN = 0, /* as it was leased: the next one may have it at once */
    DBP_RETURN_RESET =
        1, /* idle on the wire, but in a transaction or off the baseline: the broker puts it right first */
    DBP_RETURN_COMMIT = 3, /* as RESET, but an open transaction is committed instead of rolled back */
    DBP_RETURN_FULL = 4,   /* idle on the wire, but its state was changed: the broker makes it as new first */
    DBP_RETURN_DOOM = 2    /* the wire is not known to be idle: ended at the server, with KILL */
};

/* SERVER_SESSION_STATE_CHANGED: the server says so with the answer to the statement that did it, and once. */
#define DBP_STATUS_CHANGED 0x4000u

/* A holder's own, at its return: within the transaction that is open now the lease has changed rows, and no error came.
 * (SERVER_PS_OUT_PARAMS, which the text protocol does not know.) */
#define DBP_STATUS_WROTE 0x1000u

/* The bits of a server status word that describe the session and not just the last command (include/mysql_com.h):
 * IN_TRANS, AUTOCOMMIT, NO_BACKSLASH_ESCAPES, ANSI_QUOTES. Only these go from one lease to the next. */
#define DBP_STATUS_KEPT 0x8203u

struct dbp_holder {
    uint32_t pid;
    uint32_t leases;
    char label[24]; /* "worker 3", "mule 1", ... */
};

struct dbp_stats {
    int64_t size, max, idle, leased, opening, resetting, closing, waiting;
    int64_t opened, closed, acquires, waits, timeouts, wait_us, failures, resets, undone, kills;
    int64_t all_size, all_max; /* of all pools together */
};

enum dbp_log_level { DBP_LOG_INFO, DBP_LOG_WARNING, DBP_LOG_ERROR };

/* Called by whichever thread logs; text has no newline and no secret (I9). Must not call back into core. */
typedef void (*dbp_log_fn)(enum dbp_log_level level, const char *text);

uint64_t dbp_now_us(void);

/* ---- the client: workers, mules, spoolers ---- */

/* What a process inherits from the master to find the pool. Filled by dbp_share_create() (broker.h) before any fork.
 * The fds and the mapping are the master's; every forked process uses them as they are. */
struct dbp_share {
    struct dbp_table *table; /* mapped MAP_SHARED */
    int control_fd;          /* SEQPACKET: attach requests go here */
    uint64_t control_inode;  /* of that socket: what has the number now may be another file */
    int doorbell_fd;         /* eventfd: "look at the table" */
    const int *wake_fds;     /* eventfd of each process slot, DBP_PROCS_MAX entries of which n_wake_fds are made */
    uint32_t n_wake_fds;
};

struct dbp_client;

/* How this process waits for the broker, in attach, register and fetch below: until fd is readable, at most until
 * deadline_us; fd -1: it only lets time pass. 0, DBP_E_TIMEOUT, DBP_E_INTERRUPTED (which the caller of those is
 * answered), -errno. Called in the thread that asks, with no lock of core's held; it may run others of this thread's
 * greenlets, which ask too. NULL, as in the beginning: poll(2). Forked children inherit it. */
typedef int (*dbp_wait_fn)(int fd, uint64_t deadline_us);
void dbp_set_wait(dbp_wait_fn wait);
int dbp_wait_as_told(int fd, uint64_t deadline_us) DBP_MUST_USE; /* by it */

/* Attaches this process: sends one end of a private channel to the broker and waits for its slot.
 * label names the process in errors and logs ("worker 3"). Any thread, once per process and again in a forked child.
 * The broker may not run yet (workers are forked before it): waits until deadline_us, also for a slot, which a process
 * gives up that holds nothing and waits for nothing. That one attaches anew at its next dbp_client_register.
 * 0, DBP_E_TIMEOUT, DBP_E_INTERRUPTED, DBP_E_FULL (no slot), -EBADF (this process has closed the pool's fds), -errno.
 * The client lives as long as the process; a forked child of this process finds it marked foreign: every call answers
 * DBP_E_CLOSED, its inherited session fds are closed. */
int dbp_client_attach(const struct dbp_share *share, const char *label, uint64_t deadline_us,
                      struct dbp_client **clientp) DBP_MUST_USE;

/* The same for the host's own processes (workers and their kin), each of which has a slot that is kept for it. place:
 * 1 to dbp_broker_ops.n_own - 1, another one for each of them that runs; its next process has the same, and takes over
 * from one that is dead. 0, and where the process of that place is alive still: any slot, as above. */
int dbp_client_attach_own(const struct dbp_share *share, const char *label, uint32_t place, uint64_t deadline_us,
                          struct dbp_client **clientp) DBP_MUST_USE;

/* Registers (or finds) the pool of spec's alias and identity and gives it spec's policy and password. With another
 * identity than the alias had, it is another pool, and the one before goes when no process that registered it is left.
 * A client whose channel is gone (DBP_E_CLOSED from acquire, while the broker runs) attaches anew in it; its leases of
 * before are over (DBP_E_STALE). Where there are DBP_POOLS_MAX pools, the one that was used longest ago and has neither
 * a lease nor a waiter makes room. *poolp names this very pool: one that has made room is DBP_E_INVALID from then on,
 * also when its place is another's, until it is registered again. spec is not kept. Any thread. 0; DBP_E_INVALID,
 * DBP_E_FULL with errbuf (errlen bytes) naming the field, never its secret; DBP_E_TIMEOUT, DBP_E_INTERRUPTED,
 * DBP_E_CLOSED. */
int dbp_client_register(struct dbp_client *client, const struct dbp_pool_spec *spec, uint64_t deadline_us, char *errbuf,
                        size_t errlen, uint32_t *poolp) DBP_MUST_USE;

/* Takes an idle session if there is one and nobody waits for it (a newcomer never barges past the queue, I4).
 * Atomics only: no lock, no syscall. Any thread. 0, DBP_E_BUSY, DBP_E_CLOSED, DBP_E_INVALID (no such pool: register it,
 * again). */
int dbp_acquire_now(struct dbp_client *client, uint32_t pool, struct dbp_lease *leasep) DBP_MUST_USE;

/* acquire_now, else queue and sleep until granted, failed or deadline_us. Blocks only the calling thread.
 * interrupted (may be NULL) is asked whenever the thread wakes (a signal, or once a second); true ends the wait with
 * DBP_E_INTERRUPTED.
 * 0, DBP_E_TIMEOUT, DBP_E_FAILED, DBP_E_FULL, DBP_E_CLOSED, DBP_E_INVALID, DBP_E_INTERRUPTED. */
int dbp_acquire(struct dbp_client *client, uint32_t pool, uint64_t deadline_us, bool (*interrupted)(void *arg),
                void *arg, struct dbp_lease *leasep) DBP_MUST_USE;

/* The same in parts, for event loops. begin queues; it may be granted at once, so poll before sleeping.
 * 0, DBP_E_FULL, DBP_E_CLOSED, DBP_E_INVALID. */
int dbp_wait_begin(struct dbp_client *client, uint32_t pool, enum dbp_wait_kind kind,
                   struct dbp_wait *waitp) DBP_MUST_USE;
/* 0 with the lease, DBP_E_BUSY (still queued), DBP_E_FAILED, DBP_E_CLOSED, DBP_E_INVALID (ended).
 * Grants are in order of tickets within a pool: an event loop may stop at its first DBP_E_BUSY. */
int dbp_wait_poll(struct dbp_client *client, const struct dbp_wait *wait, struct dbp_lease *leasep) DBP_MUST_USE;
/* Leaves the queue. 0: a session had been granted meanwhile and is the caller's; DBP_E_TIMEOUT: left without one. */
int dbp_wait_cancel(struct dbp_client *client, const struct dbp_wait *wait, struct dbp_lease *leasep) DBP_MUST_USE;
/* Adds to the pool's waiting time; dbp_acquire does it itself, an event loop calls it when its wait ends. */
void dbp_wait_account(struct dbp_client *client, uint32_t pool, uint64_t waited_us);
/* eventfd of this process, written when one of its DBP_WAIT_EVENT waiters was granted or failed; the event loop reads
 * it (8 bytes, it is non-blocking) and then polls. Borrowed. */
int dbp_wait_fd(const struct dbp_client *client);

/* Returns a lease. status is the server status word as the holder last saw it; its DBP_STATUS_KEPT bits come back with
 * the next lease, DBP_STATUS_WROTE is for the broker. Atomics only, unless somebody waits (one wake-up) or the broker
 * has work (one doorbell). Any thread, also a finaliser. 0, DBP_E_STALE (it was not this caller's any more; nothing
 * happened), DBP_E_CLOSED. */
int dbp_release(struct dbp_client *client, const struct dbp_lease *lease, uint16_t status, enum dbp_return how);

/* The status word that the previous holder left. Only for the holder. */
uint16_t dbp_lease_status(const struct dbp_client *client, const struct dbp_lease *lease);
/* True while the lease is this caller's: one load. */
bool dbp_lease_valid(const struct dbp_client *client, const struct dbp_lease *lease);

/* A new fd (CLOEXEC, non-blocking, owned by the caller) of the leased session, and its facts: asked of the broker, one
 * round trip, bounded by deadline_us. The fd is guarded already: dbp_unguard_fd before it is closed. The open file
 * description is shared with other processes: never change its flags or options. Any thread. 0, DBP_E_STALE,
 * DBP_E_TIMEOUT, DBP_E_INTERRUPTED, DBP_E_CLOSED, DBP_E_INVALID (the pool was not registered in this attach of the
 * process), -EMFILE (this process has as many files open as it may; the lease and the session are as they were),
 * -errno. */
int dbp_session_fetch(struct dbp_client *client, const struct dbp_lease *lease, uint64_t deadline_us, int *fdp,
                      struct dbp_session_facts *factsp) DBP_MUST_USE;

/* Tells which fds of this process are session fds, so that a forked child closes them (I11). At most one per (session,
 * fd); guard replaces, unguard forgets. They do not take ownership. */
int dbp_guard_fd(struct dbp_client *client, int fd) DBP_MUST_USE;
void dbp_unguard_fd(struct dbp_client *client, int fd);

/* Puts a dead socket under fd (dup3), so that whatever a driver still writes there goes nowhere. 0 or -errno. */
int dbp_fence_fd(int fd) DBP_MUST_USE;

/* For error texts and tests. holders: at most n entries, most leases first; returns how many there are. */
void dbp_pool_stats(const struct dbp_client *client, uint32_t pool, struct dbp_stats *statsp);
void dbp_pool_error(const struct dbp_client *client, uint32_t pool, struct dbp_error *errorp);
uint32_t dbp_pool_holders(const struct dbp_client *client, uint32_t pool, uint32_t n, struct dbp_holder *holders);

/* ---- replaying a session's login to a stock driver (replay.c) ----
 * A byte machine without any I/O: out first holds the greeting; feed it what the driver writes, send what it leaves in
 * out. It accepts any password, answers OK to `SET NAMES <charset>` and to a `SET autocommit=` that is the session's
 * status already, and refuses all else with an ERR packet whose text says what did not fit (flags that differ from the
 * session's in a bit that matters included). */
struct dbp_replay;
/* session facts are copied; expect names the spec's charset (for SET NAMES), status is what OK packets report. */
int dbp_replay_new(const struct dbp_session_facts *facts, const char *charset, uint16_t status,
                   struct dbp_replay **replayp) DBP_MUST_USE;
struct dbp_replay *dbp_replay_free(struct dbp_replay *replay); /* NULL */
/* Takes n bytes of the driver's. 0, or DBP_E_INVALID once the driver sent what is not MySQL (the machine is then dead).
 */
int dbp_replay_feed(struct dbp_replay *replay, const void *data, size_t n) DBP_MUST_USE;
/* Moves up to max bytes that the driver should read into buf; returns how many. */
size_t dbp_replay_take(struct dbp_replay *replay, void *buf, size_t max);
/* Non-NULL once something did not fit: why, for the error that the driver will raise. Borrowed. */
const char *dbp_replay_refusal(const struct dbp_replay *replay);

/* The same played by a thread on a private abstract unix socket, for drivers that only know how to connect (libmariadb:
 * unix_socket="@..."). start makes the listener and the thread; name gets the socket's name with a leading '@'.
 * Only one connection is taken, only from this process (SO_PEERCRED). stop joins the thread (it ends at the latest at
 * deadline_us) and frees all; refusal (n bytes) gets dbp_replay_refusal's text or "". */
struct dbp_replay_server;
int dbp_replay_server_start(const struct dbp_session_facts *facts, const char *charset, uint16_t status,
                            uint64_t deadline_us, char *name, size_t namelen,
                            struct dbp_replay_server **serverp) DBP_MUST_USE;
int dbp_replay_server_stop(struct dbp_replay_server *server, char *refusal, size_t n);

/* ---- what the host exports to the Python extension: one symbol, `dbpool_api`, found with dlsym(RTLD_DEFAULT) ---- */

struct dbp_api {
    uint32_t version; /* DBP_VERSION: check first */
    uint32_t size;    /* sizeof(struct dbp_api) */
    /* This process's client, attached on first call (any thread). NULL: *whyp says what is wrong, in a user's words (no
     * master, broker not answering, ...), NULL if the wait was interrupted; *before_forkp is true when the cause is
     * that this is the master itself, before its workers are forked: use a private connection then. */
    struct dbp_client *(*client)(const char **whyp, bool *before_forkp);
    /* Before the first call of client(): how it and the functions below wait for the broker. */
    void (*set_wait)(dbp_wait_fn);
    /* For the master before its fork, where client() gives NULL: has the broker make the pool when it starts. The spec
     * is kept in private memory until then, and reported in the log if it is refused. 0, DBP_E_FULL, DBP_E_CLOSED (the
     * broker runs already, or there will be none). */
    int (*announce)(const struct dbp_pool_spec *);
    int (*client_register)(struct dbp_client *, const struct dbp_pool_spec *, uint64_t, char *, size_t, uint32_t *);
    int (*acquire_now)(struct dbp_client *, uint32_t, struct dbp_lease *);
    int (*acquire)(struct dbp_client *, uint32_t, uint64_t, bool (*)(void *), void *, struct dbp_lease *);
    int (*wait_begin)(struct dbp_client *, uint32_t, enum dbp_wait_kind, struct dbp_wait *);
    int (*wait_poll)(struct dbp_client *, const struct dbp_wait *, struct dbp_lease *);
    int (*wait_cancel)(struct dbp_client *, const struct dbp_wait *, struct dbp_lease *);
    void (*wait_account)(struct dbp_client *, uint32_t, uint64_t);
    int (*wait_fd)(const struct dbp_client *);
    int (*release)(struct dbp_client *, const struct dbp_lease *, uint16_t, enum dbp_return);
    uint16_t (*lease_status)(const struct dbp_client *, const struct dbp_lease *);
    bool (*lease_valid)(const struct dbp_client *, const struct dbp_lease *);
    int (*session_fetch)(struct dbp_client *, const struct dbp_lease *, uint64_t, int *, struct dbp_session_facts *);
    int (*guard_fd)(struct dbp_client *, int);
    void (*unguard_fd)(struct dbp_client *, int);
    int (*fence_fd)(int);
    void (*pool_stats)(const struct dbp_client *, uint32_t, struct dbp_stats *);
    void (*pool_error)(const struct dbp_client *, uint32_t, struct dbp_error *);
    uint32_t (*pool_holders)(const struct dbp_client *, uint32_t, uint32_t, struct dbp_holder *);
    int (*replay_new)(const struct dbp_session_facts *, const char *, uint16_t, struct dbp_replay **);
    struct dbp_replay *(*replay_free)(struct dbp_replay *);
    int (*replay_feed)(struct dbp_replay *, const void *, size_t);
    size_t (*replay_take)(struct dbp_replay *, void *, size_t);
    const char *(*replay_refusal)(const struct dbp_replay *);
    int (*replay_server_start)(const struct dbp_session_facts *, const char *, uint16_t, uint64_t, char *, size_t,
                               struct dbp_replay_server **);
    int (*replay_server_stop)(struct dbp_replay_server *, char *, size_t);
};

#endif

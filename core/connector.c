/* SPDX-License-Identifier: MIT
 * The connector: see connector.h. One thread reads the channel and queues jobs, THREADS threads do them with plain
 * blocking calls of libmysqlclient (MariaDB Connector/C), and whoever is done answers.
 *
 * Every login goes through a relay of its own (relay.h), a KILL's too, so that both reach the server in the same way.
 * All waits end: connecting, reading and writing by the pool's connect timeout, the whole job by the relay's deadline,
 * and all of them at once by stop_fd when the broker is gone.
 */
#include "connector.h"

#include "attach.h"
#include "handshake.h"
#include "relay.h"

#include <errmsg.h>
#include <errno.h>
#include <mysql.h>
#include <mysqld_error.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define THREADS 8u
/* A host that does not answer holds a thread for its connect timeout. So one alias has at most LOGINS_OF_ALIAS of them,
 * all logins together leave two threads to kills, and kills of one alias leave one of those to others. */
#define LOGINS_OF_ALIAS 4u
#define LOGINS 6u
#define KILLS_OF_ALIAS 1u
#define JOBS_MAX (4u * DBP_SESSIONS_MAX) /* the broker has one OPEN or KILL per session: more is no broker of ours */
#define SEND_PATIENCE_US 5000000u        /* a broker that reads nothing for so long is not coming back */
#define STATEMENTS_GRACE_US 30000000u    /* for init_sql and facts_sql after the login: they are few and short */

struct job {
    struct job *next;
    union dbp_wire_any msg; /* OPEN or KILL; holds the password: freed by job_free only */
};

struct connector {
    int channel;
    int stop_fd; /* eventfd, readable for good once it is over */
    dbp_log_fn log;
    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t changed;
    struct job *first, **lastp;
    size_t n_jobs;
    const struct job *running[THREADS];
    bool over;
    int rc;                    /* why it is over */
    pthread_mutex_t send_lock; /* one answer at a time; never taken with lock */
};

static void job_free(struct job *job) {
    explicit_bzero(job, sizeof *job);
    free(job);
}

static const struct dbp_pool_spec *spec_of(const struct job *job) {
    return job->msg.head.type == DBP_WIRE_OPEN ? &job->msg.open.spec : &job->msg.kill.spec;
}

static void stop(struct connector *c, int rc) {
    uint64_t one = 1;

    pthread_mutex_lock(&c->lock);
    if (!c->over) {
        c->over = true;
        c->rc = rc;
        if (write(c->stop_fd, &one, sizeof one) < 0 && c->log)
            c->log(DBP_LOG_ERROR, "connector: cannot wake its threads"); /* an eventfd at 0 takes a 1 */
        pthread_cond_broadcast(&c->changed);
    }
    pthread_mutex_unlock(&c->lock);
}

/* ---- talking to a server ---- */

static void set_error(struct dbp_error *errorp, uint32_t code, const char *sqlstate, const char *text) {
    memset(errorp, 0, sizeof *errorp);
    errorp->code = code;
    snprintf(errorp->sqlstate, sizeof errorp->sqlstate, "%s", sqlstate);
    snprintf(errorp->text, sizeof errorp->text, "%s", text);
}

static bool take_error(MYSQL *mysql, struct dbp_error *errorp) {
    uint32_t code = mysql_errno(mysql);

    const char *state = mysql_sqlstate(mysql);

    /* The library leaves 00000, success, beside some errors of its own. */
    set_error(errorp, code ? code : CR_UNKNOWN_ERROR, strcmp(state, "00000") == 0 ? "HY000" : state,
              mysql_error(mysql));
    return false;
}

/* A server may ask any client that has LOCAL_FILES for any file: sessions may have it, this process never answers. */
static int refuse_file_init(void **data, const char *name, void *arg) {
    (void)name;
    (void)arg;
    *data = NULL;
    return 1;
}

static int refuse_file_read(void *data, char *buf, unsigned int n) {
    (void)data;
    (void)buf;
    (void)n;
    return -1;
}

static void refuse_file_end(void *data) {
    (void)data;
}

static int refuse_file_error(void *data, char *text, unsigned int n) {
    (void)data;
    snprintf(text, n, "dbpool: LOAD DATA LOCAL is not for init statements");
    return CR_UNKNOWN_ERROR;
}

static bool set_options(MYSQL *mysql, const struct dbp_pool_spec *spec, bool tcp) {
    unsigned int timeout = spec->connect_timeout_s, protocol = tcp ? MYSQL_PROTOCOL_TCP : MYSQL_PROTOCOL_SOCKET;
    unsigned int local_infile = (spec->client_flags & DBP_CAP_LOCAL_FILES) != 0;
    my_bool off = 0;

    /* No MYSQL_READ_DEFAULT_*: nothing of a session comes from files that the workers do not know. */
    return mysql_options(mysql, MYSQL_OPT_CONNECT_TIMEOUT, &timeout) == 0 &&
           mysql_options(mysql, MYSQL_OPT_READ_TIMEOUT, &timeout) == 0 &&
           mysql_options(mysql, MYSQL_OPT_WRITE_TIMEOUT, &timeout) == 0 &&
           mysql_options(mysql, MYSQL_OPT_PROTOCOL, &protocol) == 0 &&
           mysql_options(mysql, MYSQL_OPT_RECONNECT, &off) == 0 &&
           /* The relay offers no TLS; newer libraries insist on it unless told otherwise. */
           mysql_options(mysql, MYSQL_OPT_SSL_VERIFY_SERVER_CERT, &off) == 0 &&
           mysql_options(mysql, MYSQL_OPT_LOCAL_INFILE, &local_infile) == 0 &&
           (!spec->charset[0] || mysql_options(mysql, MYSQL_SET_CHARSET_NAME, spec->charset) == 0) &&
           mysql_optionsv(mysql, MYSQL_OPT_CONNECT_ATTR_ADD, "program_name", "dbpool") == 0;
}

/* Runs a statement and reads all its results, so that the status word is that of the last one. row (may be NULL) sees
 * each row of the first result until it answers false. */
static bool run(MYSQL *mysql, const char *sql, bool (*row)(void *arg, MYSQL_RES *res, MYSQL_ROW values), void *arg,
                struct dbp_error *errorp) {
    int more;

    if (mysql_real_query(mysql, sql, strlen(sql)) != 0)
        return take_error(mysql, errorp);
    do {
        MYSQL_RES *res = mysql_use_result(mysql);
        MYSQL_ROW values;
        while (res && (values = mysql_fetch_row(res)))
            if (row && !row(arg, res, values))
                row = NULL;
        row = NULL;
        if (res)
            mysql_free_result(res);
        if (mysql_errno(mysql) != 0)
            return take_error(mysql, errorp);
    } while ((more = mysql_next_result(mysql)) == 0);
    return more < 0 || take_error(mysql, errorp);
}

/* As run, but a server that does not know the variable is fine: it reports less, that is all. */
static bool run_if_known(MYSQL *mysql, const char *sql, struct dbp_error *errorp) {
    return run(mysql, sql, NULL, NULL, errorp) || errorp->code == ER_UNKNOWN_SYSTEM_VARIABLE;
}

/* Puts a session on its pool's baseline: no transaction, autocommit as configured. */
static bool settle(MYSQL *mysql, const struct dbp_pool_spec *spec, struct dbp_error *errorp) {
    if ((mysql->server_status & DBP_STATUS_IN_TRANS) && !run(mysql, "COMMIT", NULL, NULL, errorp))
        return false;
    if (((mysql->server_status & DBP_STATUS_AUTOCOMMIT) != 0) == (spec->autocommit != 0))
        return true;
    return run(mysql, spec->autocommit ? "SET autocommit=1" : "SET autocommit=0", NULL, NULL, errorp);
}

struct facts_row {
    struct dbp_session_facts *facts;
    bool too_long;
};

static bool keep_row(void *arg, MYSQL_RES *res, MYSQL_ROW values) {
    struct facts_row *keep = arg;
    struct dbp_session_facts *facts = keep->facts;
    const unsigned long *lengths = mysql_fetch_lengths(res);
    unsigned int columns = mysql_num_fields(res);

    for (unsigned int i = 0; i < columns; i++) {
        size_t len = values[i] ? lengths[i] : 0;
        uint16_t head = values[i] ? (uint16_t)len : 0xffffu;
        if (len + sizeof head > sizeof facts->row - facts->row_len) {
            keep->too_long = true;
            return false;
        }
        memcpy(facts->row + facts->row_len, &head, sizeof head);
        if (len > 0)
            memcpy(facts->row + facts->row_len + sizeof head, values[i], len);
        facts->row_len += (uint32_t)(sizeof head + len);
    }
    facts->row_columns = columns;
    return false; /* the first row only */
}

/* All that a new session needs before anyone has it. */
static bool prepare(MYSQL *mysql, const struct dbp_pool_spec *spec, struct dbp_session_facts *facts,
                    struct dbp_error *errorp) {
    struct facts_row keep = {.facts = facts};

    /* State changes are reported by one bit; variables by name would only lengthen replies. */
    if (!run_if_known(mysql, "SET SESSION session_track_state_change=ON", errorp) ||
        !run_if_known(mysql, "SET SESSION session_track_system_variables=''", errorp) || !settle(mysql, spec, errorp))
        return false;
    for (const char *sql = spec->init_sql; sql < spec->init_sql + sizeof spec->init_sql && *sql; sql += strlen(sql) + 1)
        if (!run(mysql, sql, NULL, NULL, errorp))
            return false;
    if (spec->facts_sql[0] && !run(mysql, spec->facts_sql, keep_row, &keep, errorp))
        return false;
    if (keep.too_long) {
        set_error(errorp, CR_UNKNOWN_ERROR, "HY000", "dbpool: the row of facts_sql is longer than a session can carry");
        return false;
    }
    return settle(mysql, spec, errorp);
}

/* ---- jobs ---- */

/* A login in progress; both members go together, the library's handle first. */
struct login {
    MYSQL *mysql;
    struct dbp_relay *relay;
};

static void logout(struct login *l) {
    if (l->mysql) {
        if (l->mysql->passwd)
            explicit_bzero(l->mysql->passwd, strlen(l->mysql->passwd)); /* the library frees it as it is */
        mysql_close(l->mysql);
    }
    dbp_relay_free(l->relay);
    *l = (struct login){NULL, NULL};
}

/* db: NULL for a KILL, which must work after the database was dropped. */
static bool login(const struct connector *c, const struct dbp_pool_spec *spec, const char *db, struct login *l,
                  struct dbp_error *errorp) {
    uint64_t now = dbp_now_us(), timeout_us = (uint64_t)spec->connect_timeout_s * 1000000u;
    struct dbp_relay_route route = {.host = spec->host,
                                    .port = spec->port,
                                    .unix_socket = spec->unix_socket,
                                    .connect_deadline_us = now + timeout_us,
                                    .deadline_us = now + 2 * timeout_us + STATEMENTS_GRACE_US,
                                    .stop_fd = c->stop_fd};
    char text[DBP_TEXT_MAX];

    int rc = dbp_relay_start(&route, errorp, &l->relay);
    if (rc == DBP_E_FAILED)
        return false;
    if (rc != 0) {
        snprintf(text, sizeof text, "dbpool: the connector cannot log in: %s",
                 rc < 0 ? strerrordesc_np(-rc) : "it is being stopped");
        set_error(errorp, CR_UNKNOWN_ERROR, "HY000", text);
        return false;
    }
    const char *path = dbp_relay_socket(l->relay);
    if (!(l->mysql = mysql_init(NULL)) || !set_options(l->mysql, spec, path == NULL)) {
        set_error(errorp, CR_OUT_OF_MEMORY, "HY000", "dbpool: the connector has no memory for a login");
        return false;
    }
    mysql_set_local_infile_handler(l->mysql, refuse_file_init, refuse_file_read, refuse_file_end, refuse_file_error,
                                   NULL);
    if (!mysql_real_connect(l->mysql, path ? NULL : "127.0.0.1", spec->user, spec->password, db,
                            dbp_relay_port(l->relay), path, spec->client_flags))
        return take_error(l->mysql, errorp);
    return true;
}

static bool kill_session(const struct connector *c, const struct dbp_pool_spec *spec, uint32_t connection_id,
                         struct dbp_error *errorp) {
    struct login l = {NULL, NULL};
    char sql[64];

    snprintf(sql, sizeof sql, "KILL CONNECTION %u", connection_id);
    bool done = login(c, spec, NULL, &l, errorp);
    if (done)
        done = run(l.mysql, sql, NULL, NULL, errorp) || errorp->code == ER_NO_SUCH_THREAD;
    logout(&l);
    return done;
}

static bool open_session(const struct connector *c, const struct dbp_pool_spec *spec, struct dbp_session_facts *facts,
                         int *fdp, struct dbp_error *errorp) {
    struct dbp_relay_session session;
    struct login l = {NULL, NULL};

    memset(facts, 0, sizeof *facts);
    bool done =
        login(c, spec, spec->database[0] ? spec->database : NULL, &l, errorp) && prepare(l.mysql, spec, facts, errorp);
    if (done && dbp_relay_detach(l.relay, mysql_get_socket(l.mysql), &session) != 0) {
        set_error(errorp, CR_UNKNOWN_ERROR, "HY000",
                  "dbpool: the session was lost between its login and its first use");
        done = false;
    }
    if (done) {
        facts->connection_id = (uint32_t)mysql_thread_id(l.mysql);
        facts->capabilities = session.capabilities;
        facts->charset = session.charset;
        facts->status = l.mysql->server_status & DBP_STATUS_LASTING;
        facts->greeting_len = session.greeting_len;
        memcpy(facts->greeting, session.greeting, session.greeting_len);
        *fdp = session.fd;
    }
    uint32_t lost = !done && l.mysql && errorp->code == CR_SERVER_LOST ? (uint32_t)mysql_thread_id(l.mysql) : 0;
    logout(&l);
    /* A statement that took too long goes on at the server, in a session that nobody counts any more (I3). */
    if (lost != 0) {
        struct dbp_error ignored;
        (void)kill_session(c, spec, lost, &ignored);
    }
    return done;
}

/* Sends an answer; the broker's end of the channel may be full for a moment. */
static void answer(struct connector *c, const union dbp_wire_any *msg, int fd) {
    uint64_t deadline = dbp_now_us() + SEND_PATIENCE_US;
    int rc;

    pthread_mutex_lock(&c->send_lock);
    while ((rc = dbp_wire_send(c->channel, msg, fd)) == -EAGAIN && dbp_now_us() < deadline) {
        struct pollfd p = {.fd = c->channel, .events = POLLOUT};
        (void)poll(&p, 1, 100);
    }
    pthread_mutex_unlock(&c->send_lock);
    /* Without the answer the broker would wait for this session for ever; our end of the channel tells it. */
    if (rc != 0)
        stop(c, rc == -EPIPE || rc == -ECONNRESET ? 0 : rc);
}

static void answer_failed(struct connector *c, const union dbp_wire_any *msg, const struct dbp_error *error) {
    union dbp_wire_any reply;

    memset(&reply, 0, sizeof reply);
    if (msg->head.type == DBP_WIRE_OPEN) {
        dbp_wire_head_init(&reply.head, DBP_WIRE_FAILED, msg->head.serial);
        reply.failed.session = msg->open.session;
        reply.failed.incarnation = msg->open.incarnation;
        reply.failed.error = *error;
    } else {
        dbp_wire_head_init(&reply.head, DBP_WIRE_KILLED, msg->head.serial);
        reply.killed.session = msg->kill.session;
        reply.killed.incarnation = msg->kill.incarnation;
        reply.killed.error = *error;
    }
    answer(c, &reply, -1);
}

static void do_job(struct connector *c, const struct job *job) {
    const struct dbp_pool_spec *spec = spec_of(job);
    struct dbp_error error = {0};
    union dbp_wire_any reply;
    int fd = -1;

    if (job->msg.head.type == DBP_WIRE_KILL) {
        if (kill_session(c, spec, job->msg.kill.connection_id, &error))
            error = (struct dbp_error){0}; /* 1094 is a success: it was gone already */
        answer_failed(c, &job->msg, &error);
        return;
    }
    memset(&reply, 0, sizeof reply);
    dbp_wire_head_init(&reply.head, DBP_WIRE_OPENED, job->msg.head.serial);
    reply.opened.session = job->msg.open.session;
    reply.opened.incarnation = job->msg.open.incarnation;
    if (!open_session(c, spec, &reply.opened.facts, &fd, &error)) {
        answer_failed(c, &job->msg, &error);
        return;
    }
    answer(c, &reply, fd);
    close(fd);
}

/* The next job that may run now, taken out of the queue; kills first. Holds the lock. */
static struct job *pick(struct connector *c) {
    struct job **found = NULL;

    for (struct job **at = &c->first; *at; at = &(*at)->next) {
        bool kill = (*at)->msg.head.type == DBP_WIRE_KILL;
        unsigned logins = 0, logins_of_alias = 0, kills_of_alias = 0;
        if (!kill && found)
            continue;
        for (size_t i = 0; i < THREADS; i++) {
            if (!c->running[i])
                continue;
            bool same = strcmp(spec_of(c->running[i])->alias, spec_of(*at)->alias) == 0;
            bool is_kill = c->running[i]->msg.head.type == DBP_WIRE_KILL;
            logins += !is_kill;
            logins_of_alias += !is_kill && same;
            kills_of_alias += is_kill && same;
        }
        if (kill ? kills_of_alias >= KILLS_OF_ALIAS : logins >= LOGINS || logins_of_alias >= LOGINS_OF_ALIAS)
            continue;
        found = at;
        if (kill)
            break;
    }
    if (!found)
        return NULL;
    struct job *job = *found;
    *found = job->next;
    if (c->lastp == &job->next)
        c->lastp = found;
    c->n_jobs--;
    return job;
}

static void *work(void *arg) {
    struct connector *c = arg;

    mysql_thread_init();
    pthread_mutex_lock(&c->lock);
    while (!c->over) {
        struct job *job = pick(c);
        size_t seat = 0;
        if (!job) {
            pthread_cond_wait(&c->changed, &c->lock);
            continue;
        }
        while (c->running[seat]) /* there are as many seats as threads */
            seat++;
        c->running[seat] = job;
        pthread_mutex_unlock(&c->lock);
        do_job(c, job);
        pthread_mutex_lock(&c->lock);
        c->running[seat] = NULL;
        job_free(job);
        pthread_cond_broadcast(&c->changed); /* what its alias has waiting may run now */
    }
    pthread_mutex_unlock(&c->lock);
    mysql_thread_end();
    return NULL;
}

/* ---- the channel ---- */

#define TERMINATED(field) (memchr(field, 0, sizeof(field)) != NULL)

/* The broker checks what it takes from clients; what is copied into C calls here is checked here as well (I10). */
static bool spec_is_sane(const struct dbp_pool_spec *s) {
    return TERMINATED(s->alias) && TERMINATED(s->host) && TERMINATED(s->unix_socket) && TERMINATED(s->user) &&
           TERMINATED(s->password) && TERMINATED(s->database) && TERMINATED(s->charset) && TERMINATED(s->facts_sql) &&
           s->init_sql[sizeof s->init_sql - 1] == 0 && s->port <= 65535 && s->connect_timeout_s >= 1 &&
           s->connect_timeout_s <= 3600;
}

static void enqueue(struct connector *c, const union dbp_wire_any *msg) {
    struct dbp_error error;
    struct job *job = NULL;
    bool queued = false;

    if (!spec_is_sane(msg->head.type == DBP_WIRE_OPEN ? &msg->open.spec : &msg->kill.spec))
        set_error(&error, CR_UNKNOWN_ERROR, "HY000", "dbpool: the pool's specification is damaged");
    else if (!(job = malloc(sizeof *job)))
        set_error(&error, CR_OUT_OF_MEMORY, "HY000", "dbpool: the connector has no memory for a job");
    else {
        job->msg = *msg;
        job->next = NULL;
        pthread_mutex_lock(&c->lock);
        if (c->n_jobs < JOBS_MAX) {
            *c->lastp = job;
            c->lastp = &job->next;
            c->n_jobs++;
            queued = true;
            pthread_cond_broadcast(&c->changed);
        }
        pthread_mutex_unlock(&c->lock);
        if (queued)
            return;
        job_free(job);
        set_error(&error, CR_UNKNOWN_ERROR, "HY000", "dbpool: the connector has too many jobs waiting");
    }
    answer_failed(c, msg, &error);
}

static void serve(struct connector *c) {
    union dbp_wire_any msg;

    for (;;) {
        struct pollfd p[2] = {{.fd = c->channel, .events = POLLIN}, {.fd = c->stop_fd, .events = POLLIN}};
        int fd = -1, rc;

        /* Idle for as long as the broker is: its end of file ends it. */
        if (poll(p, 2, -1) < 0) {
            if (errno == EINTR)
                continue;
            stop(c, -errno);
            return;
        }
        if (p[1].revents)
            return;
        rc = dbp_wire_recv(c->channel, &msg, &fd, NULL);
        if (rc == -EAGAIN)
            continue;
        if (rc < 0) {
            stop(c, rc == -EPIPE ? 0 : rc);
            return;
        }
        if (fd >= 0)
            close(fd);
        if (rc == 0 && (msg.head.type == DBP_WIRE_OPEN || msg.head.type == DBP_WIRE_KILL))
            enqueue(c, &msg);
        else if (c->log)
            c->log(DBP_LOG_WARNING, "connector: a message that is not understood was dropped");
        explicit_bzero(&msg, sizeof msg);
    }
}

int dbp_connector_run(int channel, dbp_log_fn log) {
    struct connector c = {.channel = channel, .stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), .log = log};
    pthread_t threads[THREADS];
    sigset_t all, before;
    size_t n = 0;
    int rc = 0;

    if (c.stop_fd < 0)
        return -errno;
    if (mysql_library_init(0, NULL, NULL) != 0) {
        close(c.stop_fd);
        return -ENOMEM;
    }
    c.lastp = &c.first;
    pthread_mutex_init(&c.lock, NULL);
    pthread_mutex_init(&c.send_lock, NULL);
    pthread_cond_init(&c.changed, NULL);

    sigfillset(&all); /* the host's signals are for the thread that called us */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (n < THREADS && (rc = pthread_create(&threads[n], NULL, work, &c)) == 0)
        n++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc == 0)
        serve(&c);
    else
        stop(&c, -rc);

    while (n > 0)
        pthread_join(threads[--n], NULL); /* stop_fd ends what they wait for; a resolver's own limit may come on top */
    rc = c.rc;
    while (c.first) {
        struct job *job = c.first;
        c.first = job->next;
        job_free(job);
    }
    pthread_cond_destroy(&c.changed);
    pthread_mutex_destroy(&c.send_lock);
    pthread_mutex_destroy(&c.lock);
    mysql_library_end();
    close(c.stop_fd);
    return rc;
}

int dbp_connector_main(const struct dbp_share *share, uint64_t deadline_us, dbp_log_fn log) {
    uint32_t slot;
    int channel;
    int rc = dbp_attach(share, DBP_ROLE_CONNECTOR, "connector", deadline_us, &channel, &slot);

    if (rc != 0)
        return rc;
    rc = dbp_connector_run(channel, log);
    close(channel);
    return rc;
}

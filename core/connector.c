/* SPDX-License-Identifier: MIT
 * The connector: see connector.h. One thread reads the channel and queues jobs, THREADS threads do them with plain
 * blocking calls (login.c), and whoever is done answers.
 *
 * All waits end: connecting, reading and writing by the pool's connect timeout, the whole job by the relay's deadline,
 * and all of them at once by stop_fd when the broker is gone.
 */
#include "connector.h"

#include "attach.h"
#include "janitor.h"
#include "login.h"
#include "table.h"
#include "thread.h"

#include <errmsg.h>
#include <errno.h>
#include <mysql.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define THREADS 8u
/* A host that does not answer holds a thread for its connect timeout. So one alias has at most LOGINS_OF_ALIAS of them,
 * all logins together leave two threads to kills, and kills of one alias leave one of those to others. */
#define LOGINS_OF_ALIAS DBP_LOGINS_AT_ONCE
#define LOGINS 6u
#define KILLS_OF_ALIAS 1u
#define JOBS_MAX \
    ((size_t)4 * DBP_SESSIONS_MAX) /* the broker has one OPEN or KILL per session: more is no broker of ours */
#define SEND_PATIENCE_US 5000000u  /* a broker that reads nothing for so long is not coming back */

struct job {
    struct job *next;
    const struct dbp_table *table;
    union dbp_wire_any msg; /* OPEN or KILL; holds the password: freed by job_free only */
};

struct connector {
    int channel;
    const struct dbp_table *table;
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

/* ---- jobs ---- */

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

/* A KILL may have waited long, for a server that did not answer. Its session's place tells whether it is still to be
 * ended: the broker leaves CLOSING when the server has hung up (as every server that ends does) or it gave up. */
static bool still_closing(void *arg) {
    const struct job *job = arg;
    const struct dbp_session *session = &job->table->sessions[job->msg.kill.session];

    return dbp_word_state(atomic_load(&session->word)) == DBP_CLOSING &&
           atomic_load(&session->incarnation) == job->msg.kill.incarnation;
}

static void do_job(struct connector *c, struct job *job) {
    const struct dbp_pool_spec *spec = spec_of(job);
    struct dbp_error error = {0};
    union dbp_wire_any reply;
    int fd = -1;

    if (job->msg.head.type == DBP_WIRE_KILL) {
        if (!still_closing(job) ||
            dbp_login_kill(spec, c->stop_fd, job->msg.kill.connection_id, still_closing, job, &error))
            error = (struct dbp_error){0}; /* 1094 is a success: it was gone already */
        answer_failed(c, &job->msg, &error);
        return;
    }
    memset(&reply, 0, sizeof reply);
    dbp_wire_head_init(&reply.head, DBP_WIRE_OPENED, job->msg.head.serial);
    reply.opened.session = job->msg.open.session;
    reply.opened.incarnation = job->msg.open.incarnation;
    if (!dbp_login_open(spec, c->stop_fd, &reply.opened.facts, &fd, &error)) {
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

    if (!spec_is_sane(msg->head.type == DBP_WIRE_OPEN ? &msg->open.spec : &msg->kill.spec) ||
        (msg->head.type == DBP_WIRE_KILL && msg->kill.session >= DBP_SESSIONS_MAX))
        dbp_login_error(&error, CR_UNKNOWN_ERROR, "HY000", "dbpool: the pool's specification is damaged");
    else if (!(job = malloc(sizeof *job)))
        dbp_login_error(&error, CR_OUT_OF_MEMORY, "HY000", "dbpool: the connector has no memory for a job");
    else {
        job->msg = *msg;
        job->next = NULL;
        job->table = c->table;
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
        dbp_login_error(&error, CR_UNKNOWN_ERROR, "HY000", "dbpool: the connector has too many jobs waiting");
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

int dbp_connector_run(int channel, const struct dbp_table *table, dbp_log_fn log) {
    struct connector c = {
        .channel = channel, .table = table, .stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), .log = log};
    pthread_t threads[THREADS];
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

    while (n < THREADS && (rc = dbp_thread_start(0, work, &c, &threads[n])) == 0)
        n++;
    if (rc == 0)
        serve(&c);
    else
        stop(&c, rc);

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
    rc = dbp_connector_run(channel, share->table, log);
    close(channel);
    return rc;
}

/* SPDX-License-Identifier: MIT
 * The connector: see connector.h. One thread reads the channel and queues jobs in lanes, further threads do them with
 * plain blocking calls (login.c), and whoever is done answers.
 *
 * A lane is what can fail together: the logins to one address, or the KILLs of one user at one address. A server that
 * does not answer holds the threads of its own lanes for its connect timeout, and never the last ones (LANE_*,
 * *_UNPROVEN). All waits end: connecting, reading and writing by the pool's connect timeout, the whole job by the
 * relay's deadline, and all of them at once by stop_fd when the broker is gone.
 */
#include "connector.h"

#include "attach.h"
#include "janitor.h"
#include "login.h"
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
#include <sys/prctl.h>
#include <unistd.h>

/* Logins of a lane at a time: as many as the broker asks for, and one where the last one failed. */
#define LANE_LOGINS DBP_LOGINS_AT_ONCE
/* Of all lanes together, and of those whose last job failed or that have done none yet: the rest is for servers that
 * are known to answer. Threads are made when they are needed. */
#define LOGINS 96u
#define LOGINS_UNPROVEN 80u
#define KILLERS 48u
#define KILLERS_UNPROVEN 40u
#define THREADS (LOGINS + KILLERS)
#define KILLS_AT_ONCE 64u /* of one lane, over one login */
#define LANES_MAX 1024u   /* kept to know who failed; beyond it lanes without a job are forgotten */
#define JOBS_MAX \
    ((size_t)4 * DBP_SESSIONS_MAX) /* the broker has one OPEN or KILL per session: more is no broker of ours */
#define SEND_PATIENCE_US 5000000u  /* a broker that reads nothing for so long is not coming back */

struct job {
    struct job *next;
    union dbp_wire_any msg; /* OPEN or KILL; holds the password: freed by job_free only */
};

struct lane {
    struct lane *next;
    bool kills;
    bool proven; /* its last job reached the server and was let in */
    bool failed; /* its last job did not */
    unsigned running;
    struct job *first, **lastp;
    struct dbp_endpoint endpoint; /* of kills */
    char address[400];            /* host and port or socket; for kills the user too */
};

struct connector {
    int channel;
    int stop_fd; /* eventfd, readable for good once it is over */
    dbp_log_fn log;
    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t changed;
    struct lane *lanes; /* who was served last stands last */
    size_t n_lanes, n_jobs;
    unsigned logins, killers;                   /* running */
    unsigned logins_unproven, killers_unproven; /* of these, of lanes that were not proven when they began */
    pthread_t threads[THREADS];
    unsigned n_threads, n_busy;
    bool over;
    int rc;                    /* why it is over */
    pthread_mutex_t send_lock; /* one answer at a time; never taken with lock */
};

static void job_free(struct job *job) {
    explicit_bzero(job, sizeof *job);
    free(job);
}

static const struct dbp_pool_spec *spec_of(const union dbp_wire_any *msg) {
    return msg->head.type == DBP_WIRE_OPEN ? &msg->open.spec : &msg->kill.spec;
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

/* ---- answers ---- */

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

/* ---- lanes ---- */

/* False: a name that is cut would stand for another. */
static bool address_of(const union dbp_wire_any *msg, char *text, size_t n) {
    const struct dbp_pool_spec *spec = spec_of(msg);
    bool kill = msg->head.type == DBP_WIRE_KILL;
    int length;

    if (spec->unix_socket[0])
        length = snprintf(text, n, "%s\n%s", spec->unix_socket, kill ? spec->user : "");
    else
        length = snprintf(text, n, "%s:%u\n%s", spec->host[0] ? spec->host : "127.0.0.1",
                          spec->port ? spec->port : 3306u, kill ? spec->user : "");
    return length >= 0 && (size_t)length < n;
}

static bool same_endpoint(const struct dbp_endpoint *a, const struct dbp_endpoint *b) {
    return a->length == b->length && memcmp(a->address, b->address, sizeof a->address) == 0;
}

/* Holds the lock. */
static void forget_lanes(struct connector *c) {
    for (struct lane **at = &c->lanes; *at && c->n_lanes >= LANES_MAX;) {
        struct lane *lane = *at;
        if (lane->first || lane->running > 0) {
            at = &lane->next;
            continue;
        }
        *at = lane->next;
        free(lane);
        c->n_lanes--;
    }
}

/* The lane of a job, made if there is none. NULL: no memory. Holds the lock. */
static struct lane *lane_of(struct connector *c, const union dbp_wire_any *msg) {
    bool kills = msg->head.type == DBP_WIRE_KILL;
    const struct dbp_endpoint none = {0}, *endpoint = kills ? &msg->kill.endpoint : &none;
    char address[sizeof c->lanes->address];
    struct lane **lastp = &c->lanes;

    if (!address_of(msg, address, sizeof address))
        return NULL;
    for (; *lastp; lastp = &(*lastp)->next)
        if ((*lastp)->kills == kills && strcmp((*lastp)->address, address) == 0 &&
            same_endpoint(&(*lastp)->endpoint, endpoint))
            return *lastp;
    if (c->n_lanes >= LANES_MAX) {
        forget_lanes(c);
        for (lastp = &c->lanes; *lastp; lastp = &(*lastp)->next)
            ;
    }
    struct lane *lane = calloc(1, sizeof *lane);
    if (!lane)
        return NULL;
    lane->kills = kills;
    lane->endpoint = *endpoint;
    lane->lastp = &lane->first;
    memcpy(lane->address, address, sizeof address);
    *lastp = lane;
    c->n_lanes++;
    return lane;
}

static struct job *take_job(struct connector *c, struct lane *lane) {
    struct job *job = lane->first;

    if (!job)
        return NULL;
    lane->first = job->next;
    if (!lane->first)
        lane->lastp = &lane->first;
    c->n_jobs--;
    return job;
}

static bool may_run(const struct connector *c, const struct lane *lane) {
    if (!lane->first)
        return false;
    if (lane->kills)
        return lane->running == 0 && c->killers < KILLERS && (lane->proven || c->killers_unproven < KILLERS_UNPROVEN);
    return lane->running < (lane->failed ? 1u : LANE_LOGINS) && c->logins < LOGINS &&
           (lane->proven || c->logins_unproven < LOGINS_UNPROVEN);
}

/* A lane that may run now, kills first; it becomes the last one, so that each gets its turn. Holds the lock. */
static struct lane *pick(struct connector *c) {
    struct lane **found = NULL, **end = &c->lanes;

    for (; *end; end = &(*end)->next)
        if ((!found || ((*end)->kills && !(*found)->kills)) && may_run(c, *end))
            found = end;
    if (!found)
        return NULL;
    struct lane *lane = *found;
    if (lane->next) {
        *found = lane->next;
        lane->next = NULL;
        *end = lane;
    }
    return lane;
}

static bool anything_to_do(const struct connector *c) {
    for (const struct lane *lane = c->lanes; lane; lane = lane->next)
        if (may_run(c, lane))
            return true;
    return false;
}

/* ---- the work ---- */

static bool do_login(struct connector *c, const struct job *job) {
    struct dbp_error error;
    union dbp_wire_any reply;
    int fd = -1;

    memset(&reply, 0, sizeof reply);
    dbp_wire_head_init(&reply.head, DBP_WIRE_OPENED, job->msg.head.serial);
    reply.opened.session = job->msg.open.session;
    reply.opened.incarnation = job->msg.open.incarnation;
    if (!dbp_login_open(&job->msg.open.spec, c->stop_fd, &reply.opened.facts, &reply.opened.endpoint, &fd, &error)) {
        answer_failed(c, &job->msg, &error);
        return false;
    }
    answer(c, &reply, fd);
    close(fd);
    return true;
}

/* Answers them all and frees them. */
static void answer_kills(struct connector *c, struct job **jobs, const struct dbp_error *errors, size_t n) {
    for (size_t i = 0; i < n; i++) {
        answer_failed(c, &jobs[i]->msg, &errors[i]);
        job_free(jobs[i]);
    }
}

static size_t take_kills(struct connector *c, struct lane *lane, struct job **jobs, size_t most) {
    size_t n = 0;

    pthread_mutex_lock(&c->lock);
    while (n < most && (jobs[n] = take_job(c, lane)))
        n++;
    pthread_mutex_unlock(&c->lock);
    return n;
}

/* Those of a server's former life are not said. */
static bool kill_some(struct dbp_killer *killer, struct job **jobs, struct dbp_error *errors, size_t n) {
    struct dbp_kill kills[KILLS_AT_ONCE];
    size_t said[KILLS_AT_ONCE], n_said = 0;

    for (size_t i = 0; i < n; i++) {
        const struct dbp_wire_kill *msg = &jobs[i]->msg.kill;
        if (!dbp_killer_may(killer, msg->opened_us, msg->connection_id, &errors[i]))
            continue;
        said[n_said] = i;
        kills[n_said++] = (struct dbp_kill){.connection_id = msg->connection_id};
    }
    bool done = dbp_killer_run(killer, kills, n_said);
    for (size_t i = 0; i < n_said; i++)
        errors[said[i]] = kills[i].error;
    return done;
}

/* One login serves all KILLs that its lane has, also those that come while it works. */
static bool do_kills(struct connector *c, struct lane *lane, struct job *first) {
    struct job *jobs[KILLS_AT_ONCE] = {first};
    struct dbp_error errors[KILLS_AT_ONCE], error = {0};
    struct dbp_killer *killer = NULL;
    bool done = dbp_killer_login(&first->msg.kill.spec, &lane->endpoint, c->stop_fd, &killer, &error);
    size_t n = 1 + take_kills(c, lane, jobs + 1, KILLS_AT_ONCE - 1);

    for (; n > 0; n = take_kills(c, lane, jobs, KILLS_AT_ONCE)) {
        if (done)
            done = kill_some(killer, jobs, errors, n);
        else
            for (size_t i = 0; i < n; i++)
                errors[i] = error;
        if (!done && error.code == 0)
            error = errors[n - 1]; /* the connection was lost: that is the answer to those that wait */
        answer_kills(c, jobs, errors, n);
    }
    dbp_killer_logout(killer);
    return done;
}

static void *work(void *arg);

/* Holds the lock. Without a thread for it a job waits for one of those that there are. */
static void hire(struct connector *c) {
    if (c->n_busy < c->n_threads || c->n_threads == THREADS || !anything_to_do(c))
        return;
    int rc = dbp_thread_start(0, work, c, &c->threads[c->n_threads]);
    if (rc == 0)
        c->n_threads++;
    else if (c->log && c->n_threads == 0)
        c->log(DBP_LOG_ERROR, "connector: no thread can be started");
}

static void *work(void *arg) {
    struct connector *c = arg;

    mysql_thread_init();
    pthread_mutex_lock(&c->lock);
    while (!c->over) {
        struct lane *lane = pick(c);
        if (!lane) {
            pthread_cond_wait(&c->changed, &c->lock);
            continue;
        }
        struct job *job = take_job(c, lane);
        unsigned unproven = !lane->proven;
        *(lane->kills ? &c->killers : &c->logins) += 1;
        *(lane->kills ? &c->killers_unproven : &c->logins_unproven) += unproven;
        lane->running++;
        c->n_busy++;
        hire(c); /* there may be more to do than there are threads */
        pthread_mutex_unlock(&c->lock);
        bool done = lane->kills ? do_kills(c, lane, job) : do_login(c, job);
        if (!lane->kills)
            job_free(job);
        pthread_mutex_lock(&c->lock);
        lane->proven = done;
        lane->failed = !done;
        *(lane->kills ? &c->killers : &c->logins) -= 1;
        *(lane->kills ? &c->killers_unproven : &c->logins_unproven) -= unproven;
        lane->running--;
        c->n_busy--;
        pthread_cond_broadcast(&c->changed); /* what its lane has waiting may run now */
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

/* NULL, or what is wrong. */
static const char *queue_job(struct connector *c, const union dbp_wire_any *msg) {
    struct job *job = malloc(sizeof *job);
    const char *wrong = NULL;

    if (!job)
        return "dbpool: the connector has no memory for a job";
    job->msg = *msg;
    job->next = NULL;
    pthread_mutex_lock(&c->lock);
    struct lane *lane = lane_of(c, msg);
    if (!lane) {
        wrong = "dbpool: the connector has no room for another server";
    } else if (c->n_jobs >= JOBS_MAX) {
        wrong = "dbpool: the connector has too many jobs waiting";
    } else {
        *lane->lastp = job;
        lane->lastp = &job->next;
        c->n_jobs++;
        hire(c);
        if (c->n_threads == 0)
            wrong = "dbpool: the connector can start no thread";
        else
            pthread_cond_signal(&c->changed);
        if (wrong)
            (void)take_job(c, lane); /* it is the only one: nobody can have taken those before it */
    }
    pthread_mutex_unlock(&c->lock);
    if (wrong)
        job_free(job);
    return wrong;
}

static void enqueue(struct connector *c, const union dbp_wire_any *msg) {
    struct dbp_error error;
    const char *wrong = "dbpool: the pool's specification is damaged";

    if (spec_is_sane(spec_of(msg)))
        wrong = queue_job(c, msg);
    if (!wrong)
        return;
    dbp_login_error(&error, CR_UNKNOWN_ERROR, "HY000", wrong);
    answer_failed(c, msg, &error);
}

static void cancel(struct connector *c, const struct dbp_wire_cancel *msg) {
    struct job *found = NULL;

    pthread_mutex_lock(&c->lock);
    for (struct lane *lane = c->lanes; lane && !found; lane = lane->next)
        for (struct job **at = &lane->first; lane->kills && *at && !found; at = &(*at)->next) {
            if ((*at)->msg.kill.session != msg->session || (*at)->msg.kill.incarnation != msg->incarnation)
                continue;
            found = *at;
            *at = found->next;
            if (!*at)
                lane->lastp = at;
            c->n_jobs--;
            break;
        }
    pthread_mutex_unlock(&c->lock);
    if (found)
        job_free(found);
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
        else if (rc == 0 && msg.head.type == DBP_WIRE_CANCEL)
            cancel(c, &msg.cancel);
        else if (c->log)
            c->log(DBP_LOG_WARNING, "connector: a message that is not understood was dropped");
        explicit_bzero(&msg, sizeof msg);
    }
}

static void forget_everything(struct connector *c) {
    while (c->lanes) {
        struct lane *lane = c->lanes;
        struct job *job;
        while ((job = take_job(c, lane)))
            job_free(job);
        c->lanes = lane->next;
        free(lane);
    }
}

/* This process's memory has passwords: no core dump of it, and no debugger of the same user. */
static void keep_memory_private(void) {
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
}

int dbp_connector_run(int channel, dbp_log_fn log) {
    struct connector c = {.channel = channel, .stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), .log = log};

    if (c.stop_fd < 0)
        return -errno;
    keep_memory_private();
    if (mysql_library_init(0, NULL, NULL) != 0) {
        close(c.stop_fd);
        return -ENOMEM;
    }
    pthread_mutex_init(&c.lock, NULL);
    pthread_mutex_init(&c.send_lock, NULL);
    pthread_cond_init(&c.changed, NULL);

    serve(&c);

    stop(&c, 0); /* it is over already: the threads that end now hire no more */
    for (unsigned i = 0; i < c.n_threads; i++)
        pthread_join(c.threads[i], NULL); /* stop_fd ends what they wait for; a resolver's own limit may come on top */
    forget_everything(&c);
    pthread_cond_destroy(&c.changed);
    pthread_mutex_destroy(&c.send_lock);
    pthread_mutex_destroy(&c.lock);
    mysql_library_end();
    close(c.stop_fd);
    return c.rc;
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

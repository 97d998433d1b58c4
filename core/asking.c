/* SPDX-License-Identifier: MIT
 * Asking the broker: see asking.h.
 *
 * Whenever the lock is free and somebody waits, one of them reads, or has been woken and will: who ends without leaving
 * a reader wakes the next one. Only the reader takes messages from the channel, and wakes those for whom they are.
 */
#include "asking.h"

#include "attach.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define NO_ROOM_US 5000u /* the channel is full: its other end has much to read */

/* On the heap: while a greenlet waits, its stack's place is another's. */
struct dbp_ask {
    struct dbp_ask *next;
    uint32_t serial;
    enum dbp_wire_type type; /* of its answer */
    int wake_fd;             /* eventfd, from the first time on that another one reads; -1 */
    bool done;
    int rc, fd;
    union dbp_wire_any answer;
};

static _Atomic(dbp_wait_fn) wait_fn;

void dbp_set_wait(dbp_wait_fn wait) {
    atomic_store(&wait_fn, wait);
}

int dbp_wait_as_told(int fd, uint64_t deadline_us) {
    dbp_wait_fn wait = atomic_load(&wait_fn);

    return wait ? wait(fd, deadline_us) : dbp_wait_readable(fd, deadline_us);
}

static void wake(const struct dbp_ask *ask) {
    const uint64_t one = 1;

    if (ask->wake_fd >= 0 && write(ask->wake_fd, &one, sizeof one) < 0) {
        /* Full: it was woken often enough. */
    }
}

/* Gives what has come to whom it is for. 0, or what ended the reading. */
static int hand_out(struct dbp_asking *asking, int channel) {
    union dbp_wire_any msg;

    for (;;) {
        int fd = -1, rc = dbp_wire_recv(channel, &msg, &fd, NULL);
        struct dbp_ask *ask = asking->first;

        if (rc == -EAGAIN)
            return 0;
        if (rc != 0 && rc != -EMFILE)
            return rc == -EPIPE || rc == -ECONNRESET || rc == -EBADF ? DBP_E_CLOSED : rc;
        while (ask && (ask->done || ask->serial != msg.head.serial || ask->type != msg.head.type))
            ask = ask->next;
        if (!ask) {
            if (fd >= 0)
                close(fd);
            continue;
        }
        ask->done = true;
        ask->rc = rc != 0 ? rc : (int)msg.head.result;
        ask->fd = fd;
        ask->answer = msg;
        wake(ask);
    }
}

static int wait_unlocked(pthread_mutex_t *lock, int fd, uint64_t deadline_us) {
    pthread_mutex_unlock(lock);
    int rc = dbp_wait_as_told(fd, deadline_us);
    pthread_mutex_lock(lock);
    return rc;
}

static int send_it(pthread_mutex_t *lock, const int *channel, const union dbp_wire_any *msg, uint64_t deadline_us) {
    int rc;

    while ((rc = dbp_wire_send(*channel, msg, -1)) == -EAGAIN) {
        uint64_t now = dbp_now_us(), until = now + NO_ROOM_US;
        if (now >= deadline_us)
            return DBP_E_TIMEOUT;
        rc = wait_unlocked(lock, -1, until < deadline_us ? until : deadline_us);
        if (rc != 0 && rc != DBP_E_TIMEOUT)
            return rc;
    }
    return rc == -EPIPE || rc == -ECONNRESET || rc == -EBADF ? DBP_E_CLOSED : rc;
}

static int wait_to_be_woken(struct dbp_ask *ask, pthread_mutex_t *lock, uint64_t deadline_us) {
    uint64_t count;

    if (ask->wake_fd < 0 && (ask->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) < 0)
        return -errno;
    int rc = wait_unlocked(lock, ask->wake_fd, deadline_us);
    if (rc == 0 && read(ask->wake_fd, &count, sizeof count) < 0) {
        /* Nobody has written: a look does no harm. */
    }
    return rc;
}

static int take_answer(struct dbp_asking *asking, struct dbp_ask *ask, pthread_mutex_t *lock, const int *channel,
                       uint64_t deadline_us) {
    int rc = 0;

    while (rc == 0 && !ask->done) {
        if (asking->reader) {
            rc = wait_to_be_woken(ask, lock, deadline_us);
            continue;
        }
        asking->reader = ask;
        rc = hand_out(asking, *channel);
        if (rc == 0 && !ask->done)
            rc = wait_unlocked(lock, *channel, deadline_us);
        if (asking->reader == ask)
            asking->reader = NULL;
    }
    return rc;
}

static void leave(struct dbp_asking *asking, struct dbp_ask *ask) {
    struct dbp_ask **at = &asking->first;

    while (*at != ask)
        at = &(*at)->next;
    *at = ask->next;
    if (ask->wake_fd >= 0)
        close(ask->wake_fd);
    if (asking->reader)
        return;
    for (ask = asking->first; ask; ask = ask->next)
        if (ask->wake_fd >= 0 && !ask->done) {
            wake(ask);
            return;
        }
}

int dbp_asking(struct dbp_asking *asking, pthread_mutex_t *lock, const int *channel, union dbp_wire_any *msg,
               enum dbp_wire_type answer, uint64_t deadline_us, int *fdp) {
    struct dbp_ask *ask = asking->spare ? asking->spare : malloc(sizeof *ask), **at = &asking->first;

    if (!ask)
        return -ENOMEM;
    asking->spare = NULL;
    ask->next = NULL;
    ask->done = false;
    ask->rc = 0;
    memset(&ask->answer.head, 0, sizeof ask->answer.head); /* of an answer that does not come nobody reads more */
    ask->serial = msg->head.serial = ++asking->serial;
    ask->type = answer;
    ask->wake_fd = ask->fd = -1;
    while (*at)
        at = &(*at)->next;
    *at = ask;
    int rc = send_it(lock, channel, msg, deadline_us);
    if (msg->head.type == DBP_WIRE_REGISTER)
        explicit_bzero(msg, sizeof *msg); /* a password; and a greenlet's stack is copied while it waits */
    memset(&msg->head, 0, sizeof msg->head);
    if (rc == 0)
        rc = take_answer(asking, ask, lock, channel, deadline_us);
    leave(asking, ask);
    if (ask->done && rc != DBP_E_INTERRUPTED) { /* also where it came in the last moment */
        rc = ask->rc;
        *msg = ask->answer;
        *fdp = ask->fd;
    } else if (ask->fd >= 0) {
        close(ask->fd);
    }
    if (asking->spare)
        free(ask);
    else
        asking->spare = ask;
    return rc;
}

void dbp_asking_over(struct dbp_asking *asking) {
    for (struct dbp_ask *ask = asking->first; ask; ask = ask->next)
        if (!ask->done) {
            ask->done = true;
            ask->rc = DBP_E_CLOSED;
            wake(ask);
        }
    asking->reader = NULL; /* what it waits for is gone: it sees that it is done at its deadline at the latest */
}

void dbp_asking_fork_child(struct dbp_asking *asking) {
    for (struct dbp_ask *ask = asking->first; ask; ask = ask->next) {
        if (ask->wake_fd >= 0)
            close(ask->wake_fd);
        if (ask->fd >= 0)
            close(ask->fd);
        ask->wake_fd = ask->fd = -1;
    }
}

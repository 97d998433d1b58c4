/* SPDX-License-Identifier: MIT
 * Ending sessions: politely where the wire is idle, by KILL where it is not, counted against the cap until the server
 * has hung up. See ending.h.
 */
#include "ending.h"

#include "janitor.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#define DRAIN_BYTES 65536u /* read away per event */

void dbp_ending_vacate(struct dbp_keeper *keeper, uint32_t session) {
    struct kept *kept = &keeper->sessions[session];
    uint32_t pool = pool_of(keeper, session);

    if (keeper->fds[session] >= 0) {
        dbp_kept_watch(keeper, session, 0);
        dbp_kept_set_fd(keeper, session, -1);
    }
    kept->ending = kept->resetting = kept->wants_kill = kept->kill_sent = kept->opening_sent = kept->server_gone =
        false;
    kept->kills_failed = 0;
    kept->kill_again_us = 0;
    explicit_bzero(&kept->facts, sizeof kept->facts);
    if (keeper->home[session]) {
        keeper->pools[pool].total--;
        keeper->total--;
    }
    /* OPENING and CLOSING are the broker's alone: if the word says anything else, it was damaged. */
    if (!dbp_kept_move(keeper, session, DBP_CLOSING, DBP_EMPTY, 0) &&
        !dbp_kept_move(keeper, session, DBP_OPENING, DBP_EMPTY, 0))
        dbp_session_force(keeper->table, session, DBP_EMPTY, 0);
    keeper->home[session] = 0;
}

void dbp_ending_done(struct dbp_keeper *keeper, uint32_t session) {
    uint32_t pool = pool_of(keeper, session);

    dbp_ending_vacate(keeper, session);
    add(&keeper->table->pools[pool].count.closed); /* last: who sees it finds the place free */
    dbp_kept_look_again(keeper, pool);
}

void dbp_ending_ask_kill(struct dbp_keeper *keeper, uint32_t session) {
    struct kept *kept = &keeper->sessions[session];
    const struct dbp_pool_spec *spec = dbp_registry_spec(keeper->registry, pool_of(keeper, session));
    union dbp_wire_any msg;

    if (!keeper->connector || !spec)
        return;
    memset(&msg.kill, 0, sizeof msg.kill);
    dbp_wire_head_init(&msg.head, DBP_WIRE_KILL, 0);
    msg.kill.session = session;
    msg.kill.incarnation = atomic_load(&shared(keeper, session)->incarnation);
    msg.kill.connection_id = atomic_load(&shared(keeper, session)->connection_id);
    msg.kill.spec = *spec;
    kept->kill_sent = keeper->ops.to_connector(keeper->ops.arg, &msg) == 0;
    explicit_bzero(&msg, sizeof msg);
    if (kept->kill_sent)
        add(&keeper->table->pools[pool_of(keeper, session)].count.kills);
}

void dbp_ending_begin(struct dbp_keeper *keeper, uint32_t session) {
    struct kept *kept = &keeper->sessions[session];
    static const uint8_t quit[5] = {1, 0, 0, 0, 1}; /* COM_QUIT */

    if (kept->server_gone) {
        dbp_ending_done(keeper, session);
        return;
    }
    kept->resetting = false;
    kept->ending = true;
    kept->deadline_us = dbp_now_us() + DBP_END_MOST_US;
    kept->wants_kill = dbp_word_owner(word_of(keeper, session)) != 0;
    /* An idle wire takes COM_QUIT: the server leaves at once and counts no aborted client. */
    if (!kept->wants_kill &&
        send(keeper->fds[session], quit, sizeof quit, MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)sizeof quit)
        kept->wants_kill = true;
    /* Whoever still has a copy of the fd can write no more. It does not wake a server that is busy with a query: that
     * takes a KILL. */
    shutdown(keeper->fds[session], SHUT_WR);
    dbp_kept_watch(keeper, session, EPOLLIN | EPOLLRDHUP);
    if (kept->wants_kill)
        dbp_ending_ask_kill(keeper, session);
}

void dbp_ending_unfit(struct dbp_keeper *keeper, uint32_t session) {
    atomic_store(&shared(keeper, session)->unfit, DBP_UNFIT);
    dbp_word word = word_of(keeper, session);
    if ((dbp_word_state(word) == DBP_IDLE || dbp_word_state(word) == DBP_RESETTING) &&
        dbp_session_move(keeper->table, session, word, DBP_CLOSING, dbp_word_state(word) == DBP_RESETTING, NULL))
        dbp_ending_begin(keeper, session);
}

bool dbp_ending_drained(int fd) {
    static uint8_t scratch[4096];

    for (size_t n = 0; n < DRAIN_BYTES; n += sizeof scratch) {
        ssize_t got = recv(fd, scratch, sizeof scratch, MSG_DONTWAIT);
        if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR))
            return true;
        if (got < 0)
            return false;
    }
    return false;
}

void dbp_ending_killed(struct dbp_keeper *keeper, const struct dbp_wire_killed *msg) {
    if (msg->error.code == 0 || msg->session >= DBP_SESSIONS_MAX)
        return; /* the server's end of file says the rest */
    struct kept *kept = &keeper->sessions[msg->session];
    if (!kept->ending || atomic_load(&shared(keeper, msg->session)->incarnation) != msg->incarnation)
        return;
    if (kept->kills_failed++ == 0)
        dbp_kept_say(keeper, DBP_LOG_WARNING, "pool '%s': KILL %u failed: (%u) %.*s",
                     alias_of(keeper, pool_of(keeper, msg->session)),
                     atomic_load(&shared(keeper, msg->session)->connection_id), msg->error.code,
                     (int)sizeof msg->error.text - 1, msg->error.text);
    kept->kill_sent = false; /* the tick asks again, until the session's deadline */
    kept->kill_again_us = dbp_now_us() + dbp_janitor_backoff_us(kept->kills_failed);
}

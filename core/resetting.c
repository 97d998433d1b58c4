/* SPDX-License-Identifier: MIT
 * Resetting sessions: drives the byte machine of reset.c over a returned session's wire, off any request's path.
 */
#include "resetting.h"

#include "ending.h"
#include "handoff.h"

#include <errno.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#define ER_XAER_RMFAIL 1399u    /* a statement that may not come in this state of an XA transaction */
#define RESET_MOST_US 30000000u /* a rollback of much work takes long; after this the session is killed instead */

void dbp_resetting_failed(struct dbp_keeper *keeper, uint32_t session, const char *why) {
    dbp_kept_say(keeper, DBP_LOG_WARNING, "pool '%s': session %u could not be reset (%s) and is ended",
                 alias_of(keeper, pool_of(keeper, session)), keeper->sessions[session].facts.connection_id, why);
    if (dbp_kept_move(keeper, session, DBP_RESETTING, DBP_CLOSING, 1))
        dbp_ending_begin(keeper, session, true);
    dbp_kept_look_again(keeper, pool_of(keeper, session)); /* a waiter may have counted on it */
}

void dbp_resetting_introduce(struct dbp_keeper *keeper, uint32_t session) {
    uint32_t pool = pool_of(keeper, session), facts = keeper->sessions[session].facts.status;

    if (keeper->pools[pool].introduced)
        return;
    keeper->pools[pool].introduced = true;
    if (!(facts & DBP_FACT_TRACKED))
        dbp_kept_say(keeper, DBP_LOG_INFO,
                     "pool '%s': this server does not report what changes a session, so reset_on_return 'auto' resets "
                     "after each lease",
                     alias_of(keeper, pool));
    if (facts & DBP_FACT_NO_RESET)
        dbp_kept_say(keeper, DBP_LOG_INFO,
                     "pool '%s': a reset would not lead back to the state after the login (init_connect, a default "
                     "role, or an old server), so changed sessions are replaced",
                     alias_of(keeper, pool));
}

/* Whoever writes and gives back without a commit has most likely forgotten something, and nobody else tells him. */
static void count_undone(struct dbp_keeper *keeper, uint32_t pool) {
    add(&keeper->table->pools[pool].count.undone);
    if (keeper->pools[pool].undone)
        return;
    keeper->pools[pool].undone = true;
    dbp_kept_say(
        keeper, DBP_LOG_WARNING,
        "pool '%s': a lease that has changed rows came back within its transaction, which is rolled back: commit "
        "before the connection is closed, or connect with autocommit on (said once, counted as 'undone')",
        alias_of(keeper, pool));
}

static void go_on_resetting(struct dbp_keeper *keeper, uint32_t session) {
    struct kept *kept = &keeper->sessions[session];
    uint32_t pool = pool_of(keeper, session);
    const struct dbp_pool_spec *spec = dbp_registry_spec(keeper->registry, pool);
    uint8_t packet[DBP_RESET_COMMAND_MAX];
    char why[64];

    if (!spec) {
        dbp_resetting_failed(keeper, session, "its pool is gone");
        return;
    }
    switch (dbp_reset_step(&kept->reset)) {
    case DBP_RESET_SEND: {
        size_t n = dbp_reset_command(&kept->reset, spec, packet);
        if (send(keeper->fds[session], packet, n, MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)n)
            dbp_resetting_failed(keeper, session, "the server does not read");
        return;
    }
    case DBP_RESET_READ:
        return;
    case DBP_RESET_DONE:
        kept->resetting = false;
        atomic_store(&shared(keeper, session)->status, kept->reset.status & DBP_STATUS_KEPT);
        dbp_kept_watch(keeper, session, EPOLLRDHUP);
        if (kept->reset.kind != DBP_RESET_PING)
            add(&keeper->table->pools[pool].count.resets);
        kept->spoke_us = dbp_now_us();
        if (!dbp_kept_move(keeper, session, DBP_RESETTING, DBP_IDLE, 0))
            return; /* somebody wrote over the word: the next tick ends the session */
        dbp_idle_offer(keeper->table, session);
        if (atomic_load(&shared(keeper, session)->unfit)) /* its wire is idle now: it can go politely */
            dbp_ending_unfit(keeper, session);
        else
            dbp_handoff_match(&keeper->share, handle_of(keeper, pool));
        dbp_kept_look_again(keeper, pool);
        return;
    case DBP_RESET_FAILED:
        snprintf(why, sizeof why,
                 kept->reset.error == ER_XAER_RMFAIL ? "error %u: it was left in an XA transaction" : "error %u",
                 kept->reset.error);
        dbp_resetting_failed(keeper, session, kept->reset.error ? why : "unexpected answer");
        return;
    }
}

void dbp_resetting_begin(struct dbp_keeper *keeper, uint32_t session) {
    struct kept *kept = &keeper->sessions[session];
    const struct dbp_pool_spec *spec = dbp_registry_spec(keeper->registry, pool_of(keeper, session));
    enum dbp_reset_kind kind = (enum dbp_reset_kind)dbp_word_owner(word_of(keeper, session));
    uint16_t status = (uint16_t)atomic_load(&shared(keeper, session)->status);

    if (kept->server_gone) {
        dbp_ending_unfit(keeper, session);
        return;
    }
    /* A byte that is there before our first command answers one of the holder's: taken for ours it would shift every
     * answer to come (I5). */
    uint8_t early;
    ssize_t n = recv(keeper->fds[session], &early, 1, MSG_PEEK | MSG_DONTWAIT);
    if (n > 0 || (n < 0 && errno != EAGAIN)) {
        dbp_resetting_failed(keeper, session, "an answer was left unread");
        return;
    }
    if ((status & DBP_STATUS_WROTE) && (kind == DBP_RESET_ROLLBACK || kind == DBP_RESET_FULL))
        count_undone(keeper, pool_of(keeper, session));
    if (kind == DBP_RESET_FULL && (kept->facts.status & DBP_FACT_NO_RESET)) {
        if (dbp_kept_move(keeper, session, DBP_RESETTING, DBP_CLOSING, 0))
            dbp_ending_begin(keeper, session, false);
        dbp_kept_look_again(keeper, pool_of(keeper, session));
        return;
    }
    kept->resetting = true;
    kept->deadline_us = dbp_now_us() + RESET_MOST_US;
    dbp_reset_init(&kept->reset, kind, spec && spec->autocommit, status, kept->facts.status, kept->facts.collation);
    dbp_kept_watch(keeper, session, EPOLLIN | EPOLLRDHUP);
    go_on_resetting(keeper, session);
}

void dbp_resetting_answer(struct dbp_keeper *keeper, uint32_t session) {
    struct kept *kept = &keeper->sessions[session];
    const struct dbp_pool_spec *spec = dbp_registry_spec(keeper->registry, pool_of(keeper, session));
    uint8_t data[DBP_RESET_PACKET_MAX];

    ssize_t n = recv(keeper->fds[session], data, sizeof data, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        kept->server_gone = true;
        dbp_ending_unfit(keeper, session);
        return;
    }
    if (spec)
        dbp_reset_feed(&kept->reset, spec, data, (size_t)n);
    go_on_resetting(keeper, session);
}

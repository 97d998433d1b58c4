/* SPDX-License-Identifier: MIT
 * The broker's side of the sessions: see keeper.h. Here: time, events, and the deaths of processes; what is done to a
 * session is in opening.c, ending.c and resetting.c.
 */
#include "keeper.h"

#include "ending.h"
#include "handoff.h"
#include "opening.h"
#include "rationing.h"
#include "resetting.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define TICK_US 1000000u /* sweep and ages: bounds how long a stopped process's half-done work can stay */
#define FIRST_CONNECTOR_MOST_US 5000000u /* it is started with everything else */
#define CONNECTOR_MOST_US \
    3000000u             /* without one, before who needs a login is told: after a harakiri uWSGI sleeps a second */
#define DROPS_LOGGED 64u /* then at powers of two: with more pools than there are places it happens all the time */
#define ROOM_FOR 8u      /* pools, each time that room is made: who needs one place needs the next one soon */
#define REPLACE_EARLY_US 5000000u /* before the end of a lifetime: more than a login takes */

void dbp_keeper_attend(struct dbp_keeper *keeper, uint32_t pool) {
    /* The flag is taken before the look, so that what comes during the look rings again; and at every look, not only
     * when the doorbell rang: a client that died between setting it and ringing would silence all others for good. */
    dbp_attention_take(keeper->table, pool);
    dbp_kept_activate(keeper, pool);
    for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++) {
        struct kept *kept = &keeper->sessions[i];
        dbp_word word = word_of(keeper, i);
        enum dbp_state state = dbp_word_state(word);
        if (!keeper->home[i] || pool_of(keeper, i) != pool ||
            kept->opening_sent) /* no client has anything of a login */
            continue;
        if (state == DBP_CLOSING && !kept->ending)
            dbp_ending_begin(keeper, i, dbp_word_owner(word) != 0);
        else if (state == DBP_RESETTING && !kept->resetting)
            dbp_resetting_begin(keeper, i);
        else if (state == DBP_IDLE && (kept->server_gone || atomic_load(&shared(keeper, i)->unfit)))
            dbp_ending_unfit(keeper, i);
    }
    dbp_opening_tend(keeper, pool);
}

/* ---- time ---- */

static void sooner(uint64_t *nextp, uint64_t when) {
    if (when < *nextp)
        *nextp = when;
}

static void check_age(struct dbp_keeper *keeper, uint32_t session, const struct dbp_pool_spec *spec, uint64_t now,
                      uint64_t *nextp) {
    struct kept *kept = &keeper->sessions[session];
    uint64_t end = kept->expires_us ? kept->expires_us : UINT64_MAX;

    if (atomic_load(&shared(keeper, session)->unfit))
        return;
    if (kept->expires_us) {
        uint64_t life = 1000000ull * spec->max_lifetime_s;
        uint64_t early = end - (life / 10 < REPLACE_EARLY_US ? life / 10 : REPLACE_EARLY_US);
        if (early <= now)
            dbp_opening_replace(keeper, session);
        else
            sooner(nextp, early);
    }
    if (spec->recycle_s > 0)
        sooner(&end, kept->opened_us + 1000000ull * spec->recycle_s);
    if (end <= now)
        dbp_ending_unfit(keeper, session);
    else
        sooner(nextp, end);
}

/* An idle session that has been silent for long is asked whether it is still there, before a firewall forgets it. */
static void check_silence(struct dbp_keeper *keeper, uint32_t session, const struct dbp_pool_spec *spec, uint64_t now,
                          uint64_t *nextp) {
    uint64_t spoke = keeper->sessions[session].spoke_us, returned = dbp_kept_returned_us(keeper, session);
    dbp_word word = word_of(keeper, session);

    if (spec->keepalive_s == 0 || dbp_word_state(word) != DBP_IDLE)
        return;
    uint64_t due = (spoke > returned ? spoke : returned) + 1000000ull * spec->keepalive_s;
    if (due > now)
        sooner(nextp, due);
    else if (dbp_session_move(keeper->table, session, word, DBP_RESETTING, DBP_RESET_PING, NULL))
        dbp_resetting_begin(keeper, session);
}

static void check_deadline(struct dbp_keeper *keeper, uint32_t session, uint64_t now, uint64_t *nextp) {
    struct kept *kept = &keeper->sessions[session];

    if (kept->ending && kept->wants_kill && !kept->kill_sent) {
        if (kept->kill_again_us <= now)
            dbp_ending_ask_kill(keeper, session);
        else
            sooner(nextp, kept->kill_again_us);
    }
    if (kept->deadline_us > now) {
        sooner(nextp, kept->deadline_us);
    } else if (kept->opening_sent) {
        dbp_opening_overdue(keeper, session);
    } else if (kept->ending) {
        dbp_ending_overdue(keeper, session);
        if (kept->ending)
            sooner(nextp, kept->deadline_us);
    } else if (kept->resetting) {
        dbp_resetting_failed(keeper, session, "no answer in time");
    }
}

/* ---- pools that go ---- */

static void drop(struct dbp_keeper *keeper, uint32_t pool) {
    /* Who came too late to hear that it closes, and has not looked again yet. */
    dbp_handoff_fail(&keeper->share, handle_of(keeper, pool), atomic_load(&keeper->table->pools[pool].queue.tail));
    keeper->dropped++;
    if (keeper->dropped <= DROPS_LOGGED || (keeper->dropped & (keeper->dropped - 1)) == 0)
        dbp_kept_say(keeper, DBP_LOG_INFO,
                     dbp_registry_superseded(keeper->registry, pool)
                         ? "pool '%s': the one with the earlier settings is gone"
                         : "pool '%s' is gone: it was not used, and its place is needed",
                     alias_of(keeper, pool));
    dbp_registry_drop(keeper->registry, keeper->table, pool);
    keeper->pools[pool] = (struct kept_pool){.allowance = UINT32_MAX};
    keeper->active[pool / 64u] &= ~((uint64_t)1 << pool % 64u);
    if (keeper->ops.pool_gone)
        keeper->ops.pool_gone(keeper->ops.arg, pool);
}

static bool is_closing(const struct dbp_keeper *keeper, uint32_t pool) {
    return dbp_registry_closing(keeper->registry, pool);
}

/* Nobody comes in any more; idle sessions are ended, leased ones at their return; then it is dropped. Whoever wants it
 * again registers it. */
static void close_pool(struct dbp_keeper *keeper, uint32_t pool) {
    dbp_registry_close(keeper->registry, keeper->table, pool);
    /* First said, then looked: who queues from now on sees it, who has queued before is told. */
    dbp_handoff_fail(&keeper->share, handle_of(keeper, pool), atomic_load(&keeper->table->pools[pool].queue.tail));
    dbp_kept_look_again(keeper, pool);
    dbp_opening_tend(keeper, pool);
    if (keeper->pools[pool].total == 0)
        drop(keeper, pool);
}

static bool may_go(const struct dbp_keeper *keeper, uint32_t pool) {
    return keeper->pools[pool].users == 0 && dbp_registry_superseded(keeper->registry, pool) &&
           !is_closing(keeper, pool);
}

void dbp_keeper_tidy(struct dbp_keeper *keeper) {
    for (uint32_t pool = 0; pool < DBP_POOLS_MAX; pool++)
        if (may_go(keeper, pool))
            close_pool(keeper, pool);
}

/* Who goes first: whom nobody would miss, then who was used longest ago. */
static bool goes_before(const struct dbp_keeper *keeper, uint32_t a, uint32_t b) {
    bool missed_a = keeper->pools[a].users > 0, missed_b = keeper->pools[b].users > 0;
    bool current_a = !dbp_registry_superseded(keeper->registry, a),
         current_b = !dbp_registry_superseded(keeper->registry, b);

    if (missed_a != missed_b)
        return missed_b;
    if (current_a != current_b)
        return current_b;
    return keeper->pools[a].used_us < keeper->pools[b].used_us;
}

int dbp_keeper_make_room(struct dbp_keeper *keeper) {
    bool in_use[DBP_POOLS_MAX] = {false};
    uint32_t closing = 0, gone = 0;

    for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++) {
        enum dbp_state state = dbp_word_state(word_of(keeper, i));
        if (keeper->home[i] && (state == DBP_LEASED || state == DBP_GRANTED))
            in_use[pool_of(keeper, i)] = true;
    }
    for (uint32_t pool = 0; pool < DBP_POOLS_MAX; pool++) {
        closing += is_closing(keeper, pool);
        in_use[pool] = in_use[pool] || !dbp_registry_spec(keeper->registry, pool) || is_closing(keeper, pool) ||
                       dbp_kept_waiting(keeper, pool, 1) > 0;
    }
    while (closing + gone < ROOM_FOR) {
        uint32_t next = DBP_POOLS_MAX;
        for (uint32_t pool = 0; pool < DBP_POOLS_MAX; pool++)
            if (!in_use[pool] && (next == DBP_POOLS_MAX || goes_before(keeper, pool, next)))
                next = pool;
        if (next == DBP_POOLS_MAX)
            break;
        in_use[next] = true;
        close_pool(keeper, next);
        if (is_closing(keeper, next))
            closing++;
        else
            gone++;
    }
    return gone > 0 ? 0 : closing > 0 ? DBP_E_BUSY : DBP_E_FULL;
}

static bool is_attached(const struct dbp_keeper *keeper, uint32_t holder) {
    uint32_t slot = dbp_holder_slot(holder);

    return slot < DBP_PROCS_MAX && keeper->attached[slot] != 0 && keeper->attached[slot] == dbp_holder_attach(holder);
}

static void saw_holder(struct dbp_keeper *keeper, uint32_t holder, uint64_t now) {
    if (is_attached(keeper, holder))
        keeper->seen_us[dbp_holder_slot(holder)] = now;
}

/* What the broker itself has begun or not begun with a session leaves few states for its word. */
static bool possible(const struct dbp_keeper *keeper, uint32_t session, dbp_word word) {
    const struct kept *kept = &keeper->sessions[session];
    enum dbp_state state = dbp_word_state(word);

    if (!keeper->home[session])
        return state == DBP_EMPTY;
    if (atomic_load(&shared(keeper, session)->pool) != handle_of(keeper, pool_of(keeper, session)))
        return false;
    if (kept->opening_sent || kept->ending || kept->resetting)
        return state == (kept->opening_sent ? DBP_OPENING : kept->ending ? DBP_CLOSING : DBP_RESETTING);
    if (state == DBP_LEASED && !is_attached(keeper, dbp_word_owner(word)))
        return false;
    return state < DBP_STATES && state != DBP_EMPTY && state != DBP_OPENING;
}

/* Any process can write anything into the table: what cannot be was written by one that is broken. Nobody knows then
 * who uses the session: it is ended, as if its holder had died. */
static void mend(struct dbp_keeper *keeper, uint32_t session) {
    struct kept *kept = &keeper->sessions[session];

    if (possible(keeper, session, word_of(keeper, session)))
        return;
    keeper->mended++;
    if ((keeper->mended & (keeper->mended - 1)) == 0)
        dbp_kept_say(keeper, DBP_LOG_ERROR,
                     "the shared table is damaged at session slot %u, which is ended (%u so far)", session,
                     keeper->mended);
    if (keeper->home[session])
        atomic_store(&shared(keeper, session)->pool, handle_of(keeper, pool_of(keeper, session)));
    if (kept->opening_sent || !keeper->home[session]) {
        dbp_ending_vacate(keeper, session);
        return;
    }
    dbp_session_force(keeper->table, session, DBP_CLOSING, 1);
    if (!kept->ending)
        dbp_ending_begin(keeper, session, true);
}

/* Where it says yes the pool is looked at in earnest: somebody waits, rang, or wrote where he may not. */
static bool looks_used(const struct dbp_keeper *keeper, uint32_t pool) {
    const struct dbp_pool *p = &keeper->table->pools[pool];

    return dbp_attention(keeper->table, pool) || !dbp_queue_quiet(&p->queue) ||
           atomic_load(&p->count.size) != (int64_t)keeper->pools[pool].total;
}

static void activate_all_in_use(struct dbp_keeper *keeper) {
    for (uint32_t pool = 0; pool < DBP_POOLS_MAX; pool++)
        if (dbp_registry_spec(keeper->registry, pool) && looks_used(keeper, pool))
            dbp_kept_activate(keeper, pool);
}

static void deactivate(struct dbp_keeper *keeper, uint32_t pool) {
    keeper->active[pool / 64u] &= ~((uint64_t)1 << pool % 64u);
}

static void note_use(struct dbp_keeper *keeper, uint32_t pool, uint64_t now) {
    int64_t acquires = dbp_pool_acquires(keeper->table, pool);

    if (acquires != keeper->pools[pool].acquires)
        keeper->pools[pool].used_us = now;
    keeper->pools[pool].acquires = acquires;
}

uint64_t dbp_keeper_tick(struct dbp_keeper *keeper) {
    uint64_t now = dbp_now_us();
    bool sweep = now >= keeper->next_tick_us;

    if (sweep) {
        keeper->next_tick_us = now + TICK_US;
        dbp_registry_mend(keeper->registry, keeper->table);
        for (uint32_t slot = 0; slot < DBP_PROCS_MAX; slot++)
            if (atomic_load(&keeper->table->procs[slot].attached) != keeper->attached[slot])
                dbp_keeper_attached(keeper, slot, keeper->attached[slot]); /* overwritten */
        activate_all_in_use(keeper);
    }
    uint64_t next = keeper->next_tick_us;
    if (!keeper->connector && !keeper->stopping) {
        if (now < keeper->connector_due_us)
            sooner(&next, keeper->connector_due_us);
        else if (now >= keeper->connector_missed_us + CONNECTOR_MOST_US) {
            keeper->connector_missed_us = now;
            for (uint32_t pool = 0; (pool = dbp_kept_active(keeper, pool)) < DBP_POOLS_MAX; pool++)
                dbp_kept_look_again(keeper, pool);
        }
    }
    for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++) {
        mend(keeper, i);
        enum dbp_state state = dbp_word_state(word_of(keeper, i));
        if (state == DBP_EMPTY)
            continue;
        if (sweep && state == DBP_LEASED) {
            saw_holder(keeper, dbp_word_owner(word_of(keeper, i)), now);
            keeper->pools[pool_of(keeper, i)].used_us = now;
        }
        const struct dbp_pool_spec *spec = dbp_registry_spec(keeper->registry, pool_of(keeper, i));
        if (keeper->sessions[i].ending || keeper->sessions[i].resetting || keeper->sessions[i].opening_sent)
            check_deadline(keeper, i, now, &next);
        else if (spec && state != DBP_CLOSING) {
            check_age(keeper, i, spec, now, &next);
            check_silence(keeper, i, spec, now, &next);
        }
    }
    sooner(&next, dbp_rationing_look(keeper));
    for (uint32_t pool = 0; (pool = dbp_kept_active(keeper, pool)) < DBP_POOLS_MAX; pool++) {
        struct kept_pool *kp = &keeper->pools[pool];
        if (!dbp_registry_spec(keeper->registry, pool)) {
            deactivate(keeper, pool);
            continue;
        }
        if (sweep) {
            uint32_t handle = handle_of(keeper, pool);
            dbp_handoff_bury_strangers(&keeper->share, handle, keeper->attached);
            dbp_handoff_sweep(&keeper->share, handle);
            dbp_table_recount(keeper->table, pool);
            dbp_keeper_attend(keeper, pool);
            note_use(keeper, pool, now);
        } else if (kp->look_again || (kp->wake_at_us && kp->wake_at_us <= now)) {
            dbp_opening_tend(keeper, pool);
        }
        dbp_pool_sum_up(keeper->table, pool);
        if (kp->total == 0 && is_closing(keeper, pool))
            drop(keeper, pool);
        else if (kp->look_again) /* it ended one that was gone already: there is room for another */
            next = now;
        else if (kp->wake_at_us)
            sooner(&next, kp->wake_at_us);
        else if (sweep && kp->total == 0 && !looks_used(keeper, pool)) /* not before it was looked at in earnest */
            deactivate(keeper, pool);
    }
    if (keeper->refused)
        sooner(&next, keeper->ration_at_us);
    return next;
}

uint32_t dbp_keeper_incarnation(const struct dbp_keeper *keeper, uint32_t session) {
    return keeper->sessions[session].incarnation;
}

void dbp_keeper_event(struct dbp_keeper *keeper, uint32_t session, uint32_t events) {
    struct kept *kept = &keeper->sessions[session];

    if (keeper->fds[session] < 0)
        return;
    if (kept->resetting && (events & EPOLLIN)) {
        dbp_resetting_answer(keeper, session);
        return;
    }
    if (kept->ending) {
        if (dbp_ending_drained(keeper->fds[session]))
            dbp_ending_done(keeper, session);
        return;
    }
    if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) {
        /* Level-triggered and for good: left armed it would fire for ever. */
        dbp_kept_watch(keeper, session, 0);
        kept->server_gone = true;
        dbp_ending_unfit(keeper, session);
    }
}

/* ---- processes ---- */

void dbp_keeper_connector_lost(struct dbp_keeper *keeper) {
    uint64_t now = dbp_now_us();
    uint32_t logins = 0;

    keeper->connector = false;
    keeper->connector_due_us = now + CONNECTOR_MOST_US;
    for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++)
        logins += keeper->sessions[i].opening_sent;
    for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++) {
        struct kept *kept = &keeper->sessions[i];
        if (kept->kill_sent && !kept->kill_done) {
            kept->kill_sent = false;
            kept->kill_again_us = now + dbp_janitor_backoff_us(++kept->kills_failed, false);
        }
        if (kept->opening_sent)
            dbp_opening_crashed(keeper, i, logins == 1);
    }
}

void dbp_keeper_connector_ready(struct dbp_keeper *keeper) {
    keeper->connector = true;
    for (uint32_t pool = 0; pool < DBP_POOLS_MAX; pool++)
        dbp_opening_tend(keeper, pool);
}

/* ---- the end ---- */

void dbp_keeper_end_all(struct dbp_keeper *keeper) {
    keeper->stopping = true;
    for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++) {
        dbp_word word = word_of(keeper, i);
        enum dbp_state state = dbp_word_state(word);
        if (!keeper->home[i] || keeper->sessions[i].ending || keeper->fds[i] < 0)
            continue;
        /* A holder that is still there may return it at this moment. */
        for (int tries = 0;
             tries < 8 && !dbp_session_move(keeper->table, i, word, DBP_CLOSING, state != DBP_IDLE, NULL); tries++) {
            word = word_of(keeper, i);
            state = dbp_word_state(word);
        }
        if (dbp_word_state(word_of(keeper, i)) == DBP_CLOSING)
            dbp_ending_begin(keeper, i, state != DBP_IDLE);
    }
}

bool dbp_keeper_kills_pending(const struct dbp_keeper *keeper) {
    for (uint32_t i = 0; keeper->connector && i < DBP_SESSIONS_MAX; i++) {
        const struct kept *kept = &keeper->sessions[i];
        if (kept->ending && kept->wants_kill && !kept->kill_done)
            return true;
    }
    return false;
}

/* ---- processes ---- */

void dbp_keeper_attached(struct dbp_keeper *keeper, uint32_t slot, uint32_t attach) {
    keeper->attached[slot] = attach;
    atomic_store(&keeper->table->procs[slot].attached, attach); /* pairs with the client's look after its acquire */
}

void dbp_keeper_saw(struct dbp_keeper *keeper, uint32_t slot) {
    keeper->seen_us[slot] = dbp_now_us();
}

uint64_t dbp_keeper_seen_us(const struct dbp_keeper *keeper, uint32_t slot) {
    return keeper->seen_us[slot];
}

static void mark_slot(uint64_t *slots, uint32_t slot) {
    if (slot < DBP_PROCS_MAX)
        slots[slot / 64u] |= (uint64_t)1 << slot % 64u;
}

void dbp_keeper_busy(struct dbp_keeper *keeper, uint64_t slots[DBP_PROCS_MAX / 64u]) {
    memset(slots, 0, DBP_PROCS_MAX / 64u * sizeof *slots);
    for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++) {
        dbp_word word = word_of(keeper, i);
        if (!keeper->home[i])
            continue;
        if (dbp_word_state(word) == DBP_LEASED)
            mark_slot(slots, dbp_holder_slot(dbp_word_owner(word)));
        else if (dbp_word_state(word) == DBP_GRANTED) /* its place may lie before the queue's head */
            mark_slot(slots, dbp_place_proc(dbp_queue_look(&keeper->table->pools[pool_of(keeper, i)].queue,
                                                           dbp_word_owner(word))));
    }
    for (uint32_t pool = 0; pool < DBP_POOLS_MAX; pool++) {
        struct dbp_queue *queue = &keeper->table->pools[pool].queue;
        dbp_place place;
        if (!dbp_registry_spec(keeper->registry, pool) || dbp_queue_quiet(queue))
            continue;
        for (uint32_t ticket = atomic_load(&queue->head); dbp_queue_next(queue, &ticket, &place);)
            mark_slot(slots, dbp_place_proc(place));
    }
}

void dbp_keeper_holder_died(struct dbp_keeper *keeper, uint32_t slot) {
    /* Places first: a session granted to one of them then goes back by the sweep instead of being lost. */
    activate_all_in_use(keeper);
    for (uint32_t pool = 0; (pool = dbp_kept_active(keeper, pool)) < DBP_POOLS_MAX; pool++)
        dbp_handoff_bury(&keeper->share, handle_of(keeper, pool), slot);
    for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++) {
        dbp_word word = word_of(keeper, i);
        const struct kept *kept = &keeper->sessions[i];
        if (keeper->home[i] && !kept->opening_sent && !kept->ending && !kept->resetting &&
            dbp_word_state(word) == DBP_LEASED && dbp_holder_slot(dbp_word_owner(word)) == slot &&
            dbp_session_move(keeper->table, i, word, DBP_CLOSING, 1, NULL))
            dbp_ending_begin(keeper, i, true);
    }
    for (uint32_t pool = 0; (pool = dbp_kept_active(keeper, pool)) < DBP_POOLS_MAX; pool++) {
        if (!dbp_registry_spec(keeper->registry, pool))
            continue;
        dbp_handoff_sweep(&keeper->share, handle_of(keeper, pool));
        dbp_table_recount(keeper->table, pool);
        dbp_keeper_attend(keeper, pool);
    }
}

void dbp_keeper_used(struct dbp_keeper *keeper, uint32_t pool) {
    keeper->pools[pool].used_us = dbp_now_us();
}

void dbp_keeper_joined(struct dbp_keeper *keeper, uint32_t pool) {
    keeper->pools[pool].users++;
}

void dbp_keeper_left(struct dbp_keeper *keeper, uint32_t pool) {
    keeper->pools[pool].users--;
    if (may_go(keeper, pool))
        close_pool(keeper, pool);
}

int dbp_keeper_lookup(const struct dbp_keeper *keeper, uint32_t slot, const uint64_t *pools, uint32_t session,
                      uint32_t generation, int *fdp, const struct dbp_session_facts **factsp) {
    if (session >= DBP_SESSIONS_MAX)
        return DBP_E_STALE;
    dbp_word word = word_of(keeper, session);
    if (dbp_word_state(word) != DBP_LEASED || dbp_holder_slot(dbp_word_owner(word)) != slot ||
        !is_attached(keeper, dbp_word_owner(word)) || dbp_word_generation(word) != generation ||
        keeper->fds[session] < 0)
        return DBP_E_STALE;
    if (!(pools[pool_of(keeper, session) / 64u] >> pool_of(keeper, session) % 64u & 1u))
        return DBP_E_INVALID;
    *fdp = keeper->fds[session];
    *factsp = &keeper->sessions[session].facts;
    return 0;
}

/* ---- life ---- */

int dbp_keeper_new(const struct dbp_share *share, struct dbp_registry *registry, const struct dbp_keeper_ops *ops,
                   uint32_t max_sessions, struct dbp_keeper **keeperp) {
    struct dbp_keeper *keeper = calloc(1, sizeof *keeper);
    if (!keeper)
        return -ENOMEM;
    keeper->sessions = calloc(DBP_SESSIONS_MAX, sizeof *keeper->sessions);
    if (!keeper->sessions) {
        free(keeper);
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++)
        keeper->fds[i] = -1;
    for (uint32_t pool = 0; pool < DBP_POOLS_MAX; pool++)
        keeper->pools[pool].allowance = UINT32_MAX;
    keeper->max_sessions = max_sessions;
    keeper->share = *share;
    keeper->table = share->table;
    keeper->registry = registry;
    keeper->ops = *ops;
    keeper->connector_due_us = dbp_now_us() + FIRST_CONNECTOR_MOST_US;
    *keeperp = keeper;
    return 0;
}

struct dbp_keeper *dbp_keeper_free(struct dbp_keeper *keeper) {
    static const uint8_t quit[5] = {1, 0, 0, 0, 1};

    if (!keeper)
        return NULL;
    for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++) {
        if (keeper->fds[i] < 0)
            continue;
        if (dbp_word_state(word_of(keeper, i)) == DBP_IDLE &&
            send(keeper->fds[i], quit, sizeof quit, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
            dbp_kept_say(keeper, DBP_LOG_INFO, "session %u was gone already", i);
        shutdown(keeper->fds[i], SHUT_WR);
        close(keeper->fds[i]);
    }
    free(keeper->sessions);
    free(keeper);
    return NULL;
}

void dbp_keeper_fork_child(struct dbp_keeper *keeper) {
    for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++)
        if (keeper->fds[i] >= 0)
            close(keeper->fds[i]);
}

/* SPDX-License-Identifier: MIT
 * A connector and a MySQL server in one forked child, for tests of the real broker: answers OPEN by one end of a
 * socketpair on whose other end it plays the server, KILL by hanging up. What it does is steered, and what it saw is
 * counted, in shared memory.
 */
#ifndef DBPOOL_TEST_FAKE_CONNECTOR_H
#define DBPOOL_TEST_FAKE_CONNECTOR_H

#include "helpers.h"
#include "share.h"

enum fake_open { FAKE_OPEN_DO, FAKE_OPEN_FAIL, FAKE_OPEN_HOLD, FAKE_OPEN_NO_FD, FAKE_OPEN_BAD_FACTS, FAKE_OPEN_TWICE };
enum fake_kill { FAKE_KILL_DO, FAKE_KILL_FAIL, FAKE_KILL_IGNORE };
enum fake_reset { FAKE_RESET_OK, FAKE_RESET_ERR, FAKE_RESET_SILENT };

/* From this error code on the text is one letter all through, which one says the code: a reader can see if it is torn.
 */
#define FAKE_LONG_TEXT 5000u

struct fake {
    /* written by the test, which then pokes */
    char password[32]; /* not empty: any other one is refused by 1045 */
    _Atomic uint32_t open_mode, kill_mode, reset_mode, fail_code;
    _Atomic uint32_t facts;     /* DBP_FACT_* of sessions that are opened from now on */
    _Atomic uint32_t linger;    /* 1: the server does not hang up after COM_QUIT or an end of file */
    _Atomic uint32_t hang_up;   /* connection id of a session to hang up, 0: none; taken */
    _Atomic uint32_t reconnect; /* 1: close the channel and attach again, as a respawned connector does; taken */
    _Atomic uint32_t away;      /* 1: close the channel and stay away until `reconnect`; 2: it is away */
    _Atomic int32_t stand_in;   /* pid of a process that may be the connector meanwhile (arena.c asks) */
    /* written by the fake */
    _Atomic uint32_t attached;    /* counts */
    _Atomic uint32_t alive, most; /* sessions that the server has, and had at most */
    _Atomic uint32_t opens, held, fails, kills, quits, rollbacks, commits, autocommits, pings, queries;
    _Atomic uint32_t last_killed; /* connection id */
    _Atomic uint32_t cancels;
    _Atomic uint32_t empties, databases, roles, trackings; /* the parts of a full reset */
    _Atomic uint32_t strange;                              /* things that no broker may send */
    int poke_fd;
};

/* Starts it; the child attaches as connector to the broker behind share. */
pid_t fake_start(const struct dbp_share *share, struct fake **fakep);
void fake_poke(const struct fake *fake);

#endif

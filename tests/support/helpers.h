/* SPDX-License-Identifier: MIT
 * What the C tests share: bounded waiting for a condition, children that cannot outlive the test, an fd census, a
 * seeded random source, a pool's specification, and the holder's side of a tiny MySQL dialogue.
 */
#ifndef DBPOOL_TEST_HELPERS_H
#define DBPOOL_TEST_HELPERS_H

#include "dbpool.h"

#include <stdatomic.h>
#include <sys/types.h>

#define WAIT_S                                                                                            \
    20u /* no test waits for longer; a healthy core takes milliseconds, a loaded machine may take seconds \
         */

/* Asks until the answer is true or WAIT_S have passed; false then. */
bool eventually(bool (*condition)(void *arg), void *arg);
/* The same on a counter. */
bool eventually_equal(const _Atomic int64_t *counter, int64_t value);
bool eventually_at_least(const _Atomic uint32_t *counter, uint32_t value);
uint64_t in_seconds(uint32_t seconds); /* a deadline */

/* fork(); the child dies with this process, however that ends. */
pid_t fork_child(void);
/* Kills and reaps what fork_child made and nobody has reaped; returns how many there were. For teardown. */
int reap_all(void);
/* Kills and waits; the wait status. */
int kill_child(pid_t pid);
/* Waits (WAIT_S at most, then kills); the exit code, or -signal. */
int wait_child(pid_t pid);

/* Open fds of a process (0: this one). */
int fd_census(pid_t pid);
bool under_valgrind(void);
/* RLIMIT_NOFILE of this process: at what is open now, or as it was before. 0 or -errno. (valgrind
 * has a table of files of its own: of no use there.) */
int allow_files(bool more);
/* True when the process (0: this one) has an fd of that inode. */
bool has_inode(pid_t pid, ino_t inode);

uint64_t test_seed(void);    /* DBPOOL_SEED, else of the clock; printed once */
uint32_t test_seconds(void); /* DBPOOL_RACE_SECONDS, else 10 */
uint64_t test_random(uint64_t *state);

struct dbp_pool_spec test_spec(const char *alias, uint32_t pool_size, uint32_t max_overflow);

/* Memory that forked children share. */
void *shared_memory(size_t size);

/* The holder's side of a session of the fake server: sends sql, reads one OK. nonce comes back as its insert id.
 * 0, DBP_E_INVALID (an answer, but not to this), -errno, -EPIPE (end of file). */
int session_query(int fd, const char *sql, uint64_t *noncep, uint16_t *statusp);
/* Sends and does not read. */
int session_send(int fd, const char *sql);

/* Log callback: keeps the last text, counts. */
extern _Atomic uint32_t log_lines, log_warnings;
void test_log(enum dbp_log_level level, const char *text);
/* The same for the keeper. */
void test_keeper_log(void *arg, enum dbp_log_level level, const char *text);

#endif

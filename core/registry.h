/* SPDX-License-Identifier: MIT
 * The pools that exist, with their passwords: the broker's private memory, which is kept out of core dumps and is zero
 * in every forked child (I9).
 */
#ifndef DBPOOL_REGISTRY_H
#define DBPOOL_REGISTRY_H

#include "table.h"

struct dbp_registry;

/* 0, -ENOMEM, or what the kernel says when it will not keep memory out of core dumps (MADV_DONTDUMP). */
int dbp_registry_new(struct dbp_registry **registryp) DBP_MUST_USE;
struct dbp_registry *dbp_registry_free(struct dbp_registry *registry); /* wipes; NULL */

/* In a forked child: wipes the passwords where the kernel has not. */
void dbp_registry_fork_child(struct dbp_registry *registry);

/* Finds the pool of this alias and identity or adds it, and publishes it in the table; the policy is taken over (the
 * newest settings win). Another password than it had is a candidate, until a login shows what it is worth. It is the
 * alias's current pool then; one of another identity that the alias had before is superseded. spec comes from outside
 * and is checked here. 0 with *poolp; *changedp says that it was not the current one before, and then text what tells
 * it from the one that was (empty: there was none). DBP_E_INVALID, DBP_E_FULL, each with a text (DBP_TEXT_MAX bytes)
 * that names the field. No text has a secret. */
int dbp_registry_put(struct dbp_registry *registry, struct dbp_table *table, const struct dbp_pool_spec *spec,
                     char *text, uint32_t *poolp, bool *changedp) DBP_MUST_USE;

/* The name by which the table and the processes know the pool, another one for each that lived in its place. */
uint32_t dbp_registry_handle(const struct dbp_registry *registry, uint32_t pool);

/* From now on nobody finds the pool, until it is put again. / Whether that is so. */
void dbp_registry_close(struct dbp_registry *registry, struct dbp_table *table, uint32_t pool);
bool dbp_registry_closing(const struct dbp_registry *registry, uint32_t pool);

/* True when the alias has a newer pool: this one goes when no process uses it any more. */
bool dbp_registry_superseded(const struct dbp_registry *registry, uint32_t pool);

/* Forgets a pool that has no session, no waiter and no process: its place is free. */
void dbp_registry_drop(struct dbp_registry *registry, struct dbp_table *table, uint32_t pool);

/* Writes what the table says of the pools, again should somebody have written over it. */
void dbp_registry_mend(const struct dbp_registry *registry, struct dbp_table *table);

/* Another number whenever a pool became current or got a candidate. */
uint64_t dbp_registry_turn(const struct dbp_registry *registry);
/* Which candidate the pool has: 0 none, else a number that no other one has had. */
uint64_t dbp_registry_candidate(const struct dbp_registry *registry, uint32_t pool);
/* Fills the specification for a login: with the candidate's password, if there is one. Wipe it. */
void dbp_registry_login_spec(const struct dbp_registry *registry, uint32_t pool, struct dbp_pool_spec *specp);
/* The login with this candidate was let in: it is the pool's password now. */
void dbp_registry_candidate_proved(struct dbp_registry *registry, uint32_t pool, uint64_t candidate);
/* Or it was refused: it is forgotten, and the same one is no candidate again before again_us, whoever says it. False,
 * and nothing is done, when the pool has another candidate now, or none. */
bool dbp_registry_candidate_refused(struct dbp_registry *registry, uint32_t pool, uint64_t candidate,
                                    uint64_t again_us);

/* Borrowed; NULL for a pool that is not there. Its password is the one that is known to work, or was said first. */
const struct dbp_pool_spec *dbp_registry_spec(const struct dbp_registry *registry, uint32_t pool);

#endif

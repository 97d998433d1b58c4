/* SPDX-License-Identifier: MIT
 * The pools that exist, with their passwords: the broker's private memory, which is kept out of core dumps and is zero
 * in every forked child (I9).
 */
#ifndef DBPOOL_REGISTRY_H
#define DBPOOL_REGISTRY_H

#include "table.h"

struct dbp_registry;

int dbp_registry_new(struct dbp_registry **registryp) DBP_MUST_USE;
struct dbp_registry *dbp_registry_free(struct dbp_registry *registry); /* wipes; NULL */

/* Finds spec->alias or adds it, and publishes it in the table. The first spec fixes the identity; policy and password
 * are taken over from the latest (the newest settings win). spec comes from outside and is checked here. 0 with *poolp
 * (*addedp: it is new), DBP_E_CONFLICT, DBP_E_INVALID, DBP_E_FULL, each with a text (DBP_TEXT_MAX bytes) that names the
 * field and never a secret. */
int dbp_registry_put(struct dbp_registry *registry, struct dbp_table *table, const struct dbp_pool_spec *spec,
                     char *text, uint32_t *poolp, bool *addedp) DBP_MUST_USE;

/* Writes again what the table says of the pools, should somebody have written over it. */
void dbp_registry_mend(const struct dbp_registry *registry, struct dbp_table *table);

/* Borrowed; NULL for a pool that is not there. */
const struct dbp_pool_spec *dbp_registry_spec(const struct dbp_registry *registry, uint32_t pool);

#endif

/* SPDX-License-Identifier: MIT
 * The registry of pools: see registry.h.
 */
#include "registry.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

struct dbp_registry {
    struct dbp_pool_spec *specs;                                       /* DBP_POOLS_MAX, mapped on their own pages */
    char (*candidates)[sizeof(((struct dbp_pool_spec *)0)->password)]; /* behind them */
    char (*refused)[sizeof(((struct dbp_pool_spec *)0)->password)];    /* and those that were last */
    uint64_t candidate[DBP_POOLS_MAX];                                 /* 0: there is none */
    uint64_t again_us[DBP_POOLS_MAX]; /* before that, the refused one is no candidate; 0: there is none */
    uint64_t since[DBP_POOLS_MAX];    /* turn in which it became its alias's current pool; 0: a free place */
    uint64_t turn;
    bool wiped_by_hand; /* the kernel does not do it (MADV_WIPEONFORK): dbp_registry_fork_child does */
};

#define SPECS_SIZE (DBP_POOLS_MAX * (sizeof(struct dbp_pool_spec) + 2 * sizeof(((struct dbp_pool_spec *)0)->password)))

int dbp_registry_new(struct dbp_registry **registryp) {
    struct dbp_registry *registry = calloc(1, sizeof *registry);
    if (!registry)
        return -ENOMEM;
    registry->specs = mmap(NULL, SPECS_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (registry->specs == MAP_FAILED) {
        free(registry);
        return -ENOMEM;
    }
    registry->candidates = (void *)(registry->specs + DBP_POOLS_MAX);
    registry->refused = registry->candidates + DBP_POOLS_MAX;
    /* Sandboxes that play the kernel refuse this one. */
    registry->wiped_by_hand = madvise(registry->specs, SPECS_SIZE, MADV_WIPEONFORK) != 0;
    /* Without it the pool would work and leak: refuse instead. */
    if (madvise(registry->specs, SPECS_SIZE, MADV_DONTDUMP) != 0) {
        int rc = -errno;
        munmap(registry->specs, SPECS_SIZE);
        free(registry);
        return rc;
    }
    *registryp = registry;
    return 0;
}

struct dbp_registry *dbp_registry_free(struct dbp_registry *registry) {
    if (registry) {
        explicit_bzero(registry->specs, SPECS_SIZE);
        munmap(registry->specs, SPECS_SIZE);
        free(registry);
    }
    return NULL;
}

void dbp_registry_fork_child(struct dbp_registry *registry) {
    if (registry->wiped_by_hand)
        explicit_bzero(registry->specs, SPECS_SIZE);
}

const struct dbp_pool_spec *dbp_registry_spec(const struct dbp_registry *registry, uint32_t pool) {
    return pool < DBP_POOLS_MAX && registry->since[pool] ? &registry->specs[pool] : NULL;
}

/* Every string field, so that none is forgotten in checking or comparing. secret: named, never shown. */
static const struct field {
    const char *name;
    size_t offset, size;
    enum { IDENTITY, SECRET, LIST } kind;
} strings[] = {
#define STRING(name, kind) \
    { #name, offsetof(struct dbp_pool_spec, name), sizeof(((struct dbp_pool_spec *)0)->name), kind }
    STRING(alias, IDENTITY),   STRING(host, IDENTITY),   STRING(unix_socket, IDENTITY),
    STRING(user, IDENTITY),    STRING(password, SECRET), STRING(database, IDENTITY),
    STRING(charset, IDENTITY), STRING(init_sql, LIST),   STRING(facts_sql, IDENTITY),
#undef STRING
};

static const struct number {
    const char *name;
    size_t offset;
    uint32_t least, most;
    bool identity;
} numbers[] = {
#define NUMBER(name, least, most, identity) \
    { #name, offsetof(struct dbp_pool_spec, name), least, most, identity }
    NUMBER(port, 0, 65535, true),
    NUMBER(client_flags, 0, UINT32_MAX, true),
    NUMBER(autocommit, 0, 1, true),
    NUMBER(connect_timeout_s, 1, 3600, false),
    NUMBER(pool_size, 1, DBP_SESSIONS_MAX, false),
    NUMBER(max_overflow, 0, DBP_SESSIONS_MAX, false),
    NUMBER(recycle_s, 0, UINT32_MAX, false),
    NUMBER(max_lifetime_s, 0, UINT32_MAX, false),
    NUMBER(idle_timeout_s, 0, UINT32_MAX, false),
    NUMBER(keepalive_s, 0, UINT32_MAX, false),
    NUMBER(min_size, 0, DBP_SESSIONS_MAX, false),
    NUMBER(core_size, 0, DBP_SESSIONS_MAX, false),
    NUMBER(retire_interval_ms, 0, UINT32_MAX, false),
    NUMBER(retire_quantity, 0, DBP_SESSIONS_MAX, false),
    NUMBER(unload_timeout_ms, 0, UINT32_MAX, false),
    NUMBER(max_waiting, 0, DBP_WAITERS_MAX, false),
    NUMBER(overflow_grace_ms, 0, UINT32_MAX, false),
#undef NUMBER
};

#define COUNT(array) (sizeof(array) / sizeof *(array))

static uint32_t number_of(const struct dbp_pool_spec *spec, const struct number *number) {
    uint32_t value;

    memcpy(&value, (const char *)spec + number->offset, sizeof value);
    return value;
}

static bool check(const struct dbp_pool_spec *spec, char *text) {
    for (size_t i = 0; i < COUNT(strings); i++) {
        const char *value = (const char *)spec + strings[i].offset;
        size_t end = strings[i].size - 1;
        /* The list ends with an empty string: its last two bytes are zero. */
        if (value[end] != '\0' || (strings[i].kind == LIST && value[end - 1] != '\0')) {
            snprintf(text, DBP_TEXT_MAX, "%s is too long: at most %zu bytes", strings[i].name,
                     strings[i].kind == LIST ? end - 1 : end);
            return false;
        }
    }
    for (size_t i = 0; i < COUNT(numbers); i++) {
        uint32_t value = number_of(spec, &numbers[i]);
        if (value < numbers[i].least || value > numbers[i].most) {
            snprintf(text, DBP_TEXT_MAX, "%s is %u: expected %u to %u", numbers[i].name, value, numbers[i].least,
                     numbers[i].most);
            return false;
        }
    }
    if (spec->alias[0] == '\0') {
        snprintf(text, DBP_TEXT_MAX, "alias is empty");
        return false;
    }
    if (spec->pool_size + spec->max_overflow > DBP_SESSIONS_MAX) {
        snprintf(text, DBP_TEXT_MAX, "pool_size + max_overflow is %u: at most %u sessions",
                 spec->pool_size + spec->max_overflow, DBP_SESSIONS_MAX);
        return false;
    }
    if (spec->min_size > spec->pool_size) {
        snprintf(text, DBP_TEXT_MAX, "min_size is %u: at most pool_size, %u", spec->min_size, spec->pool_size);
        return false;
    }
    return true;
}

/* True when both describe the same server, user, database and session state; else text names the first difference. */
static bool same_identity(const struct dbp_pool_spec *old, const struct dbp_pool_spec *new, char *text) {
    for (size_t i = 0; i < COUNT(strings); i++) {
        const char *a = (const char *)old + strings[i].offset, *b = (const char *)new + strings[i].offset;
        if (strings[i].kind == SECRET)
            continue;
        if (strings[i].kind == LIST &&
            memcmp(a, b, strings[i].size) != 0) { /* statements may hold secrets: not shown */
            snprintf(text, DBP_TEXT_MAX, "%s has changed", strings[i].name);
            return false;
        }
        if (strings[i].kind == IDENTITY && strcmp(a, b) != 0) {
            snprintf(text, DBP_TEXT_MAX, "%s was '%.150s', is '%.150s'", strings[i].name, a, b);
            return false;
        }
    }
    for (size_t i = 0; i < COUNT(numbers); i++)
        if (numbers[i].identity && number_of(old, &numbers[i]) != number_of(new, &numbers[i])) {
            snprintf(text, DBP_TEXT_MAX, "%s was %u, is %u", numbers[i].name, number_of(old, &numbers[i]),
                     number_of(new, &numbers[i]));
            return false;
        }
    return true;
}

static void publish(struct dbp_pool *pool, const struct dbp_pool_spec *spec) {
    atomic_store(&pool->ring_above, spec->overflow_grace_ms ? UINT32_MAX : spec->pool_size);
    atomic_store(&pool->max_waiting, spec->max_waiting);
    atomic_store(&pool->count.max, (int64_t)spec->pool_size + spec->max_overflow);
}

/* The alias's current pool, or DBP_POOLS_MAX. */
static uint32_t current(const struct dbp_registry *registry, const char *alias) {
    uint32_t found = DBP_POOLS_MAX;

    for (uint32_t i = 0; i < DBP_POOLS_MAX; i++)
        if (registry->since[i] && strcmp(registry->specs[i].alias, alias) == 0 &&
            (found == DBP_POOLS_MAX || registry->since[i] > registry->since[found]))
            found = i;
    return found;
}

static uint32_t of_identity(const struct dbp_registry *registry, const struct dbp_pool_spec *spec) {
    char difference[DBP_TEXT_MAX];

    for (uint32_t i = 0; i < DBP_POOLS_MAX; i++)
        if (registry->since[i] && same_identity(&registry->specs[i], spec, difference))
            return i;
    return DBP_POOLS_MAX;
}

static uint32_t take_place(const struct dbp_registry *registry, struct dbp_table *table) {
    uint32_t i = 0;

    while (i < DBP_POOLS_MAX && registry->since[i])
        i++;
    if (i == DBP_POOLS_MAX)
        return i;
    struct dbp_pool *pool = &table->pools[i];
    memset(pool, 0, offsetof(struct dbp_pool, queue)); /* what a pool that was here before has left */
    dbp_queue_init(&pool->queue);
    return i;
}

void dbp_registry_mend(const struct dbp_registry *registry, struct dbp_table *table) {
    uint32_t n_pools = 0;

    dbp_table_sign(table);
    for (uint32_t i = 0; i < DBP_POOLS_MAX; i++) {
        struct dbp_pool *pool = &table->pools[i];
        atomic_store(&pool->live, registry->since[i] != 0);
        if (!registry->since[i])
            continue;
        n_pools = i + 1;
        publish(pool, &registry->specs[i]);
        if (memcmp(pool->alias, registry->specs[i].alias, sizeof pool->alias) != 0)
            memcpy(pool->alias, registry->specs[i].alias, sizeof pool->alias);
    }
    atomic_store(&table->n_pools, n_pools);
}

/* One process may have another password than all others, a wrong one: it must not replace what works. */
static void take_over(struct dbp_registry *registry, uint32_t pool, const struct dbp_pool_spec *spec) {
    struct dbp_pool_spec *kept = &registry->specs[pool];
    bool same = strcmp(kept->password, spec->password) == 0;
    char password[sizeof kept->password];

    if (kept->alias[0] == '\0') { /* a new pool */
        *kept = *spec;
        return;
    }
    memcpy(password, kept->password, sizeof password);
    *kept = *spec;
    memcpy(kept->password, password, sizeof password);
    explicit_bzero(password, sizeof password);
    if (same || (registry->candidate[pool] && strcmp(registry->candidates[pool], spec->password) == 0))
        return;
    /* Said again by whoever cannot log in, or by another process: the server counts what it refuses. */
    if (dbp_now_us() < registry->again_us[pool] && strcmp(registry->refused[pool], spec->password) == 0)
        return;
    memcpy(registry->candidates[pool], spec->password, sizeof registry->candidates[pool]);
    registry->candidate[pool] = ++registry->turn;
}

int dbp_registry_put(struct dbp_registry *registry, struct dbp_table *table, const struct dbp_pool_spec *spec,
                     char *text, uint32_t *poolp, bool *changedp) {
    text[0] = '\0';
    if (!check(spec, text))
        return DBP_E_INVALID;
    uint32_t before = current(registry, spec->alias), pool = of_identity(registry, spec);
    if (pool == DBP_POOLS_MAX && (pool = take_place(registry, table)) == DBP_POOLS_MAX) {
        snprintf(text, DBP_TEXT_MAX, "there are %u pools already, which is all that fit", DBP_POOLS_MAX);
        return DBP_E_FULL;
    }
    *changedp = pool != before;
    if (*changedp) {
        registry->since[pool] = ++registry->turn;
        if (before < DBP_POOLS_MAX)
            (void)same_identity(&registry->specs[before], spec, text);
    }
    take_over(registry, pool, spec);
    dbp_registry_mend(registry, table);
    *poolp = pool;
    return 0;
}

uint64_t dbp_registry_turn(const struct dbp_registry *registry) {
    return registry->turn;
}

uint64_t dbp_registry_candidate(const struct dbp_registry *registry, uint32_t pool) {
    return registry->candidate[pool];
}

void dbp_registry_login_spec(const struct dbp_registry *registry, uint32_t pool, struct dbp_pool_spec *specp) {
    *specp = registry->specs[pool];
    if (registry->candidate[pool])
        memcpy(specp->password, registry->candidates[pool], sizeof specp->password);
}

static void forget_candidate(struct dbp_registry *registry, uint32_t pool) {
    registry->candidate[pool] = 0;
    explicit_bzero(registry->candidates[pool], sizeof registry->candidates[pool]);
}

void dbp_registry_candidate_proved(struct dbp_registry *registry, uint32_t pool, uint64_t candidate) {
    if (candidate == 0 || registry->candidate[pool] != candidate)
        return;
    memcpy(registry->specs[pool].password, registry->candidates[pool], sizeof registry->specs[pool].password);
    forget_candidate(registry, pool);
}

bool dbp_registry_candidate_refused(struct dbp_registry *registry, uint32_t pool, uint64_t candidate,
                                    uint64_t again_us) {
    if (candidate == 0 || registry->candidate[pool] != candidate)
        return false;
    memcpy(registry->refused[pool], registry->candidates[pool], sizeof registry->refused[pool]);
    registry->again_us[pool] = again_us;
    forget_candidate(registry, pool);
    return true;
}

bool dbp_registry_superseded(const struct dbp_registry *registry, uint32_t pool) {
    return dbp_registry_spec(registry, pool) && current(registry, registry->specs[pool].alias) != pool;
}

void dbp_registry_drop(struct dbp_registry *registry, struct dbp_table *table, uint32_t pool) {
    registry->since[pool] = 0;
    forget_candidate(registry, pool);
    registry->again_us[pool] = 0;
    explicit_bzero(registry->refused[pool], sizeof registry->refused[pool]);
    explicit_bzero(&registry->specs[pool], sizeof registry->specs[pool]);
    dbp_registry_mend(registry, table);
}

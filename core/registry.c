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
    uint64_t again_us[DBP_POOLS_MAX];   /* before that, the refused one is no candidate; 0: there is none */
    uint64_t since[DBP_POOLS_MAX];      /* turn in which it became its alias's current pool; 0: a free place */
    uint32_t generation[DBP_POOLS_MAX]; /* of handles: how many pools have lived in this place before */
    bool superseded[DBP_POOLS_MAX];     /* the alias has a newer pool */
    bool closing[DBP_POOLS_MAX];        /* nobody comes in any more */
    uint32_t n_places;                  /* that were ever used: the others' memory is left alone */
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

static void wipe(struct dbp_registry *registry) {
    explicit_bzero(registry->specs, registry->n_places * sizeof *registry->specs);
    explicit_bzero(registry->candidates, registry->n_places * sizeof *registry->candidates);
    explicit_bzero(registry->refused, registry->n_places * sizeof *registry->refused);
}

struct dbp_registry *dbp_registry_free(struct dbp_registry *registry) {
    if (registry) {
        wipe(registry);
        munmap(registry->specs, SPECS_SIZE);
        free(registry);
    }
    return NULL;
}

void dbp_registry_fork_child(struct dbp_registry *registry) {
    if (registry->wiped_by_hand)
        wipe(registry);
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

/* What the table says of a pool, or of a free place. */
static void publish(const struct dbp_registry *registry, struct dbp_table *table, uint32_t i) {
    struct dbp_pool *pool = &table->pools[i];
    const struct dbp_pool_spec *spec = &registry->specs[i];
    bool open = registry->since[i] && !registry->closing[i];

    if (registry->since[i]) {
        /* Of one that closes the broker wants to know each return. */
        uint32_t keeps = open && !registry->superseded[i] ? spec->pool_size : 0;
        atomic_store(&pool->ring_above, open && spec->overflow_grace_ms ? UINT32_MAX : keeps);
        atomic_store(&pool->max_waiting, spec->max_waiting);
        atomic_store(&pool->count.max, open ? (int64_t)spec->pool_size + spec->max_overflow : 0);
        if (memcmp(pool->alias, spec->alias, sizeof pool->alias) != 0)
            memcpy(pool->alias, spec->alias, sizeof pool->alias);
    }
    atomic_store(&pool->live, open ? dbp_pool_live(dbp_registry_handle(registry, i)) : 0); /* last */
    if (atomic_load(&table->n_pools) != registry->n_places)
        atomic_store(&table->n_pools, registry->n_places);
}

/* The alias's current pool, or DBP_POOLS_MAX. */
static uint32_t current(const struct dbp_registry *registry, const char *alias) {
    uint32_t found = DBP_POOLS_MAX;

    for (uint32_t i = 0; i < registry->n_places; i++)
        if (registry->since[i] && strcmp(registry->specs[i].alias, alias) == 0 &&
            (found == DBP_POOLS_MAX || registry->since[i] > registry->since[found]))
            found = i;
    return found;
}

static uint32_t of_identity(const struct dbp_registry *registry, const struct dbp_pool_spec *spec) {
    char difference[DBP_TEXT_MAX];

    for (uint32_t i = 0; i < registry->n_places; i++)
        if (registry->since[i] && strcmp(registry->specs[i].alias, spec->alias) == 0 &&
            same_identity(&registry->specs[i], spec, difference))
            return i;
    return DBP_POOLS_MAX;
}

static uint32_t take_place(struct dbp_registry *registry, struct dbp_table *table) {
    uint32_t i = 0;

    while (i < DBP_POOLS_MAX && registry->since[i])
        i++;
    if (i == DBP_POOLS_MAX)
        return i;
    if (i >= registry->n_places) { /* its memory is as the kernel gave it: zeros */
        registry->n_places = i + 1;
        return i;
    }
    /* What a pool that was here before has left, but for the queue: its tickets go on, so that a ticket of before is
     * nobody's. Word by word: somebody who comes too late may read it, or count in it. */
    _Atomic uint64_t *words = (_Atomic uint64_t *)(void *)&table->pools[i];
    for (size_t word = 0; word < offsetof(struct dbp_pool, queue) / sizeof *words; word++)
        atomic_store_explicit(&words[word], 0, memory_order_relaxed);
    dbp_queue_mend(&table->pools[i].queue);
    return i;
}

void dbp_registry_mend(const struct dbp_registry *registry, struct dbp_table *table) {
    dbp_table_sign(table);
    for (uint32_t i = 0; i < registry->n_places; i++)
        publish(registry, table, i);
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
        snprintf(text, DBP_TEXT_MAX,
                 "there are %u pools, which is all that fit, and each has a session that is leased or being ended",
                 DBP_POOLS_MAX);
        return DBP_E_FULL;
    }
    *changedp = pool != before;
    if (*changedp) {
        registry->since[pool] = ++registry->turn;
        if (before < DBP_POOLS_MAX) {
            (void)same_identity(&registry->specs[before], spec, text);
            registry->superseded[before] = true;
            publish(registry, table, before);
        }
    }
    registry->superseded[pool] = registry->closing[pool] = false;
    take_over(registry, pool, spec);
    publish(registry, table, pool);
    *poolp = pool;
    return 0;
}

uint32_t dbp_registry_handle(const struct dbp_registry *registry, uint32_t pool) {
    return pool + registry->generation[pool] * DBP_POOLS_MAX;
}

void dbp_registry_close(struct dbp_registry *registry, struct dbp_table *table, uint32_t pool) {
    registry->closing[pool] = true;
    publish(registry, table, pool);
}

bool dbp_registry_closing(const struct dbp_registry *registry, uint32_t pool) {
    return registry->closing[pool];
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
    return dbp_registry_spec(registry, pool) && registry->superseded[pool];
}

void dbp_registry_drop(struct dbp_registry *registry, struct dbp_table *table, uint32_t pool) {
    uint32_t next;

    registry->since[pool] = 0;
    next = current(registry, registry->specs[pool].alias);
    if (next < DBP_POOLS_MAX) /* the newest of those that are left, should it have been the current one */
        registry->superseded[next] = false;
    registry->closing[pool] = registry->superseded[pool] = false;
    registry->generation[pool] = (registry->generation[pool] + 1) % (UINT32_MAX / DBP_POOLS_MAX);
    if (registry->candidate[pool])
        forget_candidate(registry, pool);
    if (registry->again_us[pool])
        explicit_bzero(registry->refused[pool], sizeof registry->refused[pool]);
    registry->again_us[pool] = 0;
    explicit_bzero(&registry->specs[pool], sizeof registry->specs[pool]);
    publish(registry, table, pool);
}

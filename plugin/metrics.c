/* SPDX-License-Identifier: MIT
 * The pools' figures among uWSGI's metrics: see metrics.h.
 *
 * The metrics are made here and not by uwsgi_register_metric(): with metrics-dir that opens a file for each, and exits
 * when it cannot. A pool may be registered at any time, and a full disk must not end the instance for it. So they are
 * in uWSGI's list, and have no file.
 */
#include <uwsgi.h>

#include "metrics.h"

#include <stdatomic.h>
#include <sys/eventfd.h>

#include "../core/table.h"

extern struct uwsgi_server uwsgi;

/* Exported by uWSGI, but not in its header (core/metrics.c). */
void uwsgi_metric_append(struct uwsgi_metric *);

#define NAMES_MOST 100u /* aliases whose names would be the same */

static struct dbp_table *table;
static atomic_bool fresh[DBP_POOLS_MAX]; /* noted, not shown yet */
static int wake_fd = -1;                 /* eventfd in the master's own queue: something was noted */
static void (*rlock)(struct uwsgi_lock_item *);

static const struct {
    const char *name;
    uint8_t type;
    size_t offset;
} metrics[] = {
#define STATE(name, which) \
    { name, UWSGI_METRIC_GAUGE, offsetof(struct dbp_pool_counters, state[which]) }
#define GAUGE(field) \
    { #field, UWSGI_METRIC_GAUGE, offsetof(struct dbp_pool_counters, field) }
#define COUNTER(field) \
    { #field, UWSGI_METRIC_COUNTER, offsetof(struct dbp_pool_counters, field) }
    GAUGE(size),
    GAUGE(max),
    GAUGE(waiting),
    STATE("idle", DBP_IDLE),
    STATE("leased", DBP_LEASED),
    STATE("opening", DBP_OPENING),
    STATE("resetting", DBP_RESETTING),
    STATE("closing", DBP_CLOSING),
    COUNTER(opened),
    COUNTER(closed),
    COUNTER(acquires),
    COUNTER(waits),
    COUNTER(timeouts),
    COUNTER(wait_us),
    COUNTER(failures),
    COUNTER(resets),
    COUNTER(undone),
    COUNTER(kills),
#undef STATE
#undef GAUGE
#undef COUNTER
};
#define N_METRICS (sizeof metrics / sizeof *metrics)

/* Those of one alias, for good: a later pool of the alias shows its figures in the same place. */
struct shown {
    struct shown *next;
    uint32_t place; /* of the alias's current pool; DBP_POOLS_MAX: its place has become another alias's */
    char alias[DBP_ALIAS_MAX], name[DBP_ALIAS_MAX + 8];
    struct uwsgi_metric metric[N_METRICS];
};
static struct shown *all;

/* ---- summing up ---- */

/* What the processes count for themselves has to be summed up before it is read. uWSGI has no hook for that, but it
 * takes this lock before it reads metrics (uwsgi_master_generate_stats), by a table of functions, and we stand in it.
 * Where it did not, the figures would be as the broker sums them up, once a second. */
static void rlock_after_summing_up(struct uwsgi_lock_item *lock) {
    if (lock == uwsgi.metrics_lock && uwsgi.mypid == uwsgi.workers[0].pid)
        for (uint32_t i = 0, n = atomic_load(&table->n_pools); i < n && i < DBP_POOLS_MAX; i++)
            dbp_pool_sum_up(table, i);
    rlock(lock);
}

void metrics_init(struct dbp_table *shared) {
    table = shared;
    uwsgi.has_metrics = 1; /* --stats alone does not ask for them */
    rlock = uwsgi.lock_ops.rlock;
    uwsgi.lock_ops.rlock = rlock_after_summing_up;
}

/* ---- showing ---- */

void metrics_pool_current(void *arg, uint32_t pool) {
    uint64_t one = 1;

    (void)arg;
    atomic_store(&fresh[pool], true);
    if (wake_fd >= 0 && write(wake_fd, &one, sizeof one) < 0)
        return; /* it is awake; and without this it looks within a second */
}

static const struct shown *of_name(const char *name) {
    const struct shown *shown = all;

    while (shown && strcmp(shown->name, name) != 0)
        shown = shown->next;
    return shown;
}

/* uWSGI takes [0-9A-Za-z._-] in a name, and a dot parts it. Two aliases may become the same: the later one has a
 * number. False: there is none left, or somebody else has the name. */
static bool choose_name(struct shown *shown) {
    char first[DBP_ALIAS_MAX + 32];
    size_t n = 0;

    for (; n < DBP_ALIAS_MAX && shown->alias[n]; n++)
        shown->name[n] =
            (char)(isalnum((unsigned char)shown->alias[n]) || strchr("_-", shown->alias[n]) ? shown->alias[n] : '_');
    for (unsigned i = 1; i <= NAMES_MOST; i++) {
        if (i == 1)
            shown->name[n] = '\0';
        else
            snprintf(shown->name + n, sizeof shown->name - n, "-%u", i);
        snprintf(first, sizeof first, "dbpool.%s.%s", shown->name, metrics[0].name);
        if (!of_name(shown->name) && !uwsgi_metric_find_by_name(first))
            return true;
    }
    return false;
}

static struct shown *make(const char *alias) {
    struct shown *shown = calloc(1, sizeof *shown);
    char name[sizeof shown->name + 32];

    if (!shown)
        return NULL;
    memcpy(shown->alias, alias, sizeof shown->alias - 1);
    if (!choose_name(shown)) {
        free(shown);
        return NULL;
    }
    for (size_t i = 0; i < N_METRICS; i++) {
        struct uwsgi_metric *metric = &shown->metric[i];
        snprintf(name, sizeof name, "dbpool.%s.%s", shown->name, metrics[i].name);
        metric->name = strdup(name);
        if (!metric->name) /* what was made before it is lost: there is no memory anyhow */
            return NULL;
        metric->name_len = strlen(metric->name);
        metric->type = metrics[i].type;
        metric->freq = 1;
    }
    return shown;
}

static void point(struct shown *shown, uint32_t place) {
    static struct dbp_pool_counters nothing;
    struct dbp_pool_counters *count = place < DBP_POOLS_MAX ? &table->pools[place].count : &nothing;

    shown->place = place;
    for (size_t i = 0; i < N_METRICS; i++)
        shown->metric[i].value = (int64_t *)(void *)((char *)count + metrics[i].offset);
}

static void show(uint32_t index) {
    struct dbp_pool *pool = &table->pools[index];
    struct shown *shown = all;
    char alias[DBP_ALIAS_MAX];

    memcpy(alias, pool->alias, sizeof alias);
    alias[sizeof alias - 1] = '\0';
    while (shown && strcmp(shown->alias, alias) != 0)
        shown = shown->next;
    bool found = shown != NULL;
    if (!found && !(shown = make(alias))) {
        uwsgi_log_verbose("[dbpool] warning: pool '%s' has no metrics: no memory, or the names are taken\n", alias);
        return;
    }
    for (struct shown *other = all; other; other = other->next)
        if (other != shown && other->place == index)
            point(other, DBP_POOLS_MAX);
    point(shown, index);
    if (found)
        return;
    shown->next = all;
    all = shown;
    if (strcmp(shown->name, alias) != 0)
        uwsgi_log_verbose("[dbpool] the metrics of pool '%s' are dbpool.%s.*\n", alias, shown->name);
    uwsgi_wlock(uwsgi.metrics_lock);
    for (size_t i = 0; i < N_METRICS; i++)
        uwsgi_metric_append(&shown->metric[i]);
    uwsgi_rwunlock(uwsgi.metrics_lock);
}

void metrics_show(void) {
    uint64_t notes;

    if (wake_fd < 0 && (wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) >= 0 &&
        event_queue_add_fd_read(uwsgi.master_queue, wake_fd) != 0)
        uwsgi_log_verbose("[dbpool] warning: new pools show their metrics a second late\n");
    if (wake_fd >= 0 && read(wake_fd, &notes, sizeof notes) < 0 && errno != EAGAIN)
        uwsgi_log_verbose("[dbpool] error: eventfd: %s\n", strerror(errno));
    for (uint32_t i = 0; i < DBP_POOLS_MAX; i++)
        if (atomic_exchange(&fresh[i], false) && uwsgi.has_metrics)
            show(i);
}

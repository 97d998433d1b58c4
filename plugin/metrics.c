/* SPDX-License-Identifier: MIT
 * The pools' figures among uWSGI's metrics: see metrics.h.
 *
 * The metrics are made here and not by uwsgi_register_metric(): with metrics-dir that opens a file for each, and exits
 * when it cannot. A pool may be registered at any time, and a full disk must not end the instance for it. So they are
 * in uWSGI's list, and have no file.
 *
 * uWSGI's list is each process's own. The master's has all pools, for stats, pushers and thresholds; a worker's has
 * those that the master knew when it forked it, and those that it has registered itself, for uwsgi.metric_get().
 */
#include <uwsgi.h>

#include "metrics.h"

#include <pthread.h>
#include <sys/eventfd.h>

#include "../core/table.h"

extern struct uwsgi_server uwsgi;

/* Exported by uWSGI, but not in its header (core/metrics.c). */
void uwsgi_metric_append(struct uwsgi_metric *);

#define NAMES_MOST 100u /* aliases whose names would be the same */

static struct dbp_table *table;
/* What the broker's thread has noted and nobody has shown yet: the alias of each place's pool; "": nothing. Its own
 * word and not the table's, which any process can write. */
static char noted[DBP_POOLS_MAX][DBP_ALIAS_MAX];
static pthread_mutex_t noted_lock = PTHREAD_MUTEX_INITIALIZER; /* master only */
static int wake_fd = -1; /* eventfd in the master's own queue: something was noted */
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
    uint32_t place;            /* of the alias's current pool; DBP_POOLS_MAX: its place has become another alias's */
    char alias[DBP_ALIAS_MAX]; /* "": a threshold asks for the name, and no pool has it yet */
    char name[DBP_ALIAS_MAX + 8];
    struct uwsgi_metric metric[N_METRICS];
};
static struct shown *all;

/* ---- summing up ---- */

/* What the processes count for themselves has to be summed up before it is read. uWSGI has no hook for that, but it
 * takes this lock before it reads metrics (uwsgi_master_generate_stats), by a table of functions, and we stand in it.
 * Where it did not, the figures would be as the broker sums them up, once a second. */
static void rlock_after_summing_up(struct uwsgi_lock_item *lock) {
    if (lock == uwsgi.metrics_lock)
        for (uint32_t i = 0, n = atomic_load(&table->n_pools); i < n && i < DBP_POOLS_MAX; i++)
            dbp_pool_sum_up(table, i);
    rlock(lock);
}

/* ---- showing ---- */

static struct shown *of_name(const char *name) {
    struct shown *shown = all;

    while (shown && strcmp(shown->name, name) != 0)
        shown = shown->next;
    return shown;
}

/* uWSGI takes [0-9A-Za-z._-] in a name, and a dot parts it. */
static void name_of(const char *alias, char name[DBP_ALIAS_MAX]) {
    size_t n = 0;

    for (; n < DBP_ALIAS_MAX - 1 && alias[n]; n++)
        name[n] = (char)(isalnum((unsigned char)alias[n]) || strchr("_-", alias[n]) ? alias[n] : '_');
    name[n] = '\0';
}

/* Two aliases may have the same name: the later one's has a number. False: there is none left, or somebody else has it.
 */
static bool choose_name(struct shown *shown, const char *name) {
    char first[DBP_ALIAS_MAX + 32];

    for (unsigned i = 1; i <= NAMES_MOST; i++) {
        if (i == 1)
            snprintf(shown->name, sizeof shown->name, "%s", name);
        else
            snprintf(shown->name, sizeof shown->name, "%s-%u", name, i);
        snprintf(first, sizeof first, "dbpool.%s.%s", shown->name, metrics[0].name);
        if (!of_name(shown->name) && !uwsgi_metric_find_by_name(first))
            return true;
    }
    return false;
}

static void point(struct shown *shown, uint32_t place) {
    static struct dbp_pool_counters nothing;
    struct dbp_pool_counters *count = place < DBP_POOLS_MAX ? &table->pools[place].count : &nothing;

    shown->place = place;
    for (size_t i = 0; i < N_METRICS; i++)
        shown->metric[i].value = (int64_t *)(void *)((char *)count + metrics[i].offset);
}

/* Into uWSGI's list, which its threads walk meanwhile: each metric is whole before it is in it. */
static struct shown *make(const char *first_name) {
    struct shown *shown = calloc(1, sizeof *shown);
    char name[sizeof shown->name + 32];

    if (!shown || !choose_name(shown, first_name)) {
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
    point(shown, DBP_POOLS_MAX);
    for (size_t i = 0; i < N_METRICS; i++)
        uwsgi_metric_append(&shown->metric[i]);
    shown->next = all;
    all = shown;
    return shown;
}

/* The alias's, which are made should there be none. NULL: no memory, or no name is left. */
static struct shown *of_alias(const char *alias) {
    char name[DBP_ALIAS_MAX];
    struct shown *shown = all;

    while (shown && strcmp(shown->alias, alias) != 0)
        shown = shown->next;
    if (shown)
        return shown;
    name_of(alias, name);
    shown = of_name(name);
    if (!shown || shown->alias[0])
        shown = make(name);
    if (shown)
        snprintf(shown->alias, sizeof shown->alias, "%s", alias);
    return shown;
}

/* False: it has none. */
static bool show(uint32_t place, const char *alias) {
    struct shown *shown = of_alias(alias);

    if (!shown)
        return false;
    for (struct shown *other = all; other; other = other->next)
        if (other != shown && other->place == place)
            point(other, DBP_POOLS_MAX);
    point(shown, place);
    return true;
}

void metrics_show_here(uint32_t pool, const char *alias) {
    if (uwsgi.has_metrics)
        (void)show(dbp_pool_place(pool), alias); /* where it cannot, the master's log says why */
}

/* ---- in the master ---- */

void metrics_pool_current(void *arg, uint32_t pool, const char *alias) {
    uint64_t one = 1;

    (void)arg;
    pthread_mutex_lock(&noted_lock);
    snprintf(noted[pool], sizeof noted[pool], "%s", alias);
    pthread_mutex_unlock(&noted_lock);
    if (wake_fd >= 0 && write(wake_fd, &one, sizeof one) < 0)
        return; /* it is awake; and without this it looks within a second */
}

static bool take_note(uint32_t place, char alias[DBP_ALIAS_MAX]) {
    pthread_mutex_lock(&noted_lock);
    memcpy(alias, noted[place], DBP_ALIAS_MAX);
    noted[place][0] = '\0';
    pthread_mutex_unlock(&noted_lock);
    return alias[0] != '\0';
}

static void show_noted(uint32_t place, const char *alias) {
    const struct shown *last = all;

    /* uWSGI's own threads read the pointers within it. */
    uwsgi_wlock(uwsgi.metrics_lock);
    bool done = show(place, alias);
    uwsgi_rwunlock(uwsgi.metrics_lock);
    if (!done)
        uwsgi_log_verbose("[dbpool] warning: pool '%s' has no metrics: no memory, or the names are taken\n", alias);
    else if (all != last && strcmp(all->name, alias) != 0)
        uwsgi_log_verbose("[dbpool] the metrics of pool '%s' are dbpool.%s.*\n", alias, all->name);
}

void metrics_show(void) {
    uint64_t notes;
    char alias[DBP_ALIAS_MAX];

    if (wake_fd < 0 && (wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) >= 0 &&
        event_queue_add_fd_read(uwsgi.master_queue, wake_fd) != 0)
        uwsgi_log_verbose("[dbpool] warning: new pools show their metrics a second late\n");
    if (wake_fd >= 0 && read(wake_fd, &notes, sizeof notes) < 0 && errno != EAGAIN)
        uwsgi_log_verbose("[dbpool] error: eventfd: %s\n", strerror(errno));
    for (uint32_t place = 0; place < DBP_POOLS_MAX; place++)
        if (take_note(place, alias) && uwsgi.has_metrics)
            show_noted(place, alias);
}

/* ---- when uWSGI starts ---- */

static bool is_metric(const char *name) {
    size_t i = 0;

    while (i < N_METRICS && strcmp(metrics[i].name, name) != 0)
        i++;
    return i < N_METRICS;
}

static void refuse(const char *threshold, const char *what) {
    uwsgi_log("[dbpool] error: metric-threshold = %s: %s. The metrics are dbpool.<alias>.", threshold, what);
    for (size_t i = 0; i < N_METRICS; i++)
        uwsgi_log("%s%s", i == 0 ? "{" : ",", metrics[i].name);
    uwsgi_log("}; in the alias all but letters, digits, _ and - is _\n");
    exit(1);
}

/* uWSGI wants the metric of a threshold to be there before any application is loaded. */
static void make_for(const char *threshold, char *key, const char *reset) {
    char *name = key + strlen("dbpool."), *dot = strrchr(name, '.'), clean[DBP_ALIAS_MAX];

    if (!dot || dot == name || !is_metric(dot + 1))
        refuse(threshold, "there is no such metric");
    *dot = '\0';
    name_of(name, clean);
    if (strcmp(name, clean) != 0)
        refuse(threshold, "no alias has metrics of that name");
    if (reset)
        refuse(threshold,
               "'reset' would change the pool's own figures; leave it out, and have 'rate' for a pause between alarms");
    if (!of_name(name) && !make(name))
        refuse(threshold, "there is no memory for it, or the name is taken");
}

static void make_for_thresholds(void) {
    for (struct uwsgi_string_list *one = uwsgi.metrics_threshold; one; one = one->next) {
        char *key = NULL, *reset = NULL;
        /* What is wrong with it otherwise is uWSGI's to say. */
        if (uwsgi_kvlist_parse(one->value, one->len, ',', '=', "key", &key, "reset", &reset, NULL) == 0 && key &&
            uwsgi_startswith(key, "dbpool.", (int)strlen("dbpool.")) == 0)
            make_for(one->value, key, reset);
        free(key);
        free(reset);
    }
}

void metrics_init(struct dbp_table *shared) {
    table = shared;
    if (!uwsgi.has_metrics) {
        uwsgi.has_metrics = 1;      /* --stats alone does not ask for them */
        uwsgi.metrics_no_cores = 1; /* nobody did: seven of each core of each worker are too many */
    }
    rlock = uwsgi.lock_ops.rlock;
    uwsgi.lock_ops.rlock = rlock_after_summing_up;
    make_for_thresholds();
}

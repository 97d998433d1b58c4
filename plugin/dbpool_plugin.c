/* SPDX-License-Identifier: MIT
 * The uWSGI plugin: adapters between uWSGI's hooks and core. Where each hook runs, and why these were chosen, is in
 * core/DESIGN.md; the pool itself knows nothing of uWSGI.
 *
 *   on_load         master-to-be   refuses a uWSGI binary other than the one it was built for; asks for our hooks
 *   announce        master-to-be   an application that is loaded there tells its pools
 *   post_init       master-to-be   makes what all processes inherit
 *   "dbpool:start"  master         starts the broker (after daemonizing and after the first workers were forked), with
 *                                  the pools that were announced, and the connector
 *   master_cycle    master         starts the connector again should it have ended; shows the metrics of new pools
 *   master_cleanup  master         stops the broker, which ends the connector
 *   post_fork, ...  children       let go of what is the broker's
 */
#include <uwsgi.h>

#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <pthread.h>

#include "../core/broker.h"
#include "../core/failure.h"
#include "../core/share.h"
#include "connector_process.h"
#include "log.h"
#include "metrics.h"

extern struct uwsgi_server uwsgi;
extern pid_t masterpid;

/* Slots beside those of uWSGI's own processes: for children that they fork. Each is an fd in every process. */
#define SPARE_PROCS 32
#define ATTACH_MOST_US 10000000u /* the broker starts milliseconds after the workers; longer means it does not run */
#define SLOT_MOST_US 30000000u   /* where it runs, a process waits for so long that another one gives up its slot */
#define ATTACH_LOOK_US 10000u    /* while another thread or greenlet of the process attaches it */

#define TOO_FEW_FDS " (max-fd in uWSGI's configuration, ulimit -n)"

#define TEXT_OF(number) #number
#define TEXT(number) TEXT_OF(number)

struct announced {
    struct announced *next;
    struct dbp_pool_spec spec;
};

static struct {
    bool made; /* share is there: a master runs, or will */
    struct dbp_share share;
    int broker_control; /* the broker's end of the control socket; -1 in children */
    struct dbp_broker *broker;
    pid_t master;
    char *max_sessions_option;
    uint32_t max_sessions;       /* 0: as many as the table has */
    uint32_t n_own;              /* slots that are kept for uWSGI's own processes */
    struct announced *announced; /* the first one first, until the broker starts */
} host = {.broker_control = -1};

static struct {
    pthread_mutex_t lock;
    struct dbp_client *client;
    pid_t pid;       /* whose client it is */
    pid_t attaching; /* this process, while one of its threads or greenlets does it */
} own = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* ---- loading: only into the uWSGI that it was built for (uWSGI itself checks nothing) ---- */

static bool built_for_this_uwsgi(void) {
#ifdef __GLIBC__
    Dl_info info;
    const ElfW(Sym) *symbol = NULL;

    if (!dladdr1(&uwsgi, &info, (void **)(void *)&symbol, RTLD_DL_SYMENT) || !symbol)
        return true; /* a binary without symbol sizes: the version is all there is to compare */
    return symbol->st_size == sizeof(struct uwsgi_server);
#else
    return true; /* no dladdr1(): the version is all there is to compare */
#endif
}

static void dbpool_on_load(void) {
    char *cflags = uwsgi_get_cflags();
    bool same_version = cflags && strstr(cflags, "-DUWSGI_VERSION=\"\\\"" UWSGI_VERSION "\\\"\"");

    free(cflags);
    if (!same_version || !built_for_this_uwsgi()) {
        uwsgi_log("[dbpool] error: this plugin was built for uWSGI %s with another layout or version than the running "
                  "binary: build it again with this uWSGI (uwsgi --build-plugin .)\n",
                  UWSGI_VERSION);
        exit(1);
    }
    /* uWSGI cuts the strings in place. */
    uwsgi_string_new_list(&uwsgi.hook_master_start, uwsgi_str("dbpool:start"));
    uwsgi_string_new_list(&uwsgi.hook_as_mule, uwsgi_str("dbpool:child"));
}

/* ---- the master ---- */

static void read_options(void) {
    char *end = NULL;
    unsigned long n;

    if (!host.max_sessions_option)
        return;
    errno = 0;
    n = strtoul(host.max_sessions_option, &end, 10);
    if (errno || !isdigit((unsigned char)host.max_sessions_option[0]) || *end || n < 1 || n > DBP_SESSIONS_MAX) {
        uwsgi_log("[dbpool] error: dbpool-max-sessions is '%s': expected a number from 1 to %u\n",
                  host.max_sessions_option, DBP_SESSIONS_MAX);
        exit(1);
    }
    host.max_sessions = (uint32_t)n;
}

/* The slots of uWSGI's own processes: the connector's, the workers', the mules', the spoolers'. NULL: their number. */
static uint32_t place_of_spooler(const struct uwsgi_spooler *wanted) {
    uint32_t place = 1u + (uint32_t)uwsgi.numproc + (uint32_t)uwsgi.mules_cnt;

    for (const struct uwsgi_spooler *spooler = uwsgi.spoolers; spooler && spooler != wanted; spooler = spooler->next)
        place++;
    return place;
}

static void dbpool_post_init(void) {
    uint32_t n_procs;

    read_options();
    if (!uwsgi.master_process) {
        uwsgi_log("[dbpool] error: there is no master process, so there is no pool: put 'master = true' into your "
                  "configuration\n");
        return;
    }
    host.n_own = place_of_spooler(NULL);
    n_procs = host.n_own + SPARE_PROCS;
    if (n_procs > DBP_PROCS_MAX) {
        uwsgi_log("[dbpool] error: %u workers, mules and spoolers are configured, at most %u can share a pool\n",
                  host.n_own - 1, DBP_PROCS_MAX - SPARE_PROCS - 1);
        exit(1);
    }
    int rc = dbp_share_new(n_procs, &host.share, &host.broker_control);
    if (rc != 0) {
        uwsgi_log("[dbpool] error: the pool cannot be made: %s%s\n", dbp_failure(), rc == -EMFILE ? TOO_FEW_FDS : "");
        exit(1);
    }
    host.made = true;
    host.master = getpid();
    plugin_log_init();
    metrics_init(host.share.table);
}

static bool connector_is(void *arg, int32_t pid) {
    (void)arg;
    return connector_process_is(pid);
}

/* ---- starting and stopping ---- */

static bool before_the_fork(void) {
    return uwsgi.master_process && !host.broker && (!host.made || getpid() == host.master || getpid() == masterpid);
}

static int announce(const struct dbp_pool_spec *spec) {
    if (!before_the_fork())
        return DBP_E_CLOSED;
    struct announced **end = &host.announced;
    uint32_t n = 0;
    for (; *end; end = &(*end)->next)
        n++;
    if (n == DBP_POOLS_MAX)
        return DBP_E_FULL;
    *end = calloc(1, sizeof **end);
    if (!*end)
        return -ENOMEM;
    (*end)->spec = *spec;
    return 0;
}

static void register_announced(void) {
    char text[DBP_TEXT_MAX];

    while (host.announced) {
        struct announced *first = host.announced;
        if (dbp_broker_register(host.broker, &first->spec, text) != 0)
            uwsgi_log_verbose("[dbpool] error: pool '%.*s': %s\n", (int)DBP_ALIAS_MAX, first->spec.alias, text);
        host.announced = first->next;
        explicit_bzero(first, sizeof *first);
        free(first);
    }
}

static int start_broker(void) {
    const struct dbp_broker_ops ops = {.log = plugin_log,
                                       .connector_is = connector_is,
                                       .pool_current = metrics_pool_current,
                                       .max_sessions = host.max_sessions,
                                       .n_own = host.n_own};

    if (!host.made || host.broker)
        return 0;
    host.master = getpid();
    int rc = dbp_broker_start(&host.share, host.broker_control, &ops, &host.broker);
    host.broker_control = -1; /* the broker's, which closes it in each child that is forked from now on */
    if (rc != 0) {
        uwsgi_log("[dbpool] error: the pool cannot be started: %s%s\n", dbp_failure(),
                  rc == -EMFILE ? TOO_FEW_FDS : "");
        return 1;
    }
    register_announced();
    connector_process_keep(&host.share, plugin_log);
    metrics_show();
    return 0;
}

/* On the master's main thread, after each event and at least once a second, also while a reload or a stop waits for the
 * workers. */
static void dbpool_master_cycle(void) {
    if (!host.broker || getpid() != host.master)
        return;
    connector_process_keep(&host.share, plugin_log);
    metrics_show();
}

/* In a child that was forked before the broker had the socket. Any other finds -1: the number is nobody's there, or the
 * application's by now. */
static void leave_the_broker_alone(void) {
    if (host.broker_control >= 0)
        close(host.broker_control);
    host.broker_control = -1;
    host.broker = NULL; /* the master's; its fds were closed by the atfork handler */
}

static int dbpool_hook(char *what) {
    if (!strcmp(what, "start"))
        return start_broker();
    if (!strcmp(what, "child")) {
        leave_the_broker_alone();
        return 0;
    }
    uwsgi_log("[dbpool] error: hook dbpool:%s is not known\n", what);
    return -1;
}

static int dbpool_init(void) {
    uwsgi_register_hook("dbpool", dbpool_hook);
    return 0;
}

static void dbpool_master_cleanup(void) {
    if (getpid() != host.master || !host.broker)
        return;
    host.broker = dbp_broker_stop(host.broker);
    connector_process_end();
}

/* ---- the children: a client each, attached on first use ---- */

static void unlock_in_child(void) {
    /* Another thread may have held it at the moment of the fork. */
    pthread_mutex_init(&own.lock, NULL);
}

static void watch_forks(void) {
    if (pthread_atfork(NULL, NULL, unlock_in_child) != 0)
        uwsgi_log("[dbpool] error: no memory for a fork handler\n");
}

/* Which slot is this process's own; 0: none. What uWSGI knows of a worker, the children that it forks know as well,
 * but for the pid. */
static uint32_t place_of_this_process(void) {
    if (uwsgi.mypid != getpid())
        return 0;
    if (uwsgi.mywid > 0)
        return (uint32_t)uwsgi.mywid;
    if (uwsgi.muleid > 0)
        return (uint32_t)(uwsgi.numproc + uwsgi.muleid);
    return uwsgi.i_am_a_spooler ? place_of_spooler(uwsgi.i_am_a_spooler) : 0;
}

static void label_process(char *label, size_t n) {
    const char *of = uwsgi.mypid == getpid() ? "" : "child of ";

    if (uwsgi.mywid > 0)
        snprintf(label, n, "%sworker %d", of, uwsgi.mywid);
    else if (uwsgi.muleid > 0)
        snprintf(label, n, "%smule %d", of, uwsgi.muleid);
    else if (uwsgi.i_am_a_spooler)
        snprintf(label, n, "%sspooler", of);
    else
        snprintf(label, n, "process");
}

/* With own.lock held, which is let go meanwhile. */
static int look_again(uint64_t deadline_us) {
    uint64_t now = dbp_now_us();

    pthread_mutex_unlock(&own.lock);
    int rc = now >= deadline_us ? DBP_E_TIMEOUT : dbp_wait_as_told(-1, now + ATTACH_LOOK_US);
    pthread_mutex_lock(&own.lock);
    return rc == DBP_E_TIMEOUT && now < deadline_us ? 0 : rc;
}

static struct dbp_client *this_process(const char **whyp, bool *before_forkp) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    char label[40];

    *before_forkp = false;
    if (!host.made) {
        *whyp = uwsgi.master_process ? "uWSGI has not finished starting"
                                     : "uWSGI runs without a master process: put "
                                       "'master = true' into its configuration";
        *before_forkp = uwsgi.master_process != 0;
        return NULL;
    }
    if (getpid() == host.master || getpid() == masterpid) {
        *whyp = "this is the uWSGI master, before its workers are forked";
        *before_forkp = true;
        return NULL;
    }
    pthread_once(&once, watch_forks);
    uint64_t deadline_us = dbp_now_us() + (atomic_load(&host.share.table->broker_up) ? SLOT_MOST_US : ATTACH_MOST_US);
    pthread_mutex_lock(&own.lock);
    int rc = 0;
    while (rc == 0 && own.attaching == getpid())
        rc = look_again(deadline_us);
    if (rc == 0 && (!own.client || own.pid != getpid())) {
        struct dbp_client *client = NULL; /* an inherited one is left as it is: its memory is the parent's copy */
        own.attaching = getpid();
        pthread_mutex_unlock(&own.lock); /* other greenlets of this thread run while it waits */
        label_process(label, sizeof label);
        rc = dbp_client_attach_own(&host.share, label, place_of_this_process(), deadline_us, &client);
        pthread_mutex_lock(&own.lock);
        own.attaching = 0;
        own.client = client;
        own.pid = getpid();
    }
    struct dbp_client *client = rc == 0 ? own.client : NULL;
    pthread_mutex_unlock(&own.lock);
    *whyp = rc == DBP_E_INTERRUPTED ? NULL
            : rc == DBP_E_FULL
                ? TEXT(SPARE_PROCS) " processes beside uWSGI's workers, mules and spoolers can have or await "
                                    "a session at a time, and so many do"
            : rc == -EBADF        ? "this process has closed the pool's file descriptors"
            : rc == DBP_E_TIMEOUT ? "the pool's broker in the uWSGI master does not answer"
                                  : "attaching to the pool's broker failed";
    return client;
}

static int register_here(struct dbp_client *client, const struct dbp_pool_spec *spec, uint64_t deadline_us,
                         char *errbuf, size_t errlen, uint32_t *poolp) {
    int rc = dbp_client_register(client, spec, deadline_us, errbuf, errlen, poolp);

    if (rc == 0) {
        pthread_mutex_lock(&own.lock);
        metrics_show_here(*poolp, spec->alias);
        pthread_mutex_unlock(&own.lock);
    }
    return rc;
}

/* What the Python extension finds with dlsym(RTLD_DEFAULT): see dbpool.h. */
__attribute__((visibility("default"))) extern const struct dbp_api dbpool_api;
const struct dbp_api dbpool_api = {
    .version = DBP_VERSION,
    .size = sizeof(struct dbp_api),
    .client = this_process,
    .set_wait = dbp_set_wait,
    .announce = announce,
    .client_register = register_here,
    .acquire_now = dbp_acquire_now,
    .acquire = dbp_acquire,
    .wait_begin = dbp_wait_begin,
    .wait_poll = dbp_wait_poll,
    .wait_cancel = dbp_wait_cancel,
    .wait_account = dbp_wait_account,
    .wait_fd = dbp_wait_fd,
    .release = dbp_release,
    .lease_status = dbp_lease_status,
    .lease_valid = dbp_lease_valid,
    .session_fetch = dbp_session_fetch,
    .guard_fd = dbp_guard_fd,
    .unguard_fd = dbp_unguard_fd,
    .fence_fd = dbp_fence_fd,
    .pool_stats = dbp_pool_stats,
    .pool_error = dbp_pool_error,
    .pool_holders = dbp_pool_holders,
    .replay_new = dbp_replay_new,
    .replay_free = dbp_replay_free,
    .replay_feed = dbp_replay_feed,
    .replay_take = dbp_replay_take,
    .replay_refusal = dbp_replay_refusal,
    .replay_server_start = dbp_replay_server_start,
    .replay_server_stop = dbp_replay_server_stop,
};

static struct uwsgi_option options[] = {
    {"dbpool-max-sessions", required_argument, 0, "limit the sessions of all dbpool pools of this instance together",
     uwsgi_opt_set_str, &host.max_sessions_option, 0},
    {0},
};

__attribute__((visibility("default"))) struct uwsgi_plugin dbpool_plugin = {
    .name = "dbpool",
    .options = options,
    .on_load = dbpool_on_load,
    .init = dbpool_init,
    .post_init = dbpool_post_init,
    .post_fork = leave_the_broker_alone,
    .spooler_init = leave_the_broker_alone,
    .master_cycle = dbpool_master_cycle,
    .master_cleanup = dbpool_master_cleanup,
};

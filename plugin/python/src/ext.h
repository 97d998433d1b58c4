/* SPDX-License-Identifier: MIT
 * dbpool._dbpool, the CPython side of the pool: what its files share.
 *
 *   api.c     finds the uWSGI plugin's dbpool_api, attaches this process, notices forks
 *   pool.c    register, counters, and the types Lease and Wait
 *   session.c a leased session's fd and facts, and the login replay as a server thread
 *   wait.c    waiting for an fd: the hub's hook, or poll(2) in slices
 *   scan.c    what a statement may do to its session without the server saying so
 *   native.c  the MYSQL behind a stock mysqlclient object
 *   proxy.c   what a user's connection is, does at each call, and its end
 *   methods.c the methods of connections and cursors that are called at each query
 *   owner.c   the greenlet or thread whose end returns a lease
 *   checkout.c the quick way of a checkout and of a return
 *   wire.c    the socket-like object that PyMySQL talks to
 *   epoll.c   the private epoll of the gevent reactor
 *   hub.c     what the gevent hub calls when a session or a lease is ready
 *
 * Everything is called with the GIL held unless a comment says otherwise. Functions that return int answer -1 with a
 * Python exception set.
 */
#ifndef DBPOOL_PY_EXT_H
#define DBPOOL_PY_EXT_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "core.h"

/* ---- api.c ---- */

/* The plugin's functions. NULL with _dbpool.Unavailable set: no plugin in this process, or one of another version. */
const struct dbp_api *dbp_py_api(void);
/* This process's client, attached by the first call. NULL with _dbpool.Unavailable set. */
struct dbp_client *dbp_py_client(void);
/* Counts the forks above this process: whatever was made under another number belongs to a parent. */
unsigned dbp_py_epoch(void);
/* An absolute deadline, seconds from now. */
uint64_t dbp_py_deadline(double seconds);
int dbp_py_api_init(PyObject *module);

/* ---- wait.c ---- */

/* Waits until fd is ready (-1: never is), timeout_ms < 0 without limit: by the hook when there is one and it takes the
 * wait, else by poll(2) without the GIL. 1 ready, 0 timed out, -1 with the exception that ended the wait. */
int dbp_py_wait(int fd, bool reading, int timeout_ms);
/* The same from inside a C library, with or without the GIL. failed(fd) is called with the GIL held and the exception
 * set; what it leaves set is dropped. Without a hook the GIL is not touched unless the wait is long. */
int dbp_py_wait_unlocked(int fd, bool reading, int timeout_ms, void (*failed)(int fd));
/* The dbp_wait_fn of all who call core: they keep the GIL, which is given away here. fd -1: until the deadline. */
int dbp_py_wait_for_broker(int fd, uint64_t deadline_us);
/* False while the program has gevent and the hook is not set. */
bool dbp_py_wait_is_set_up(void);
PyObject *dbp_py_set_wait_hook(PyObject *module, PyObject *hook);
PyObject *dbp_py_wait_fd(PyObject *module, PyObject *args);

/* ---- pool.c ---- */

typedef struct {
    PyObject_HEAD struct dbp_lease lease;
    unsigned epoch;
    bool held;
} dbp_py_lease;

extern PyTypeObject dbp_py_lease_type;
extern PyTypeObject dbp_py_wait_type;
extern PyMethodDef dbp_py_pool_methods[];

/* A new Lease, held. NULL: it was released. */
PyObject *dbp_py_lease_wrap(const struct dbp_lease *lease, unsigned epoch);
/* 0, DBP_E_STALE when it is not held any more, or what core answers. */
int dbp_py_lease_return(dbp_py_lease *self, uint16_t status, enum dbp_return how);
/* True while the lease is this process's and unreturned. */
bool dbp_py_lease_held(const dbp_py_lease *self);
/* And the session still is this lease's. */
bool dbp_py_lease_valid(const dbp_py_lease *self);

/* ---- session.c ---- */

typedef struct {
    PyObject_HEAD struct dbp_session_facts facts;
} dbp_py_facts;

extern PyTypeObject dbp_py_facts_type;
extern PyTypeObject dbp_py_replay_server_type;
extern PyMethodDef dbp_py_session_methods[];

/* ---- scan.c ---- */

enum dbp_py_effect {
    DBP_PY_QUIET,     /* changes nothing of the session but what the server reports */
    DBP_PY_CHANGES,   /* may change anything */
    DBP_PY_WRITES,    /* as QUIET: INSERT, UPDATE, DELETE or REPLACE */
    DBP_PY_AUTOCOMMIT /* SET autocommit=..., which the server reports as a change: the status word says all of it */
};

/* backslash: it escapes in literals (no NO_BACKSLASH_ESCAPES). The character set must be one in which no part of a
 * longer character looks like ASCII. */
enum dbp_py_effect dbp_py_scan(const char *sql, size_t n, bool backslash);
/* The same for bytes, str or any buffer; raises nothing. */
enum dbp_py_effect dbp_py_scan_object(PyObject *sql, bool backslash);
PyObject *dbp_py_scan_method(PyObject *module, PyObject *args);

/* ---- native.c: what Native's methods of these names do; the first argument is a Native ---- */

extern PyTypeObject dbp_py_native_type;
/* checkout(): 0 or -1. */
int dbp_py_native_begin(PyObject *native, uint16_t status);
void dbp_py_native_note(PyObject *native);
/* settle(). Only where native.layout is true. */
enum dbp_return dbp_py_native_verdict(PyObject *native, bool autocommit, uint16_t *status, bool *grown, bool *changed);

/* ---- checkout.c ---- */

typedef struct {
    PyObject_HEAD PyObject *connection;
    PyObject *native;
    unsigned session, incarnation;
    char leased, broken, tracked, quick, odd;
} dbp_py_driver;

extern PyTypeObject dbp_py_driver_type;
extern PyTypeObject dbp_py_checkout_type;
/* Gives a lease back as its user wants it: 0 or -1. profile is a Checkout (tests have others). */
int dbp_py_checkout_return(PyObject *profile, PyObject *lease, PyObject *driver, bool commit);
int dbp_py_checkout_init(void);

/* ---- proxy.c ---- */

typedef struct dbp_py_owner dbp_py_owner;

typedef struct dbp_py_proxy {
    PyObject_HEAD PyObject *profile;      /* pool.py's */
    PyObject *lease;                      /* NULL (or None) once it was returned */
    PyObject *driver;                     /* drivers/' Driver */
    PyObject *target;                     /* the driver object */
    PyObject *watched;                    /* leaks.py's, with leak_threshold; NULL reads as None */
    dbp_py_owner *owner;                  /* borrowed; NULL once nobody's end returns it */
    struct dbp_py_proxy *next, *previous; /* owner.c's list */
    int users;                            /* more than 1 where use_threadlocal gave it again */
    unsigned epoch;                       /* of the process that it was leased in */
    char busy;                            /* a call is under way */
    char undo;                            /* one of the users wants no commit */
    char fresh;                           /* the backend's: autocommit is as the settings say, nobody has changed it */
} dbp_py_proxy;

extern PyTypeObject dbp_py_proxy_type;
/* A proxy of that type, which no Owner has yet. */
dbp_py_proxy *dbp_py_proxy_make(PyTypeObject *type, PyObject *profile, PyObject *lease, dbp_py_driver *driver);
/* 1 while the lease lasts, 0, or -1. */
int dbp_py_proxy_lasts(const dbp_py_proxy *self);
/* The lease lasts and nobody else uses it now: 0 or -1. */
int dbp_py_proxy_check(dbp_py_proxy *self);
/* Around a call that may use the wire: check and be busy; then the call's answer (or NULL) is passed on, or what the
 * driver says to raise. *driver is kept in between. */
int dbp_py_proxy_begin(dbp_py_proxy *self, PyObject **driver);
PyObject *dbp_py_proxy_end(dbp_py_proxy *self, PyObject *driver, PyObject *answer);

/* ---- owner.c ---- */

extern PyTypeObject dbp_py_owner_type;
/* The proxy's lease ends at the latest when the caller's greenlet or thread does: 0 or -1. */
int dbp_py_owner_join(dbp_py_proxy *proxy);
void dbp_py_owner_leave(dbp_py_proxy *proxy);
PyObject *dbp_py_thread_owner(PyObject *module, PyObject *ignored);
int dbp_py_owner_init(void);

/* ---- methods.c ---- */

extern PyMethodDef dbp_py_method_methods[];
int dbp_py_methods_init(void);

/* ---- hub.c ---- */

extern PyMethodDef dbp_py_hub_methods[];
int dbp_py_hub_init(void);

/* ---- the other types ---- */

extern PyTypeObject dbp_py_wire_type;
extern PyTypeObject dbp_py_epoll_type;

/* guard_fd/unguard_fd when a plugin is there; nothing otherwise (tests). */
int dbp_py_guard(int fd);
void dbp_py_unguard(int fd);
/* The plugin's fence, or the same done here. 0 or -1. */
int dbp_py_fence(int fd);

#endif

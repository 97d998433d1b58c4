/* SPDX-License-Identifier: MIT
 * Finding the pool from inside a uWSGI process: the plugin is loaded RTLD_GLOBAL and exports one data symbol. All of it
 * may be missing (outside uWSGI), of another build, or not ready (in the master before the fork): each has its own
 * reason in _dbpool.Unavailable(reason, text), so that Python can say what to put in the ini.
 */
#include "ext.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

static PyObject *unavailable;
static struct dbp_client *client;
static unsigned epoch;

/* Runs in the child, the only thread there: plain stores are enough. */
static void forked(void) {
    epoch++;
    client = NULL;
}

unsigned dbp_py_epoch(void) {
    return epoch;
}

uint64_t dbp_py_deadline(double seconds) {
    const double longest = 365.0 * 86400.0; /* keeps the product inside 64 bits whatever a caller asks for */
    struct timespec now;

    if (!(seconds > 0.0))
        seconds = 0.0;
    if (seconds > longest)
        seconds = longest;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u + (uint64_t)(seconds * 1e6);
}

static void refuse(const char *reason, const char *text) {
    PyObject *args = Py_BuildValue("(ss)", reason, text);

    if (args) {
        PyErr_SetObject(unavailable, args);
        Py_DECREF(args);
    }
}

const struct dbp_api *dbp_py_api(void) {
    static const struct dbp_api *found;
    const struct dbp_api *api = found;

    if (api)
        return api;
    api = dlsym(RTLD_DEFAULT, "dbpool_api");
    if (!api) {
        refuse("plugin", "the uWSGI plugin dbpool is not loaded");
        return NULL;
    }
    if (api->version != DBP_VERSION || api->size != sizeof(*api)) {
        char text[160];

        snprintf(text, sizeof(text),
                 "the uWSGI plugin dbpool (interface %u) and the Python package dbpool (interface %u) are of different "
                 "builds",
                 (unsigned)api->version, (unsigned)DBP_VERSION);
        refuse("version", text);
        return NULL;
    }
    api->set_wait(dbp_py_wait_for_broker);
    found = api;
    return api;
}

struct dbp_client *dbp_py_client(void) {
    const struct dbp_api *api;
    struct dbp_client *got;
    const char *why = NULL;
    bool before_fork = false;

    if (client)
        return client;
    api = dbp_py_api();
    if (!api)
        return NULL;
    got = api->client(&why, &before_fork);
    if (!got && PyErr_Occurred())
        return NULL;
    if (!got) {
        refuse(before_fork ? "before-fork" : "client", why ? why : "this process cannot attach to the pool");
        return NULL;
    }
    client = got;
    return client;
}

int dbp_py_guard(int fd) {
    int r = client ? dbp_py_api()->guard_fd(client, fd) : 0;

    if (r == 0)
        return 0;
    errno = r < 0 ? -r : ENOSPC;
    PyErr_SetFromErrno(PyExc_OSError);
    return -1;
}

void dbp_py_unguard(int fd) {
    if (client)
        dbp_py_api()->unguard_fd(client, fd);
}

int dbp_py_fence(int fd) {
    int dead, r;

    /* Private connections are fenced too, where there may be no plugin: so not core's dbp_fence_fd. */
    dead = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    r = dead < 0 ? -1 : dup3(dead, fd, O_CLOEXEC);
    if (r < 0)
        PyErr_SetFromErrno(PyExc_OSError);
    if (dead >= 0)
        close(dead);
    return r < 0 ? -1 : 0;
}

int dbp_py_api_init(PyObject *module) {
    int r;

    unavailable = PyErr_NewExceptionWithDoc("dbpool._dbpool.Unavailable",
                                            "The pool cannot be reached from this process: (reason, text).",
                                            PyExc_RuntimeError, NULL);
    if (!unavailable)
        return -1;
    Py_INCREF(unavailable);
    if (PyModule_AddObject(module, "Unavailable", unavailable) < 0) {
        Py_DECREF(unavailable);
        return -1;
    }
    r = pthread_atfork(NULL, NULL, forked);
    if (r) {
        errno = r;
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    return 0;
}

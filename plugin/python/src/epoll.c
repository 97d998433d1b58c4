/* SPDX-License-Identifier: MIT
 * The private epoll of a gevent hub. Session fds are registered here and nowhere else: their open file descriptions are
 * shared with other processes, and whatever the hub's own loop kept of them would wake this process for replies to
 * others. EPOLLONESHOT: a registration that fired is deaf until armed again. (gevent's monkey patch takes select.epoll
 * away, so this is not Python.)
 */
#include "ext.h"

#include <errno.h>
#include <sys/epoll.h>
#include <unistd.h>

#define BATCH 64 /* events per call; the rest comes with the next turn of the loop */

typedef struct {
    PyObject_HEAD int fd;
} epoll_object;

static PyObject *epoll_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    epoll_object *self;

    if (!PyArg_ParseTuple(args, ":Epoll") || (kwargs && PyDict_GET_SIZE(kwargs))) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_TypeError, "Epoll takes no arguments");
        return NULL;
    }
    self = (epoll_object *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    self->fd = epoll_create1(EPOLL_CLOEXEC);
    if (self->fd < 0) {
        Py_DECREF(self);
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return (PyObject *)self;
}

static void epoll_close(epoll_object *self) {
    if (self->fd >= 0)
        close(self->fd);
    self->fd = -1;
}

static void epoll_dealloc(PyObject *object) {
    epoll_close((epoll_object *)object);
    Py_TYPE(object)->tp_free(object);
}

static PyObject *epoll_close_method(PyObject *self, PyObject *ignored) {
    (void)ignored;
    epoll_close((epoll_object *)self);
    Py_RETURN_NONE;
}

static PyObject *epoll_fileno(PyObject *self, PyObject *ignored) {
    (void)ignored;
    return PyLong_FromLong(((epoll_object *)self)->fd);
}

static PyObject *epoll_arm(PyObject *object, PyObject *args) {
    epoll_object *self = (epoll_object *)object;
    struct epoll_event event = {0};
    int fd, reading;

    if (!PyArg_ParseTuple(args, "ip:arm", &fd, &reading))
        return NULL;
    event.events = (reading ? EPOLLIN | EPOLLRDHUP : EPOLLOUT) | (uint32_t)EPOLLONESHOT;
    event.data.fd = fd;
    /* Mostly it is there from the wait before. After the driver closed its fd and the number came back it is not. */
    if (epoll_ctl(self->fd, EPOLL_CTL_MOD, fd, &event) == 0)
        Py_RETURN_NONE;
    if (errno == ENOENT && epoll_ctl(self->fd, EPOLL_CTL_ADD, fd, &event) == 0)
        Py_RETURN_NONE;
    return PyErr_SetFromErrno(PyExc_OSError);
}

static PyObject *epoll_forget(PyObject *object, PyObject *arg) {
    struct epoll_event event = {0};
    long fd = PyLong_AsLong(arg);

    if (fd == -1 && PyErr_Occurred())
        return NULL;
    if (epoll_ctl(((epoll_object *)object)->fd, EPOLL_CTL_DEL, (int)fd, &event) < 0 && errno != ENOENT &&
        errno != EBADF && errno != EPERM)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

static PyObject *epoll_ready(PyObject *object, PyObject *ignored) {
    struct epoll_event events[BATCH];
    PyObject *list;
    int n, i;

    (void)ignored;
    n = epoll_wait(((epoll_object *)object)->fd, events, BATCH, 0);
    if (n < 0) {
        if (errno != EINTR)
            return PyErr_SetFromErrno(PyExc_OSError);
        n = 0;
    }
    list = PyList_New(n);
    for (i = 0; list && i < n; i++) {
        PyObject *fd = PyLong_FromLong(events[i].data.fd);

        if (!fd) {
            Py_CLEAR(list);
            break;
        }
        PyList_SET_ITEM(list, i, fd);
    }
    return list;
}

static PyMethodDef epoll_methods[] = {
    {"arm", epoll_arm, METH_VARARGS, "arm(fd, reading): one event of fd is wanted"},
    {"forget", epoll_forget, METH_O, "forget(fd): nothing of fd is left here; harmless when nothing was"},
    {"ready", epoll_ready, METH_NOARGS, "ready() -> [fd, ...]: what fired, without waiting"},
    {"fileno", epoll_fileno, METH_NOARGS, "the fd that the hub watches"},
    {"close", epoll_close_method, METH_NOARGS, "closes it; harmless twice"},
    {NULL, NULL, 0, NULL}};

PyTypeObject dbp_py_epoll_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "dbpool._dbpool.Epoll",
    .tp_basicsize = sizeof(epoll_object),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "One-shot readiness of session fds.",
    .tp_new = epoll_new,
    .tp_dealloc = epoll_dealloc,
    .tp_methods = epoll_methods,
};

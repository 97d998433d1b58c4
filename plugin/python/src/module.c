/* SPDX-License-Identifier: MIT
 * The module dbpool._dbpool: constants, types and the functions that belong to no type.
 */
#include "ext.h"

static PyObject *probe(PyObject *module, PyObject *ignored) {
    (void)module;
    (void)ignored;
    if (!dbp_py_api())
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *attach(PyObject *module, PyObject *ignored) {
    (void)module;
    (void)ignored;
    if (!dbp_py_client())
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *py_epoch(PyObject *module, PyObject *ignored) {
    (void)module;
    (void)ignored;
    return PyLong_FromUnsignedLong(dbp_py_epoch());
}

static PyObject *main_interpreter(PyObject *module, PyObject *ignored) {
    (void)module;
    (void)ignored;
    return PyBool_FromLong(PyInterpreterState_Get() == PyInterpreterState_Main());
}

static PyObject *py_fence(PyObject *module, PyObject *arg) {
    long fd = PyLong_AsLong(arg);

    (void)module;
    if (fd == -1 && PyErr_Occurred())
        return NULL;
    if (fd < 0) {
        PyErr_SetString(PyExc_ValueError, "fence: no such fd");
        return NULL;
    }
    if (dbp_py_fence((int)fd) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"probe", probe, METH_NOARGS, "probe(): raises Unavailable when no plugin of this build is loaded"},
    {"attach", attach, METH_NOARGS, "attach(): raises Unavailable when this process cannot use the pool (now)"},
    {"epoch", py_epoch, METH_NOARGS, "epoch() -> int: another number than before means: forked since"},
    {"main_interpreter", main_interpreter, METH_NOARGS, "main_interpreter() -> bool: not a sub-interpreter"},
    {"fence", py_fence, METH_O, "fence(fd): puts a dead socket under fd"},
    {"set_wait_hook", dbp_py_set_wait_hook, METH_O,
     "set_wait_hook(f): f(fd, reading, timeout_ms) -> True, False (timed out), or None (wait yourself)"},
    {"thread_owner", dbp_py_thread_owner, METH_NOARGS, "thread_owner() -> Owner: dies with the calling thread"},
    {"wait", dbp_py_wait_fd, METH_VARARGS, "wait(fd, reading, timeout_ms) -> bool: as the drivers wait; -1: no limit"},
    {"scan", dbp_py_scan_method, METH_VARARGS,
     "scan(sql, backslash=True) -> 'quiet', 'changes' or 'autocommit': for tests"},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "dbpool._dbpool", .m_doc = "The C side of dbpool: see the package's docstring.",
    .m_size = -1, /* one process, one pool: the state is global on purpose */
    .m_methods = methods,
};

static int add_constants(PyObject *module) {
    static const struct {
        const char *name;
        long value;
    } constants[] = {
        {"E_BUSY", DBP_E_BUSY},
        {"E_TIMEOUT", DBP_E_TIMEOUT},
        {"E_FAILED", DBP_E_FAILED},
        {"E_FULL", DBP_E_FULL},
        {"E_CLOSED", DBP_E_CLOSED},
        {"E_INVALID", DBP_E_INVALID},
        {"E_STALE", DBP_E_STALE},
        {"E_INTERRUPTED", DBP_E_INTERRUPTED},
        {"CLEAN", DBP_RETURN_CLEAN},
        {"RESET", DBP_RETURN_RESET},
        {"COMMIT", DBP_RETURN_COMMIT},
        {"FULL", DBP_RETURN_FULL},
        {"DOOM", DBP_RETURN_DOOM},
        {"STATUS_WROTE", DBP_STATUS_WROTE},
        {"SESSIONS_MAX", (long)DBP_SESSIONS_MAX},
        {"WAITERS_MAX", (long)DBP_WAITERS_MAX},
    };
    size_t i;

    for (i = 0; i < sizeof(constants) / sizeof(constants[0]); i++)
        if (PyModule_AddIntConstant(module, constants[i].name, constants[i].value) < 0)
            return -1;
    return 0;
}

static int add_types(PyObject *module) {
    static const struct {
        const char *name;
        PyTypeObject *type;
    } types[] = {
        {"Lease", &dbp_py_lease_type},   {"Wait", &dbp_py_wait_type},
        {"Facts", &dbp_py_facts_type},   {"ReplayServer", &dbp_py_replay_server_type},
        {"Native", &dbp_py_native_type}, {"Wire", &dbp_py_wire_type},
        {"Epoll", &dbp_py_epoll_type},   {"Proxy", &dbp_py_proxy_type},
        {"Driver", &dbp_py_driver_type}, {"Checkout", &dbp_py_checkout_type},
        {"Owner", &dbp_py_owner_type},
    };
    size_t i;

    for (i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
        if (PyType_Ready(types[i].type) < 0)
            return -1;
        Py_INCREF(types[i].type);
        if (PyModule_AddObject(module, types[i].name, (PyObject *)types[i].type) < 0) {
            Py_DECREF(types[i].type);
            return -1;
        }
    }
    return 0;
}

PyMODINIT_FUNC PyInit__dbpool(void);

PyMODINIT_FUNC PyInit__dbpool(void) {
    PyObject *module = PyModule_Create(&definition);

    if (!module)
        return NULL;
    if (dbp_py_owner_init() < 0 || dbp_py_checkout_init() < 0 || dbp_py_methods_init() < 0 || dbp_py_hub_init() < 0 ||
        dbp_py_api_init(module) < 0 || add_constants(module) < 0 || add_types(module) < 0 ||
        PyModule_AddFunctions(module, dbp_py_pool_methods) < 0 ||
        PyModule_AddFunctions(module, dbp_py_session_methods) < 0 ||
        PyModule_AddFunctions(module, dbp_py_method_methods) < 0 ||
        PyModule_AddFunctions(module, dbp_py_hub_methods) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}

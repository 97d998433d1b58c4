/* SPDX-License-Identifier: MIT
 * The connector's process: what it is while it runs, and that it ends with the broker. (Its work is in test_kills and
 * in the end-to-end tests.)
 */
#include "connector.h"

#include "../support/helpers.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

static int teardown(void **state) {
    (void)state;
    return reap_all();
}

/* I9: it has passwords, and nobody else of its user may read them, nor a file of its memory. */
static void test_I9_its_memory_is_its_own(void **state) {
    int pair[2];

    (void)state;
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
    pid_t pid = fork_child();
    if (pid == 0) {
        prctl(PR_SET_DUMPABLE, 1);
        close(pair[1]); /* the broker is gone: it serves nothing, and ends */
        int rc = dbp_connector_run(pair[0], test_log);
        (void)rc;
        _exit(prctl(PR_GET_DUMPABLE));
    }
    close(pair[0]);
    close(pair[1]);
    assert_int_equal(wait_child(pid), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_I9_its_memory_is_its_own, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: MIT
 * The C benchmarks, one at a time. Prints a line "name value" for each figure of each round.
 */
#include "stage.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    stage_bench bench;
} benches[] = {{"uncontended", bench_uncontended}, {"processes", bench_processes}, {"sessions", bench_sessions},
               {"waiters", bench_waiters},         {"handoff", bench_handoff},     {"overload", bench_overload}};

int main(int argc, char **argv) {
    if (argc == 9)
        for (size_t i = 0; i < sizeof benches / sizeof *benches; i++)
            if (strcmp(argv[1], benches[i].name) == 0)
                return stage_run(argv + 2, (uint32_t)atoi(argv[7]), benches[i].bench, atol(argv[8]));
    fprintf(stderr, "usage: bench_core NAME HOST PORT USER PASSWORD DATABASE SESSIONS ROUNDS; NAME is one of");
    for (size_t i = 0; i < sizeof benches / sizeof *benches; i++)
        fprintf(stderr, " %s", benches[i].name);
    fprintf(stderr, "\n");
    return 2;
}

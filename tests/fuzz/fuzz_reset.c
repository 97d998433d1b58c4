/* SPDX-License-Identifier: MIT
 * What the server answers to a reset, in any pieces: reset.c must stay within its bytes, come to an end, and never call
 * a session reset that is not (I5): DONE only after an OK to each command, with the status that it was to reach.
 */
#include "fuzz.h"

#include "handshake.h"
#include "reset.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct input in = {data, data + size};
    uint8_t head = input_u8(&in), packet[DBP_RESET_COMMAND_MAX];
    bool autocommit = head & 1u;
    struct dbp_pool_spec spec = {
        .database = "shop", .charset = "utf8mb4", .init_sql = "SET a=1\0SELECT 2", .autocommit = autocommit};
    struct dbp_reset *reset = malloc(sizeof *reset); /* of its own, for the address sanitizer */

    FUZZ_CHECK(reset);
    dbp_reset_init(reset, (enum dbp_reset_kind)(head / 2 % 4), autocommit, (uint16_t)(head / 8 & 1),
                   (uint32_t)(head / 8) << 16, "utf8mb4_general_ci");
    for (uint32_t commands = 0;;) {
        enum dbp_reset_step step = dbp_reset_step(reset);
        if (step == DBP_RESET_DONE) {
            FUZZ_CHECK(commands > 0);
            FUZZ_CHECK(!(reset->status & DBP_STATUS_IN_TRANS));
            FUZZ_CHECK(((reset->status & DBP_STATUS_AUTOCOMMIT) != 0) == autocommit);
            break;
        }
        if (step == DBP_RESET_FAILED)
            break;
        if (step == DBP_RESET_SEND) {
            size_t n = dbp_reset_command(reset, &spec, packet);
            FUZZ_CHECK(n > DBP_PACKET_HEAD && n <= sizeof packet && dbp_reset_step(reset) == DBP_RESET_READ);
            FUZZ_CHECK(++commands < 100);
            continue;
        }
        if (in.p == in.end)
            break;
        size_t n;
        const uint8_t *bytes = input_bytes(&in, 1024, &n);
        if (n > 0)
            dbp_reset_feed(reset, &spec, bytes, n);
    }
    free(reset);
    return 0;
}

size_t fuzz_seed(unsigned i, uint8_t *buf) {
    struct output out = {buf, 0};
    uint8_t packet[64];

    if (i >= 12)
        return 0;
    output_u8(&out, (uint8_t)i); /* kind and baseline */
    for (unsigned answer = 0; answer < 4; answer++) {
        bool on = ((i + answer) & 1u) != 0;
        size_t n = answer == 3 ? dbp_build_err(packet, sizeof packet, 1, 1105, "HY000", "no")
                               : dbp_build_ok(packet, sizeof packet, 1, on ? DBP_STATUS_AUTOCOMMIT : 0);
        size_t cut = i < 6 ? n : 5; /* whole, or in two pieces */
        output_bytes(&out, packet, cut);
        if (cut < n)
            output_bytes(&out, packet + cut, n - cut);
    }
    return out.n;
}

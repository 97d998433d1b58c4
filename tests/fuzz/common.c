/* SPDX-License-Identifier: MIT
 * What all harnesses share: see fuzz.h.
 */
#include "fuzz.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void fuzz_fail(const char *what, const char *file, int line) {
    fprintf(stderr, "%s:%d: does not hold: %s\n", file, line, what);
    abort();
}

static uint64_t input_int(struct input *in, unsigned bytes) {
    uint64_t v = 0;

    for (unsigned i = 0; i < bytes && in->p < in->end; i++)
        v |= (uint64_t)*in->p++ << (8 * i);
    return v;
}

uint8_t input_u8(struct input *in) {
    return (uint8_t)input_int(in, 1);
}

uint16_t input_u16(struct input *in) {
    return (uint16_t)input_int(in, 2);
}

uint32_t input_u32(struct input *in) {
    return (uint32_t)input_int(in, 4);
}

uint64_t input_u64(struct input *in) {
    return input_int(in, 8);
}

const uint8_t *input_bytes(struct input *in, size_t max, size_t *np) {
    size_t n = input_u8(in), left = (size_t)(in->end - in->p);
    const uint8_t *at = in->p;

    if (n & 0x80u)
        n = (n & 0x7fu) * 16u;
    n = n < left ? n : left;
    n = n < max ? n : max;
    in->p += n;
    *np = n;
    return at;
}

static void output_int(struct output *out, uint64_t v, unsigned bytes) {
    for (unsigned i = 0; i < bytes; i++)
        if (out->n < FUZZ_INPUT_MAX)
            out->p[out->n++] = (uint8_t)(v >> (8 * i));
}

void output_u8(struct output *out, uint8_t v) {
    output_int(out, v, 1);
}

void output_u16(struct output *out, uint16_t v) {
    output_int(out, v, 2);
}

void output_u32(struct output *out, uint32_t v) {
    output_int(out, v, 4);
}

void output_u64(struct output *out, uint64_t v) {
    output_int(out, v, 8);
}

void output_bytes(struct output *out, const void *data, size_t n) {
    size_t padded = n < 0x80u ? n : (n + 15u) / 16u * 16u;

    output_u8(out, (uint8_t)(n < 0x80u ? n : 0x80u | padded / 16u));
    for (size_t i = 0; i < padded; i++)
        output_u8(out, i < n ? ((const uint8_t *)data)[i] : 0);
}

int fuzz_next_fd(void) {
    int fd = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3);

    close(fd);
    return fd;
}

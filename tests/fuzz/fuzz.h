/* SPDX-License-Identifier: MIT
 * What a harness is: one function that takes any bytes, and one that names its seeds. Built twice: with clang's
 * libFuzzer (DBPOOL_FUZZ=ON, lib_fuzz_*), and with driver.c as a plain program that mutates the seeds by itself, so
 * that every compiler and every sanitizer has a form of it.
 *
 * A harness aborts when something is wrong that no sanitizer sees. It may not depend on anything but its bytes: what
 * it found must be found again.
 */
#ifndef DBPOOL_FUZZ_H
#define DBPOOL_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FUZZ_INPUT_MAX 4096u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size); /* the name is libFuzzer's */

/* The i-th seed, made by the encoders of core where there are any; returns its length, 0 after the last. buf has
 * FUZZ_INPUT_MAX bytes. */
size_t fuzz_seed(unsigned i, uint8_t *buf);

/* Aborts with a word about it; in every build type. */
#define FUZZ_CHECK(condition)                          \
    do                                                 \
        if (!(condition))                              \
            fuzz_fail(#condition, __FILE__, __LINE__); \
    while (0)
_Noreturn void fuzz_fail(const char *what, const char *file, int line);

/* ---- reading an input ---- */

struct input {
    const uint8_t *p, *end;
};

/* Zeros after the end. */
uint8_t input_u8(struct input *in);
uint16_t input_u16(struct input *in);
uint32_t input_u32(struct input *in);
uint64_t input_u64(struct input *in);
/* At most max bytes, as many as a length byte says; 16 times as many when its high bit is set; borrowed. */
const uint8_t *input_bytes(struct input *in, size_t max, size_t *np);

/* ---- writing a seed ---- */

struct output {
    uint8_t *p;
    size_t n;
};

void output_u8(struct output *out, uint8_t v);
void output_u16(struct output *out, uint16_t v);
void output_u32(struct output *out, uint32_t v);
void output_u64(struct output *out, uint64_t v);
/* As input_bytes reads it back; n at most 2032, above 127 filled up to 16 with zeros. */
void output_bytes(struct output *out, const void *data, size_t n);

/* ---- keeping count ---- */

/* The number that the next fd would get: the same before and after means that none was left open. */
int fuzz_next_fd(void);

#endif

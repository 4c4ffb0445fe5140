/* SPDX-License-Identifier: MIT */
/*
 * fuzz.h - what the fuzz targets share. Each target, fuzz_X.c, drives the
 * helper's X.c through the function that libFuzzer calls; fuzz.sh has renamed
 * the system calls of that X.c to fuzz_..., which the target defines: the
 * input decides what they answer, and the target checks what they are asked
 * for against a model of its own.
 *
 * A target must never make the system call itself, keep anything from one
 * input to the next, or take what it expects from the source that it drives.
 */
#ifndef FUZZ_H
#define FUZZ_H

#include "../../supervisor.h"

#include <setjmp.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

/* What is left of the input. Behind its end there are zeros. */
void input_begin(const uint8_t *bytes, size_t size);
size_t input_take(void *to, size_t size);
uint32_t input_number(size_t bytes);

/* exit() goes there, with the status and 1 added. */
extern jmp_buf fuzz_end;
void fuzz_exit(int status) __attribute__((noreturn));

#define MUST(condition)                                                        \
    ((condition) ? (void)0 : must_fail(#condition, __FILE__, __LINE__))
void must_fail(const char *what, const char *file, int line)
    __attribute__((noreturn));

#endif

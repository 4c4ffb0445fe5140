/* SPDX-License-Identifier: MIT */
/*
 * main.c - a fuzz target as an ordinary program, for AFL++ and for any
 * compiler: runs the target once for each file that is named, or else for
 * what is on standard input.
 *
 * It must never go on after a file that it could not read.
 */
#include "fuzz.h"

#include <stdio.h>
#include <stdlib.h>

static void file_run(FILE *file)
{
    static uint8_t bytes[1 << 20];
    size_t size = fread(bytes, 1, sizeof(bytes), file);
    /* Of the exact size, so that a sanitizer sees its end. */
    uint8_t *copy = malloc(size + 1);

    MUST(!ferror(file) && copy != NULL);
    for (size_t i = 0; i < size; i++)
        copy[i + 1] = bytes[i];
    LLVMFuzzerTestOneInput(copy + 1, size);
    free(copy);
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        FILE *file = fopen(argv[i], "rb");

        MUST(file != NULL);
        file_run(file);
        fclose(file);
    }
    if (argc < 2)
        file_run(stdin);
    return EXIT_SUCCESS;
}

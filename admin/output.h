/* SPDX-License-Identifier: MIT */
/*
 * output.h - what the administrator's client writes: what it found out, as
 * words or as JSON, and messages.
 *
 * It must never know what it writes about.
 */
#ifndef OUTPUT_H
#define OUTPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define CLIENT "qemu-pr-client"

/*
 * Whoever has found out something says it in both ways: with words(), which
 * writes nothing if JSON is wanted, and with json_...(), which write nothing
 * otherwise.
 */
struct output {
    FILE *out;
    bool is_json;
    bool is_first;  /* nothing stands before it in its object or list */
    char *document; /* JSON is printed once it is whole, or not at all */
    size_t size;
};

void output_begin(struct output *, bool is_json);
/* Prints the document, if it is one and whole. */
void output_end(struct output *, bool is_whole);
__attribute__((format(printf, 2, 3))) void words(struct output *,
                                                 const char *format, ...);
/* name is NULL in a list; bracket is one of {, [ and }, ]. */
void json_begin(struct output *, const char *name, char bracket);
void json_end(struct output *, char bracket);
/* text may be NULL. */
void json_text(struct output *, const char *name, const char *text);
void json_number(struct output *, const char *name, uint64_t);
/* A reservation key, which is more than a JSON number can be: "0xa11ce". */
void json_key(struct output *, const char *name, uint64_t);
void json_bool(struct output *, const char *name, bool);

/* Messages: to standard error, each a line that begins with our name. */
__attribute__((format(printf, 1, 2))) void say(const char *format, ...);
__attribute__((format(printf, 2, 3), noreturn)) void die(int status,
                                                         const char *format,
                                                         ...);
/*
 * A stream that is closed must not become the disk, which what is printed
 * would then be written to, or the helper's socket.
 */
void streams_open(void);
__attribute__((noreturn)) void finish(int status);

#endif

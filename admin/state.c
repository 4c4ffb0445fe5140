/* SPDX-License-Identifier: MIT */
/*
 * state.c - reads who is registered and what is reserved, and says it in one
 * line.
 *
 * It must never change anything, or take a list that was cut off for a whole
 * one.
 */
#include "state.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { KEYS_SHOWN = 8 };

static int key_compare(const void *a, const void *b)
{
    const uint64_t *one = a, *other = b;

    return *one < *other ? -1 : *one > *other;
}

static int nonsense(const char *command, const struct reply *reply)
{
    say("%s: what the disk answered makes no sense (%zu bytes)", command,
        reply->size);
    return EXIT_MALFORMED;
}

int state_read(struct helper *helper, int fd, struct state *state)
{
    struct reply reply;
    struct list list;
    int exit_status = read_in(helper, command_find("keys"), fd, &reply);

    memset(state, 0, sizeof(*state));
    if (exit_status != EXIT_GOOD)
        return exit_status;
    if (!decode_list(&list, reply.payload, reply.size))
        return nonsense("keys", &reply);
    state->generation = list.generation;
    while (state->count < KEYS_MOST
           && decode_key(&list, &state->keys[state->count]))
        state->count++;
    state->is_whole = list.at == list.said;
    qsort(state->keys, state->count, sizeof(state->keys[0]), key_compare);
    exit_status = read_in(helper, command_find("reservation"), fd, &reply);
    if (exit_status != EXIT_GOOD)
        return exit_status;
    if (!decode_list(&list, reply.payload, reply.size))
        return nonsense("reservation", &reply);
    state->is_reserved = decode_reservation(&list, &state->reservation);
    return list.at == list.said ? EXIT_GOOD : nonsense("reservation", &reply);
}

bool state_has(const struct state *state, uint64_t key)
{
    return bsearch(&key, state->keys, state->count, sizeof(key), key_compare)
           != NULL;
}

const char *state_reserved(const struct state *state, char text[RESERVED_SIZE])
{
    const struct reservation *reservation = &state->reservation;
    const char *type = decode_type(reservation->type);

    snprintf(text, RESERVED_SIZE, "key 0x%" PRIx64 ", %s (type %u)",
             reservation->key, type != NULL ? type : "unknown",
             reservation->type);
    return text;
}

void state_print(const struct state *state)
{
    char text[RESERVED_SIZE];
    unsigned i, times, shown = 0;

    if (state->count == 0 && state->is_whole)
        printf("nobody is registered");
    else if (state->count == 0)
        printf("some are registered, whose keys have not come");
    else
        printf("%u registered:", state->count);
    for (i = 0; i < state->count && shown < KEYS_SHOWN; i += times, shown++) {
        for (times = 1; i + times < state->count
                        && state->keys[i + times] == state->keys[i];)
            times++;
        printf("%s 0x%" PRIx64, i > 0 ? "," : "", state->keys[i]);
        if (times > 1)
            printf(" (%u times)", times);
    }
    if (i < state->count || (i > 0 && !state->is_whole))
        printf(", and more");
    if (state->is_reserved)
        printf("; reserved by %s", state_reserved(state, text));
    else
        printf("; not reserved");
    printf("; generation %" PRIu32, state->generation);
}

/* SPDX-License-Identifier: MIT */
/*
 * commands.c - one PERSISTENT RESERVE IN or OUT as the command line asks for
 * it, and what it has left behind.
 *
 * It must never send PERSISTENT RESERVE OUT without being asked to or twice,
 * or let what it reads afterwards change what the command came to.
 */
#include "decode.h"
#include "show.h"
#include "state.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>

/* How long it may take to see what a command has left behind. */
#define STATE_WITHIN (10 * SECOND)

int device_open(const char *path, int mode)
{
    int fd = open(path, mode | O_NONBLOCK | O_CLOEXEC);

    if (fd < 0)
        die(EXIT_NO_DEVICE, "cannot open %s: %s", path, strerror(errno));
    return fd;
}

int payload_print(struct output *output, const struct command *command,
                  const struct reply *reply)
{
    if (show_payload(output, command->action, reply->payload, reply->size, NULL,
                     NULL))
        return EXIT_GOOD;
    say("%s: what the disk answered makes no sense (%zu bytes)", command->name,
        reply->size);
    return EXIT_MALFORMED;
}

int read_in_print(struct helper *helper, const struct arguments *arguments)
{
    const struct command *command = arguments->command;
    struct output output;
    struct reply reply;
    int status = read_in(helper, command,
                         device_open(arguments->device, O_RDONLY), &reply);

    if (status != EXIT_GOOD)
        return status;
    output_begin(&output, arguments->given & JSON);
    json_begin(&output, NULL, '{');
    json_text(&output, "device", arguments->device);
    status = payload_print(&output, command, &reply);
    json_end(&output, '}');
    output_end(&output, status == EXIT_GOOD);
    return status;
}

/* Returns the size of the parameter list, SPC-4 6.16.3 and 6.16.4. */
static size_t list_set(uint8_t *list, const struct arguments *arguments)
{
    unsigned given = arguments->given;

    be64_put(list, arguments->key);
    be64_put(list + 8, arguments->action_key);
    if (arguments->command->action != REGISTER_AND_MOVE) {
        list[LIST_FLAGS] = given & POWER_LOSS ? APTPL : 0;
        return LIST_SIZE;
    }
    list[MOVE_FLAGS] = (uint8_t)((given & POWER_LOSS ? APTPL : 0)
                                 | (given & UNREGISTER ? UNREG : 0));
    be16_put(list + MOVE_PORT, arguments->port);
    be32_put(list + MOVE_LENGTH, (uint32_t)arguments->initiator_size);
    memcpy(list + LIST_SIZE, arguments->initiator, arguments->initiator_size);
    return LIST_SIZE + arguments->initiator_size;
}

/* Says what the state has to do with how the command ended. */
static void explain(const struct arguments *arguments, int status,
                    const struct state *state)
{
    uint8_t action = arguments->command->action;
    char reserved[RESERVED_SIZE];
    const char *effect = decode_effect(state->reservation.type);

    state_reserved(state, reserved);
    if (status == EXIT_RESERVATION_CONFLICT && !state_has(state, arguments->key)
        && state->is_whole && (arguments->command->needs & KEY))
        say("nobody at all is registered with key 0x%" PRIx64, arguments->key);
    if (action == RESERVE && status == EXIT_RESERVATION_CONFLICT
        && state->is_reserved)
        say("in the way is the reservation of %s: %s", reserved,
            effect != NULL ? effect : "nobody knows what that is");
    if (action == RELEASE && status == EXIT_GOOD && state->is_reserved)
        say("nothing was released: this host does not hold the reservation "
            "of %s",
            reserved);
}

/* Ends what is said of a command. Its exit status stays what it is. */
static void state_show(struct helper *helper, const struct arguments *arguments,
                       int fd, int status)
{
    struct state state;

    if (helper->timeout > STATE_WITHIN)
        helper->timeout = STATE_WITHIN;
    if (state_read(helper, fd, &state) != EXIT_GOOD) {
        say("what is registered and reserved now cannot be seen");
        return;
    }
    explain(arguments, status, &state);
    printf("Now ");
    state_print(&state);
    putchar('\n');
}

/*
 * Sets whether nothing is reserved, which RELEASE does not tell from what it
 * has released; what the disk makes of the question is not said. Returns the
 * exit status if there is no helper to go on with.
 */
static int is_free_ask(struct helper *helper, int fd, bool *is_free)
{
    const uint8_t cdb[PROTOCOL_CDB_SIZE] = {
        PERSISTENT_RESERVE_IN, READ_RESERVATION, [7] = PROTOCOL_DATA_MAX >> 8
    };
    struct reply reply;
    struct list list;
    int status = helper_ask(helper, fd, cdb, NULL, 0, &reply);

    *is_free = status == EXIT_GOOD && reply.status == GOOD
               && decode_list(&list, reply.payload, reply.size)
               && list.said == 0;
    return status;
}

int write_out(struct helper *helper, const struct arguments *arguments)
{
    const struct command *command = arguments->command;
    int fd = device_open(arguments->device, O_RDWR);
    uint8_t cdb[PROTOCOL_CDB_SIZE] = { PERSISTENT_RESERVE_OUT, command->action,
                                       arguments->type };
    uint8_t list[LIST_SIZE + TRANSPORT_ID_MOST] = { 0 };
    size_t size = list_set(list, arguments);
    bool was_free = false;
    struct reply reply;
    int status = EXIT_GOOD;

    be16_put(cdb + 7, (uint16_t)size);
    if (command->action == RELEASE)
        status = is_free_ask(helper, fd, &was_free);
    if (status == EXIT_GOOD)
        status = helper_ask(helper, fd, cdb, list, size, &reply);
    if (status != EXIT_GOOD)
        return status;
    status = outcome_print(command, fd, cdb, &reply);
    if (status == EXIT_GOOD && was_free)
        say("nothing was released: nothing was reserved");
    if (status == EXIT_UNIT_ATTENTION)
        say("the command was not carried out: see what has changed, and if "
            "it is still wanted");
    if (status != EXIT_INVALID_OPCODE)
        state_show(helper, arguments, fd, status);
    return status;
}

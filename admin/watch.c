/* SPDX-License-Identifier: MIT */
/*
 * watch.c - a line, with the time, whenever who is registered or what is
 * reserved has changed.
 *
 * It must never send a command that changes anything, or end because the disk
 * cannot be read for a while, as when a cluster fails over.
 */
#include "state.h"

#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <time.h>

/* How often it looks: PRGENERATION does not count reservations. */
enum { EVERY_S = 1 };

static void time_print(void)
{
    char text[32] = "";
    time_t now = time(NULL);
    struct tm local;

    if (localtime_r(&now, &local) != NULL)
        strftime(text, sizeof(text), "%Y-%m-%d %H:%M:%S", &local);
    printf("%s ", text);
}

/* Says which keys have come; with the states the other way round, gone. */
static void keys_print(const struct state *before, const struct state *now,
                       const char *what)
{
    unsigned i, j = 0;

    for (i = 0; i < now->count; i++) {
        while (j < before->count && before->keys[j] < now->keys[i])
            j++;
        if (j < before->count && before->keys[j] == now->keys[i]) {
            j++;
            continue;
        }
        printf(" %s 0x%" PRIx64 ";", what, now->keys[i]);
    }
}

static bool reservation_is_same(const struct state *a, const struct state *b)
{
    return a->is_reserved == b->is_reserved
           && a->reservation.key == b->reservation.key
           && a->reservation.type == b->reservation.type;
}

static void change_print(const struct state *before, const struct state *now)
{
    time_print();
    /* What has not come may be there. */
    if (before->is_whole && now->is_whole) {
        keys_print(before, now, "registered");
        keys_print(now, before, "gone");
    }
    if (!reservation_is_same(before, now))
        printf(" %s;", !before->is_reserved ? "reserved"
                       : !now->is_reserved  ? "released"
                                            : "reserved anew");
    printf(" now ");
    state_print(now);
    putchar('\n');
}

/* The next command may do better, if the helper can still be asked. */
static bool is_passing(int exit_status)
{
    return exit_status != EXIT_NO_HELPER && exit_status != EXIT_NO_ANSWER
           && exit_status != EXIT_MALFORMED;
}

int watch(struct helper *helper, const struct arguments *arguments)
{
    static struct state states[2];
    struct state *before = &states[0], *now = &states[1], *other;
    int fd = device_open(arguments->device, O_RDONLY), exit_status;
    bool is_first = true;

    for (;;) {
        exit_status = state_read(helper, fd, now);
        if (exit_status != EXIT_GOOD && (is_first || !is_passing(exit_status)))
            return exit_status;
        if (exit_status == EXIT_GOOD
            && (is_first || before->generation != now->generation
                || !reservation_is_same(before, now))) {
            change_print(is_first ? now : before, now);
            is_first = false;
            other = before;
            before = now;
            now = other;
        }
        if (fflush(stdout) != 0)
            return EXIT_OTHER;
        nanosleep(&(struct timespec){ .tv_sec = EVERY_S }, NULL);
    }
}

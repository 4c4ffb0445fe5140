/* SPDX-License-Identifier: MIT */
/*
 * check.c - is all there that a virtual machine needs to use reservations on
 * this device? What is in the way is said in words, each with what to do about
 * it and an exit status of its own.
 *
 * It must never change anything, or say that nothing is wrong while it has not
 * seen all of it.
 */
#include "check.h"
#include "show.h"
#include "status.h"
#include "surroundings.h"

#include <fcntl.h>
#include <inttypes.h>
#include <string.h>

/* A command that takes longer is a finding. */
#define SLOW (5 * SECOND)

static void helper_show(struct check *check)
{
    const struct helper *helper = check->helper;

    words(&check->output,
          "The helper at %s answers: process %ld of user %lu, in %" PRId64
          " us.\n",
          check->arguments->socket_path, (long)helper->sender.pid,
          (unsigned long)helper->sender.uid, helper->took);
    if (helper->maker.pid != helper->sender.pid)
        words(&check->output,
              "The socket was made by process %ld of user %lu.\n",
              (long)helper->maker.pid, (unsigned long)helper->maker.uid);
    json_text(&check->output, "device", check->arguments->device);
    json_begin(&check->output, "helper", '{');
    json_text(&check->output, "socket", check->arguments->socket_path);
    json_number(&check->output, "pid", (uint64_t)helper->sender.pid);
    json_number(&check->output, "uid", helper->sender.uid);
    json_number(&check->output, "microseconds", (uint64_t)helper->took);
    json_end(&check->output, '}');
}

/* The helper opens the paths of a map by itself, and has to see them. */
static void paths_are_seen(struct check *check)
{
    pid_t pid = check->helper->sender.pid;
    bool is_elsewhere = surroundings_is_elsewhere(pid);
    unsigned i;

    for (i = 0; check->identity.is_map && i < check->identity.count; i++) {
        const struct path *path = &check->identity.paths[i];
        enum sees sees = SEES_UNKNOWN;

        if (path->is_ours)
            sees = surroundings_sees(pid, path->name, path->number);
        if (sees == SEES_NOT || sees == SEES_OTHER)
            finding(check, EXIT_NOT_VISIBLE,
                    is_elsewhere
                        ? "give its container the host's /dev; if libvirt "
                          "started it, start its virtual machine again"
                        : "see if udev runs, and makes it",
                    "the helper (process %ld%s) has %s /dev/%s, and cannot "
                    "use that path of the map",
                    (long)pid,
                    is_elsewhere ? ", in a mount namespace of its own" : "",
                    sees == SEES_NOT ? "no" : "another device as", path->name);
    }
}

/* Finds why the helper had no command carried out, if that is its fault. */
static void helper_judge(struct check *check, int exit_status)
{
    const char *why = NULL;

    if (exit_status == EXIT_ABORTED_COMMAND && check->identity.count > 0)
        why = surroundings_no_rawio(check->helper->sender.pid);
    if (why != NULL)
        finding(check, EXIT_NO_RAWIO,
                "without it the kernel sends none of its commands",
                "the helper (process %ld) %s", (long)check->helper->sender.pid,
                why);
    if (exit_status == EXIT_GOOD || exit_status == EXIT_ABORTED_COMMAND)
        paths_are_seen(check);
}

/* Finds what is missing that a cluster cannot do without. */
static void capabilities_judge(struct check *check, const struct reply *reply)
{
    unsigned supported = decode_types_supported(reply->payload, reply->size);

    if (supported == 0 || supported >> WRITE_EXCLUSIVE_REGISTRANTS_ONLY & 1)
        return;
    finding(check, EXIT_FINDING, "ask who sells it for newer firmware",
            "the disk does not have %s, which Windows and fence_scsi use",
            decode_type(WRITE_EXCLUSIVE_REGISTRANTS_ONLY));
}

/*
 * What ours_find() cannot tell of a map: a path that holds may be gone, with
 * its port; and the names that sysfs has are of no use if the disk knows none.
 */
static void map_find(struct check *check, const struct registration *holder)
{
    struct path *path, *paths = check->identity.paths;

    for (path = paths; path < paths + check->identity.count; path++)
        if (check->registered != OURS)
            path->initiator[0] = '\0';
        else if (path->is_ours && holder->key == check->key
                 && path_is_initiator(path, holder))
            check->holder = OURS;
    if (check->registered != OURS)
        check->registered = check->holder = PERHAPS_OURS;
}

/* Is this host among the registered, through this device, and the holder? */
static void ours_find(struct check *check)
{
    struct registration registration, holder = { .key = 0 };
    struct list list;
    unsigned i;

    check->registered = check->holder = PERHAPS_OURS;
    if (!decode_list(&list, check->full.payload, check->full.size))
        return;
    check->is_whole = list.came == list.said;
    if (check->is_whole)
        check->registered = check->holder = NOT_OURS;
    while (decode_registration(&list, &registration)) {
        enum whose whose = check->identity.count == 0 ? PERHAPS_OURS : NOT_OURS;

        for (i = 0; i < check->identity.count; i++) {
            const struct path *path = &check->identity.paths[i];
            enum whose its = path->is_ours ? path_whose(path, &registration)
                                           : NOT_OURS;

            if (its > whose)
                whose = its;
        }
        if (whose > check->registered) {
            check->registered = whose;
            check->key = registration.key;
        }
        if (registration.is_holder && whose > check->holder)
            check->holder = whose;
        if (registration.is_holder)
            holder = registration;
    }
    if (check->identity.is_map)
        map_find(check, &holder);
}

/* A word of a command for a shell, or what stands for it. */
static const char *shell_word(const char *text, const char *instead)
{
    size_t length = strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789"
                                 "ABCDEFGHIJKLMNOPQRSTUVWXYZ%+,-./:=@_");

    return length < 110 && text[length] == '\0' ? text : instead;
}

/* Says what the reservation keeps a virtual machine of this host from. */
static void reservation_judge(struct check *check)
{
    static const char *const kept_from[TYPE_MOST + 1] = {
        [1] = "cannot write it",
        [3] = "can neither read nor write it",
        [5] = "cannot write it until they register",
        [6] = "can neither read nor write it until they register",
        [7] = "cannot write it until they register",
        [8] = "can neither read nor write it until they register",
    };
    const struct reservation *held = &check->reservation;
    bool is_exclusive = held->type == WRITE_EXCLUSIVE
                        || held->type == EXCLUSIVE_ACCESS;
    enum whose whose = is_exclusive ? check->holder : check->registered;
    const char *type = decode_type(held->type), *from = kept_from[held->type];
    const char *device = shell_word(check->arguments->device, "DEVICE");
    const char *socket_path = check->arguments->socket_path;
    bool is_usual = strcmp(socket_path, PROTOCOL_SOCKET) == 0;
    char client[160], cure[CURE_SIZE];

    if (!check->is_reserved || whose == OURS)
        return;
    snprintf(client, sizeof(client), CLIENT "%s%s", is_usual ? "" : " -k ",
             is_usual ? "" : shell_word(socket_path, "SOCKET"));
    /*
     * The cure takes away what that cluster has left, and nothing else: a
     * virtual machine of this host keeps its key.
     */
    if (check->registered == OURS && check->key == held->key)
        snprintf(cure, sizeof(cure),
                 "that is the key of a virtual machine of this host, which "
                 "can preempt it, and so take the reservation over");
    else if (check->registered == OURS)
        snprintf(cure, sizeof(cure),
                 "if its cluster is dead: %s preempt --key=%" PRIx64
                 " --victim=%" PRIx64 " --type=%u %s && "
                 "%s release --key=%" PRIx64 " --type=%u %s",
                 client, check->key, held->key, held->type, device, client,
                 check->key, held->type, device);
    else
        snprintf(cure, sizeof(cure),
                 "if its cluster is dead%s: "
                 "%s register-ignore --new-key=1 %s && "
                 "%s preempt --key=1 --victim=%" PRIx64 " --type=%u %s && "
                 "%s register --key=1 --new-key=0 %s",
                 check->registered == NOT_OURS
                     ? ""
                     : ", and nobody here is registered",
                 client, device, client, held->key, held->type, device, client,
                 device);
    finding(check, EXIT_RESERVED, cure,
            "reserved by %s 0x%" PRIx64 ", %s: virtual machines here %s%s",
            whose == NOT_OURS ? "somebody else, key" : "key", held->key,
            type != NULL ? type : "of an unknown type",
            from != NULL ? from : "may be kept out",
            whose == NOT_OURS
                ? ""
                : ", unless it is one of them, which cannot be known here");
}

/* Sends a PERSISTENT RESERVE IN, and shows it as a member of its own. */
static int member_read(struct check *check, const char *name, int fd,
                       struct reply *reply)
{
    const struct command *command = command_find(name);
    int exit_status = read_in(check->helper, command, fd, reply);

    if (exit_status != EXIT_GOOD)
        return exit_status;
    json_begin(&check->output, name, '{');
    exit_status = command->action == READ_FULL_STATUS
                      ? registrations_show(&check->output, &check->identity,
                                           reply)
                      : payload_print(&check->output, command, reply);
    json_end(&check->output, '}');
    return exit_status;
}

/*
 * Asks the disk for all. Ends at the first command that fails, and returns
 * the exit status.
 */
static int disk_check(struct check *check, int fd)
{
    struct reply reply;
    struct list list;
    int exit_status = read_in(check->helper, command_find("keys"), fd, &reply);

    identity_find(&check->identity, fd);
    helper_judge(check, exit_status);
    if (exit_status != EXIT_GOOD)
        return exit_status;
    words(&check->output, "It serves %s: READ KEYS takes %" PRId64 " us.\n",
          check->arguments->device, reply.took);
    json_number(&check->output, "read_keys_microseconds", (uint64_t)reply.took);
    identity_show(&check->output, &check->identity);
    if (reply.took > SLOW)
        finding(check, EXIT_FINDING, "see the kernel's log",
                "that is slow: virtual machines give up after 30 to 60 "
                "seconds");
    /* SPC-2 has neither this one nor READ FULL STATUS. */
    exit_status = member_read(check, "capabilities", fd, &reply);
    if (exit_status == EXIT_GOOD)
        capabilities_judge(check, &reply);
    if (exit_status == EXIT_GOOD)
        exit_status = member_read(check, "status", fd, &check->full);
    if (exit_status == EXIT_ILLEGAL_REQUEST) {
        check->full.size = 0;
        exit_status = member_read(check, "keys", fd, &reply);
    }
    if (exit_status == EXIT_GOOD)
        exit_status = member_read(check, "reservation", fd, &reply);
    if (exit_status == EXIT_GOOD) {
        decode_list(&list, reply.payload, reply.size);
        check->is_reserved = decode_reservation(&list, &check->reservation);
    }
    return exit_status;
}

static int device_check(struct check *check)
{
    char whole[WHOLE_SIZE];
    int fd = device_open(check->arguments->device, O_RDONLY);
    int exit_status;

    identity_whole(fd, whole);
    if (whole[0] != '\0') {
        finding(check, EXIT_PARTITION, "reservations are of whole disks",
                "%s is a partition; name %s", check->arguments->device, whole);
        return EXIT_GOOD;
    }
    exit_status = disk_check(check, fd);
    if (exit_status != EXIT_GOOD)
        return exit_status;
    ours_find(check);
    if (check->identity.is_map)
        check_map(check);
    reservation_judge(check);
    if (check->count == 0)
        words(&check->output, "Nothing is wrong so far; no command was tried "
                              "that changes anything.\n");
    return exit_status;
}

int check(struct helper *helper, const struct arguments *arguments)
{
    static struct check check;
    int exit_status;

    check.helper = helper;
    check.arguments = arguments;
    output_begin(&check.output, arguments->given & JSON);
    json_begin(&check.output, NULL, '{');
    helper_show(&check);
    exit_status = device_check(&check);
    /* What it found says more than how a command failed. */
    if (check.count > 0
        && (exit_status == EXIT_GOOD || exit_status == EXIT_ABORTED_COMMAND))
        exit_status = check.findings[0].exit_status;
    findings_show(&check, exit_status);
    json_end(&check.output, '}');
    output_end(&check.output, true);
    return exit_status;
}

/* SPDX-License-Identifier: MIT */
/*
 * status.c - who is registered: which of them is this host and by which path,
 * which keys and initiators are there more than once, and who has left.
 *
 * A registration names an initiator and a port of the target. A disk does not
 * say who is logged in, so that of another host's it is not known; of this
 * host's it is, as sysfs has its paths.
 *
 * It must never take an initiator for this host because of its key, or for
 * another host because sysfs has no name for ours.
 */
#include "status.h"
#include "show.h"

#include <fcntl.h>

struct registrants {
    const struct identity *identity;
    const struct reply *full;
};

/* How much there is of the same kind as one registration. */
struct alike {
    unsigned keys;     /* registrations of its key */
    unsigned sessions; /* of its initiator at its port */
    unsigned paths;    /* of this host from that initiator to that port */
};

static struct alike alike_count(const struct registrants *of,
                                const struct registration *shown)
{
    struct alike alike = { 0, 0, 0 };
    struct registration other;
    struct list list;
    unsigned i;

    decode_list(&list, of->full->payload, of->full->size);
    while (decode_registration(&list, &other)) {
        alike.keys += other.key == shown->key;
        alike.sessions += other.port == shown->port
                          && other.is_for_all_ports == shown->is_for_all_ports
                          && decode_is_same(&other, shown);
    }
    for (i = 0; i < of->identity->count; i++)
        alike.paths += path_whose(&of->identity->paths[i], shown) == OURS;
    return alike;
}

/* Finds the path that it comes from, or would; and how sure that is. */
static enum whose whose_find(const struct identity *identity,
                             const struct registration *shown,
                             const struct path **path, bool *is_initiator)
{
    enum whose whose = NOT_OURS;
    unsigned i;

    *path = NULL;
    *is_initiator = false;
    for (i = 0; i < identity->count; i++) {
        enum whose its = path_whose(&identity->paths[i], shown);

        *is_initiator = *is_initiator
                        || path_is_initiator(&identity->paths[i], shown);
        if (its > whose) {
            whose = its;
            *path = &identity->paths[i];
        }
    }
    return whose;
}

static void alike_show(struct output *output, const struct alike *alike,
                       bool is_this_host)
{
    if (alike->keys > 1)
        words(output, ", one of %u with this key", alike->keys);
    if (alike->sessions > 1 && !is_this_host)
        words(output,
              ", one of %u of this initiator at this port: of several "
              "sessions, or of some that are no more",
              alike->sessions);
    if (alike->sessions > alike->paths && is_this_host && alike->paths > 0)
        words(output,
              ", one of %u of this initiator at this port, to which this host "
              "has %u path%s: the others are of sessions that are no more",
              alike->sessions, alike->paths, alike->paths == 1 ? "" : "s");
    json_number(output, "same_key", alike->keys);
    json_number(output, "same_initiator_and_port", alike->sessions);
}

/* Is that initiator logged in? JSON's null: not known. */
static void login_show(struct output *output, bool is_this_host,
                       const struct path *path, const struct alike *alike)
{
    if (!is_this_host || (path != NULL && alike->sessions > alike->paths))
        json_text(output, "logged_in", NULL);
    else
        json_bool(output, "logged_in", path != NULL && path->is_used);
}

static void whose_show(struct output *output, const struct registration *shown,
                       void *context)
{
    const struct registrants *of = context;
    const struct path *path;
    bool is_initiator;
    struct alike alike = alike_count(of, shown);
    enum whose whose = whose_find(of->identity, shown, &path, &is_initiator);

    if (alike.paths > 1) /* of one initiator to one port: iSCSI sessions */
        words(output, ", this host by one of %u paths", alike.paths);
    else if (path != NULL && whose == OURS)
        words(output, ", this host by %s", path->name);
    else if (is_initiator)
        words(output, ", this host, which has no path to this port any more");
    else if (path != NULL && whose == PERHAPS_OURS)
        words(output, ", perhaps this host by %s", path->name);
    if (path != NULL && alike.paths == 1 && !path->is_used)
        words(output, ", which is %s", path->state);
    if (whose == PERHAPS_OURS || of->identity->count == 0)
        json_text(output, "this_host", NULL);
    else
        json_bool(output, "this_host", whose == OURS || is_initiator);
    json_text(output, "path",
              path != NULL && alike.paths == 1 ? path->name : NULL);
    login_show(output, whose == OURS || is_initiator, path, &alike);
    alike_show(output, &alike, is_initiator);
}

/* Does sysfs name one of our initiators? */
static bool has_initiator(const struct identity *identity)
{
    unsigned i;

    for (i = 0; i < identity->count; i++)
        if (identity->paths[i].initiator[0] != '\0')
            return true;
    return false;
}

int registrations_show(struct output *output, const struct identity *identity,
                       const struct reply *full)
{
    struct registrants of = { identity, full };

    if (!show_payload(output, READ_FULL_STATUS, full->payload, full->size,
                      whose_show, &of)) {
        say("status: what the disk answered makes no sense (%zu bytes)",
            full->size);
        return EXIT_MALFORMED;
    }
    if (identity->count > 0 && be32_get(full->payload + 4) > 0
        && !has_initiator(identity))
        words(output, "Which of them is this host is not known for sure: sysfs "
                      "has no name for its initiator.\n");
    return EXIT_GOOD;
}

int status_print(struct helper *helper, const struct arguments *arguments)
{
    static struct identity identity;
    struct output output;
    struct reply reply;
    int fd = device_open(arguments->device, O_RDONLY);
    int exit_status = read_in(helper, arguments->command, fd, &reply);

    if (exit_status != EXIT_GOOD)
        return exit_status;
    identity_find(&identity, fd);
    output_begin(&output, arguments->given & JSON);
    json_begin(&output, NULL, '{');
    json_text(&output, "device", arguments->device);
    identity_show(&output, &identity);
    exit_status = registrations_show(&output, &identity, &reply);
    json_end(&output, '}');
    output_end(&output, exit_status == EXIT_GOOD);
    return exit_status;
}

/* SPDX-License-Identifier: MIT */
/*
 * identity.c - asks sysfs which disk a device is, and which initiator and port
 * of the target each path of this host to that disk has.
 *
 * It must never open a device or send it anything, or know what sysfs does not
 * say: a virtual adapter often has no name there.
 */
#include "identity.h"
#include "../sg_io.h"
#include "../sysfs.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

enum { NAME_SIZE = 512, VPD_SIZE = 1024 };

/* Reads a file of sysfs, as far as it fits; returns its size. */
static size_t file_read(const char *name, void *data, size_t size)
{
    int fd = open(name, O_RDONLY | O_CLOEXEC);
    ssize_t length;

    if (fd < 0)
        return 0;
    length = read(fd, data, size);
    close(fd);
    return length > 0 ? (size_t)length : 0;
}

/* Leaves out blanks around it, and what might act on a terminal. */
static void text_set(char *text, size_t size, const void *from, size_t length)
{
    const char *at = from;
    size_t i;

    while (length > 0 && (*at == ' ' || *at == '\0')) {
        at++;
        length--;
    }
    while (length > 0 && strchr(" \n", at[length - 1]) != NULL)
        length--;
    if (length >= size)
        length = size - 1;
    for (i = 0; i < length; i++)
        text[i] = (char)(at[i] >= ' ' && at[i] <= '~' ? at[i] : '?');
    text[length] = '\0';
}

static void line_read(const char *name, char *text, size_t size)
{
    char line[256];

    text_set(text, size, line, file_read(name, line, sizeof(line)));
}

/* Returns where sysfs has a SCSI disk, or a generic SCSI device. */
static const char *directory(const char *name)
{
    return strncmp(name, "sg", 2) == 0 ? "class/scsi_generic" : "block";
}

/* Reads a file of a path's SCSI device. */
static size_t device_read(const struct path *path, const char *file, void *data,
                          size_t size)
{
    char name[NAME_SIZE];

    snprintf(name, sizeof(name), "/sys/%s/%s/device/%s", directory(path->name),
             path->name, file);
    return file_read(name, data, size);
}

static void device_line(const struct path *path, const char *file, char *text,
                        size_t size)
{
    char line[256];

    text_set(text, size, line, device_read(path, file, line, sizeof(line)));
}

/* VPD page 83h, SPC-4 7.8.6: designator 4 of association 1. */
static uint16_t port_find(const struct path *path)
{
    uint8_t page[VPD_SIZE];
    size_t at, size = device_read(path, "vpd_pg83", page, sizeof(page));

    for (at = 4; at + 8 <= size; at += 4 + (size_t)page[at + 3])
        if ((page[at + 1] & 0x3f) == 0x14 && page[at + 3] == 4)
            return be16_get(page + at + 6);
    return 0;
}

/* "0x2100..." of such a file becomes "FC 2100...". */
static void port_name_read(struct path *path, const char *protocol,
                           const char *file)
{
    char text[64];

    line_read(file, text, sizeof(text));
    if (strncmp(text, "0x", 2) == 0)
        snprintf(path->initiator, sizeof(path->initiator), "%s %s", protocol,
                 text + 2);
}

/*
 * Returns the number behind the last such component of a path in sysfs; -1:
 * none. The first "/host" is the adapter's of which the host is a vport (NPIV).
 */
static long component_number(const char *link, const char *component)
{
    long number = -1;

    for (; (link = strstr(link, component)) != NULL; link++)
        number = strtol(link + strlen(component), NULL, 10);
    return number;
}

/* Finds the initiator port, by the adapter's transport class. */
static void initiator_find(struct path *path)
{
    char name[NAME_SIZE], link[NAME_SIZE], text[224];
    ssize_t length;
    long host, session;

    snprintf(name, sizeof(name), "/sys/%s/%s", directory(path->name),
             path->name);
    length = readlink(name, link, sizeof(link) - 1);
    link[length > 0 ? length : 0] = '\0';
    host = component_number(link, "/host");
    session = component_number(link, "/session");
    snprintf(name, sizeof(name),
             "/sys/class/iscsi_session/session%ld/initiatorname", session);
    line_read(name, text, sizeof(text));
    if (text[0] != '\0') {
        snprintf(path->initiator, sizeof(path->initiator), "iSCSI %s", text);
        return;
    }
    snprintf(name, sizeof(name), "/sys/class/fc_host/host%ld/port_name", host);
    port_name_read(path, "FC", name);
    if (path->initiator[0] != '\0')
        return;
    snprintf(name, sizeof(name),
             "/sys/class/scsi_host/host%ld/host_sas_address", host);
    port_name_read(path, "SAS", name);
    if (path->initiator[0] != '\0')
        return;
    snprintf(name, sizeof(name), "/sys/class/sas_phy/phy-%ld:0/sas_address",
             host);
    port_name_read(path, "SAS", name);
}

static dev_t number_find(const struct path *path)
{
    char name[NAME_SIZE], text[32];
    unsigned of_driver, of_device;

    snprintf(name, sizeof(name), "/sys/block/%s/dev", path->name);
    line_read(name, text, sizeof(text));
    return sscanf(text, "%u:%u", &of_driver, &of_device) == 2
               ? makedev(of_driver, of_device)
               : 0;
}

/* Adds a path, unless it is known. */
static struct path *path_add(struct identity *identity, const char *name)
{
    struct path *path = &identity->paths[identity->count];
    unsigned i;

    for (i = 0; i < identity->count; i++)
        if (strcmp(identity->paths[i].name, name) == 0)
            return NULL;
    if (identity->count == PATHS_MOST || strlen(name) >= sizeof(path->name))
        return NULL;
    memset(path, 0, sizeof(*path));
    memcpy(path->name, name, strlen(name) + 1);
    identity->count++;
    device_line(path, "state", path->state, sizeof(path->state));
    path->is_used = strcmp(path->state, "running") == 0
                    || strcmp(path->state, "blocked") == 0;
    path->number = number_find(path);
    path->port = port_find(path);
    initiator_find(path);
    return path;
}

/* A callback: a path of the map. */
static bool slave_found(void *context, const char *name)
{
    struct path *path = path_add(context, name);

    if (path == NULL)
        return false;
    path->is_ours = true;
    return true;
}

/* A callback: another disk of this host, which may be the same one. */
static bool disk_found(void *context, const char *name)
{
    struct identity *identity = context;
    struct path other = { .name = "" };
    char wwid[256], its[256];

    if (strncmp(name, "sd", 2) != 0 || strlen(name) >= sizeof(other.name))
        return true;
    memcpy(other.name, name, strlen(name) + 1);
    device_line(&identity->paths[0], "wwid", wwid, sizeof(wwid));
    device_line(&other, "wwid", its, sizeof(its));
    if (wwid[0] != '\0' && strcmp(wwid, its) == 0)
        path_add(identity, name);
    return true;
}

/* A callback: the disk that a generic SCSI device is. */
static bool generic_found(void *context, const char *name)
{
    struct identity *identity = context;

    snprintf(identity->name, sizeof(identity->name), "%s", name);
    return false;
}

/* Finds the last component of where sysfs has a device with this number. */
static void name_find(char *name, size_t size, mode_t mode, dev_t number)
{
    char path[NAME_SIZE], link[NAME_SIZE];
    const char *last;
    ssize_t length;

    snprintf(path, sizeof(path), "/sys/dev/%s/%u:%u",
             S_ISBLK(mode) ? "block" : "char", major(number), minor(number));
    length = readlink(path, link, sizeof(link) - 1);
    link[length > 0 ? length : 0] = '\0';
    last = strrchr(link, '/');
    if (last != NULL && strlen(last + 1) < size)
        memcpy(name, last + 1, strlen(last + 1) + 1);
}

static void serial_find(struct identity *identity)
{
    uint8_t page[VPD_SIZE]; /* 80h, SPC-4 7.8.15 */
    size_t length,
        size = device_read(&identity->paths[0], "vpd_pg80", page, sizeof(page));

    if (size < 4)
        return;
    length = be16_get(page + 2);
    text_set(identity->serial, sizeof(identity->serial), page + 4,
             length < size - 4 ? length : size - 4);
}

bool identity_is_map(dev_t number)
{
    char uuid[ALIAS_SIZE];

    return sysfs_read(number, "/dm/uuid", uuid, sizeof(uuid))
           && strncmp(uuid, "mpath-", 6) == 0;
}

bool identity_find(struct identity *identity, int fd)
{
    char name[NAME_SIZE];
    struct stat st;

    memset(identity, 0, sizeof(*identity));
    if (fstat(fd, &st) < 0 || !(S_ISBLK(st.st_mode) || S_ISCHR(st.st_mode)))
        return false;
    identity->number = st.st_rdev;
    name_find(identity->name, sizeof(identity->name), st.st_mode, st.st_rdev);
    if (S_ISBLK(st.st_mode) && identity_is_map(st.st_rdev)) {
        identity->is_map = true;
        snprintf(identity->name, sizeof(identity->name), "dm-%u",
                 minor(st.st_rdev));
        sysfs_read(st.st_rdev, "/dm/name", identity->alias,
                   sizeof(identity->alias));
        if (!sysfs_slaves(st.st_rdev, slave_found, identity))
            say("cannot list all paths of %s", identity->name);
    } else if (strncmp(identity->name, "sg", 2) == 0
               || (sg_io_is_disk(&st) && identity->name[0] != '\0')) {
        snprintf(name, sizeof(name), "/sys/class/scsi_generic/%s/device/block",
                 identity->name);
        sysfs_list(name, generic_found, identity);
        path_add(identity, identity->name)->is_ours = true;
    }
    if (identity->count == 0)
        return false;
    sysfs_list("/sys/block", disk_found, identity);
    device_line(&identity->paths[0], "vendor", identity->vendor,
                sizeof(identity->vendor));
    device_line(&identity->paths[0], "model", identity->model,
                sizeof(identity->model));
    serial_find(identity);
    return true;
}

static const char *or_unknown(const char *text)
{
    return text[0] != '\0' ? text : "unknown";
}

static void unless_empty(struct output *output, const char *name,
                         const char *text)
{
    json_text(output, name, text[0] != '\0' ? text : NULL);
}

void identity_show(struct output *output, const struct identity *identity)
{
    if (identity->count > 0)
        words(output, "Disk of vendor %s, model %s, serial number %s\n",
              or_unknown(identity->vendor), or_unknown(identity->model),
              or_unknown(identity->serial));
    json_begin(output, "disk", '{');
    unless_empty(output, "vendor", identity->vendor);
    unless_empty(output, "model", identity->model);
    unless_empty(output, "serial", identity->serial);
    json_end(output, '}');
}

/* A callback: the name of what it is made of, which is enough. */
static bool first_found(void *context, const char *name)
{
    snprintf(context, ALIAS_SIZE, "%s", name);
    return false;
}

/* kpartx's "part1-mpath-..." is made of the map. */
static void map_whole(dev_t number, char whole[WHOLE_SIZE])
{
    char uuid[ALIAS_SIZE], slave[ALIAS_SIZE] = "", name[NAME_SIZE];
    char alias[ALIAS_SIZE];

    if (!sysfs_read(number, "/dm/uuid", uuid, sizeof(uuid))
        || strncmp(uuid, "part", 4) != 0 || strstr(uuid, "-mpath-") == NULL)
        return;
    sysfs_slaves(number, first_found, slave);
    snprintf(name, sizeof(name), "/sys/block/%s/dm/name", slave);
    line_read(name, alias, sizeof(alias));
    if (alias[0] != '\0')
        snprintf(whole, WHOLE_SIZE, "/dev/mapper/%s", alias);
}

void identity_whole(int fd, char whole[WHOLE_SIZE])
{
    char path[NAME_SIZE], link[NAME_SIZE], *last;
    struct stat st;
    ssize_t length;

    whole[0] = '\0';
    if (fstat(fd, &st) < 0 || !S_ISBLK(st.st_mode))
        return;
    map_whole(st.st_rdev, whole);
    if (!sysfs_has(st.st_rdev, "/partition"))
        return;
    snprintf(path, sizeof(path), "/sys/dev/block/%u:%u", major(st.st_rdev),
             minor(st.st_rdev));
    length = readlink(path, link, sizeof(link) - 1);
    link[length > 0 ? length : 0] = '\0';
    last = strrchr(link, '/');
    if (last == NULL)
        return;
    *last = '\0';
    last = strrchr(link, '/');
    if (last != NULL)
        snprintf(whole, WHOLE_SIZE, "/dev/%.*s", ALIAS_SIZE, last + 1);
}

/*
 * Compares without the ISID behind an iSCSI name: sysfs often has none; and the
 * name itself may be in lower case there, which is the same (RFC 3722).
 */
bool path_is_initiator(const struct path *path,
                       const struct registration *registration)
{
    char text[INITIATOR_SIZE], *isid;

    decode_transport_id(text, registration->id, registration->id_size);
    isid = strstr(text, ",i,0x");
    if (isid != NULL && strncmp(text, "iSCSI ", 6) == 0)
        *isid = '\0';
    return strcasecmp(text, path->initiator) == 0;
}

enum whose path_whose(const struct path *path,
                      const struct registration *registration)
{
    bool is_known = path->initiator[0] != '\0';

    if (is_known && !path_is_initiator(path, registration))
        return NOT_OURS;
    if (!registration->is_for_all_ports && path->port != 0
        && registration->port != 0 && path->port != registration->port)
        return NOT_OURS;
    return is_known ? OURS : PERHAPS_OURS;
}

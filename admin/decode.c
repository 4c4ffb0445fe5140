/* SPDX-License-Identifier: MIT */
/*
 * decode.c - what a disk answers: status and sense data in words, the entries
 * of its lists, TransportIDs as text and back.
 *
 * All of it comes from a disk, which may be broken or hostile. So this must
 * never believe a length before it is compared with what is there, or pass on
 * a byte that is not a printable ASCII character.
 */
#include "decode.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* SPC-4 6.15.3.4: the type, its name, and what it does to others. */
static const struct {
    const char *name, *effect;
} types[TYPE_MOST + 1] = {
    [1] = { "write-exclusive", "only its holder can write" },
    [3] = { "exclusive-access", "only its holder can read and write" },
    [5] = { "write-exclusive-registrants-only",
            "only who is registered can write" },
    [6] = { "exclusive-access-registrants-only",
            "only who is registered can read and write" },
    [7] = { "write-exclusive-all-registrants",
            "only who is registered can write, and all of these hold it" },
    [8] = { "exclusive-access-all-registrants",
            "only who is registered can read and write, and all of these "
            "hold it" },
};

/* SAM-5 5.3.1 */
static const struct {
    uint8_t status;
    const char *name;
} statuses[] = {
    { GOOD, "GOOD" },
    { CHECK_CONDITION, "CHECK CONDITION" },
    { 0x04, "CONDITION MET" },
    { BUSY, "BUSY" },
    { RESERVATION_CONFLICT, "RESERVATION CONFLICT" },
    { TASK_SET_FULL, "TASK SET FULL" },
    { 0x30, "ACA ACTIVE" },
    { 0x40, "TASK ABORTED" },
};

/* SPC-4 4.5.6 */
static const char *const keys[16] = {
    "NO SENSE",       "RECOVERED ERROR", "NOT READY",      "MEDIUM ERROR",
    "HARDWARE ERROR", "ILLEGAL REQUEST", "UNIT ATTENTION", "DATA PROTECT",
    "BLANK CHECK",    "VENDOR SPECIFIC", "COPY ABORTED",   "ABORTED COMMAND",
    "reserved key",   "VOLUME OVERFLOW", "MISCOMPARE",     "COMPLETED",
};

/*
 * SPC-4 annex F.2: what concerns reservations, and all that the helper says
 * of itself (see the tables in sg_io.c).
 */
static const struct {
    uint8_t asc, ascq;
    const char *name;
} additional[] = {
    { 0x00, 0x00, "NO ADDITIONAL SENSE INFORMATION" },
    { 0x00, 0x06, "I/O PROCESS TERMINATED" },
    { 0x04, 0x00, "LOGICAL UNIT NOT READY, CAUSE NOT REPORTABLE" },
    { 0x04, 0x01, "LOGICAL UNIT IS IN PROCESS OF BECOMING READY" },
    { 0x04, 0x02, "LOGICAL UNIT NOT READY, INITIALIZING COMMAND REQUIRED" },
    { 0x04, 0x03, "LOGICAL UNIT NOT READY, MANUAL INTERVENTION REQUIRED" },
    { 0x04, 0x0a,
      "LOGICAL UNIT NOT ACCESSIBLE, ASYMMETRIC ACCESS STATE TRANSITION" },
    { 0x04, 0x0b, "LOGICAL UNIT NOT ACCESSIBLE, TARGET PORT IN STANDBY STATE" },
    { 0x04, 0x0c,
      "LOGICAL UNIT NOT ACCESSIBLE, TARGET PORT IN UNAVAILABLE STATE" },
    { 0x05, 0x00, "LOGICAL UNIT DOES NOT RESPOND TO SELECTION" },
    { 0x08, 0x00, "LOGICAL UNIT COMMUNICATION FAILURE" },
    { 0x11, 0x00, "UNRECOVERED READ ERROR" },
    { 0x1a, 0x00, "PARAMETER LIST LENGTH ERROR" },
    { 0x20, 0x00, "INVALID COMMAND OPERATION CODE" },
    { 0x20, 0x02, "ACCESS DENIED - NO ACCESS RIGHTS" },
    { 0x24, 0x00, "INVALID FIELD IN CDB" },
    { 0x25, 0x00, "LOGICAL UNIT NOT SUPPORTED" },
    { 0x26, 0x00, "INVALID FIELD IN PARAMETER LIST" },
    { 0x26, 0x02, "PARAMETER VALUE INVALID" },
    { 0x26, 0x04, "INVALID RELEASE OF PERSISTENT RESERVATION" },
    { 0x27, 0x07, "SPACE ALLOCATION FAILED WRITE PROTECT" },
    { 0x29, 0x00, "POWER ON, RESET, OR BUS DEVICE RESET OCCURRED" },
    { 0x29, 0x01, "POWER ON OCCURRED" },
    { 0x29, 0x02, "SCSI BUS RESET OCCURRED" },
    { 0x29, 0x03, "BUS DEVICE RESET FUNCTION OCCURRED" },
    { 0x29, 0x04, "DEVICE INTERNAL RESET" },
    { 0x29, 0x07, "I_T NEXUS LOSS OCCURRED" },
    { 0x2a, 0x01, "MODE PARAMETERS CHANGED" },
    { 0x2a, 0x03, "RESERVATIONS PREEMPTED" },
    { 0x2a, 0x04, "RESERVATIONS RELEASED" },
    { 0x2a, 0x05, "REGISTRATIONS PREEMPTED" },
    { 0x2a, 0x06, "ASYMMETRIC ACCESS STATE CHANGED" },
    { 0x2a, 0x09, "CAPACITY DATA HAS CHANGED" },
    { 0x2e, 0x02, "COMMAND TIMEOUT DURING PROCESSING" },
    { 0x2f, 0x00, "COMMANDS CLEARED BY ANOTHER INITIATOR" },
    { 0x2f, 0x02, "COMMANDS CLEARED BY DEVICE SERVER" },
    { 0x3a, 0x00, "MEDIUM NOT PRESENT" },
    { 0x3f, 0x03, "INQUIRY DATA HAS CHANGED" },
    { 0x3f, 0x0e, "REPORTED LUNS DATA HAS CHANGED" },
    { 0x44, 0x00, "INTERNAL TARGET FAILURE" },
    { 0x55, 0x04, "INSUFFICIENT REGISTRATION RESOURCES" },
};

const char *decode_type(unsigned type)
{
    return type <= TYPE_MOST ? types[type].name : NULL;
}

const char *decode_effect(unsigned type)
{
    return type <= TYPE_MOST ? types[type].effect : NULL;
}

/* SPC-4 4.5.2 and 4.5.3. */
bool decode_sense(uint32_t *code, const uint8_t *sense)
{
    switch (sense[0] & 0x7f) {
    case 0x70: /* fixed; 0x71 and 0x73 are for a command that was before */
    case 0x71:
        *code = SENSE_CODE(sense[2] & 0x0f, sense[12], sense[13]);
        return true;
    case 0x72: /* descriptor */
    case 0x73:
        *code = SENSE_CODE(sense[1] & 0x0f, sense[2], sense[3]);
        return true;
    default:
        return false;
    }
}

static const char *additional_name(uint32_t code)
{
    size_t i;

    for (i = 0; i < COUNT(additional); i++)
        if ((code & 0xffff)
            == SENSE_CODE(0, additional[i].asc, additional[i].ascq))
            return additional[i].name;
    return NULL;
}

void decode_status(char *text, size_t size, uint8_t status,
                   const uint8_t *sense)
{
    const char *name = "unknown status";
    uint32_t code;
    size_t i;

    for (i = 0; i < COUNT(statuses); i++)
        if (statuses[i].status == status)
            name = statuses[i].name;
    if (status != CHECK_CONDITION) {
        snprintf(text, size, "%s (%02X)", name, status);
    } else if (!decode_sense(&code, sense)) {
        snprintf(text, size, "%s without sense data that is known", name);
    } else {
        name = additional_name(code);
        snprintf(text, size, "%s%s%s (%X/%02X/%02X)", keys[SENSE_KEY(code)],
                 name != NULL ? ", " : "", name != NULL ? name : "",
                 SENSE_KEY(code), code >> 8 & 0xff, code & 0xff);
    }
}

/* Room that is left behind what was written to text. */
struct text {
    char *at;
    size_t left;
};

__attribute__((format(printf, 2, 3))) static void text_add(struct text *text,
                                                           const char *format,
                                                           ...)
{
    va_list arguments;
    int length;

    va_start(arguments, format);
    length = vsnprintf(text->at, text->left, format, arguments);
    va_end(arguments);
    if (length > 0 && (size_t)length < text->left) {
        text->at += length;
        text->left -= (size_t)length;
    }
}

static void hex_add(struct text *text, const uint8_t *bytes, size_t size)
{
    size_t i;

    for (i = 0; i < size; i++)
        text_add(text, "%02x", bytes[i]);
}

/* Up to a zero byte, as what is not printable might act on a terminal. */
static void name_add(struct text *text, const uint8_t *bytes, size_t size)
{
    size_t i;

    for (i = 0; i < size && bytes[i] != 0; i++)
        text_add(text,
                 bytes[i] > 0x20 && bytes[i] < 0x7f && bytes[i] != '\\'
                     ? "%c"
                     : "\\x%02x",
                 bytes[i]);
}

/* SPC-4 7.6.4. */
void decode_transport_id(char text[INITIATOR_SIZE], const uint8_t *id,
                         size_t size)
{
    struct text to = { text, INITIATOR_SIZE };
    unsigned format = size > 0 ? id[0] >> 6 : 0;
    unsigned protocol = size > 0 ? id[0] & 0x0f : 0;

    text[0] = '\0';
    if (size == 24 && format == 0 && protocol == 0) {
        text_add(&to, "FC ");
        hex_add(&to, id + 8, 8);
    } else if (size == 24 && format == 0 && protocol == 6) {
        text_add(&to, "SAS ");
        hex_add(&to, id + 4, 8);
    } else if (size >= 4 && format <= 1 && protocol == 5) {
        size_t length = be16_get(id + 2);

        text_add(&to, "iSCSI ");
        name_add(&to, id + 4, length < size - 4 ? length : size - 4);
    } else {
        text_add(&to, "TransportID ");
        hex_add(&to, id, size);
    }
}

/* Hexadecimal digits, as many bytes as there are; 0: it is something else. */
static size_t hex_parse(uint8_t *bytes, size_t most, const char *text)
{
    size_t i, size = strlen(text) / 2;

    if (size > most || strlen(text) % 2 != 0)
        return 0;
    for (i = 0; i < size; i++) {
        unsigned value;

        if (!isxdigit((unsigned char)text[2 * i])
            || !isxdigit((unsigned char)text[2 * i + 1])
            || sscanf(text + 2 * i, "%2x", &value) != 1)
            return 0;
        bytes[i] = (uint8_t)value;
    }
    return size;
}

/* An iSCSI name, with ",i,0x" and an ISID behind it or not. */
static size_t name_parse(uint8_t *id, size_t most, const char *name)
{
    size_t length = strlen(name), room = (length + 1 + 3) / 4 * 4;

    if (room < 20)
        room = 20; /* the least that there may be */
    if (length == 0 || 4 + room > most)
        return 0;
    id[0] = strstr(name, ",i,0x") != NULL ? 0x45 : 0x05;
    be16_put(id + 2, (uint16_t)room);
    memcpy(id + 4, name, length + 1);
    return 4 + room;
}

size_t decode_initiator(uint8_t *id, size_t most, const char *text)
{
    static const struct {
        const char *name;
        uint8_t protocol, at; /* of the 8 bytes of its name */
    } ports[] = { { "FC", 0, 8 }, { "SAS", 6, 4 } };
    size_t i, length = strcspn(text, " :");
    const char *rest = text + length + (text[length] != '\0');

    memset(id, 0, most);
    for (i = 0; i < COUNT(ports); i++)
        if (length == strlen(ports[i].name)
            && strncasecmp(text, ports[i].name, length) == 0) {
            id[0] = ports[i].protocol;
            return hex_parse(id + ports[i].at, 8, rest) == 8 ? 24 : 0;
        }
    if (length == 5 && strncasecmp(text, "iSCSI", length) == 0)
        return name_parse(id, most, rest);
    if (length == 11 && strncasecmp(text, "TransportID", length) == 0)
        return hex_parse(id, most, rest);
    return 0;
}

bool decode_list(struct list *list, const uint8_t *payload, size_t size)
{
    memset(list, 0, sizeof(*list));
    if (size < 8)
        return false;
    list->generation = be32_get(payload);
    list->said = be32_get(payload + 4); /* the additional length */
    list->came = list->said < size - 8 ? list->said : size - 8;
    list->entries = payload + 8;
    return true;
}

bool decode_key(struct list *list, uint64_t *key)
{
    if (list->came - list->at < 8)
        return false;
    *key = be64_get(list->entries + list->at);
    list->at += 8;
    return true;
}

/* SPC-4 6.15.3: there is one, or none. */
bool decode_reservation(struct list *list, struct reservation *reservation)
{
    if (list->at > 0 || list->came < 16)
        return false;
    reservation->key = be64_get(list->entries);
    reservation->scope = list->entries[13] >> 4;
    reservation->type = list->entries[13] & 0x0f;
    list->at = 16;
    return true;
}

/* A full status descriptor, SPC-4 6.15.5. */
bool decode_registration(struct list *list, struct registration *registration)
{
    const uint8_t *entry = list->entries + list->at;
    size_t left = list->came - list->at;

    if (left < 24 || be32_get(entry + 20) > left - 24)
        return false;
    *registration = (struct registration){
        .key = be64_get(entry),
        .is_holder = entry[12] & 0x01,        /* R_HOLDER */
        .is_for_all_ports = entry[12] & 0x02, /* ALL_TG_PT */
        .held = { be64_get(entry), entry[13] >> 4, entry[13] & 0x0f },
        .port = be16_get(entry + 18),
        .id = entry + 24,
        .id_size = be32_get(entry + 20),
    };
    list->at += 24 + registration->id_size;
    return true;
}

/* What names the initiator: not the ISID, which is behind an iSCSI name. */
static size_t name_size(const struct registration *of)
{
    size_t at;

    if (of->id_size < 4 || (of->id[0] & 0x0f) != 5)
        return of->id_size;
    for (at = 4; at < of->id_size && of->id[at] != 0; at++)
        if (of->id_size - at > 5 && memcmp(of->id + at, ",i,0x", 5) == 0)
            break;
    return at;
}

bool decode_is_same(const struct registration *one,
                    const struct registration *other)
{
    size_t size = name_size(one);
    bool is_iscsi = one->id_size >= 4 && (one->id[0] & 0x0f) == 5;

    if (size != name_size(other) || size == 0
        || (one->id[0] & 0x0f) != (other->id[0] & 0x0f))
        return false;
    return is_iscsi ? memcmp(one->id + 4, other->id + 4, size - 4) == 0
                    : memcmp(one->id, other->id, size) == 0;
}

unsigned decode_types_supported(const uint8_t *payload, size_t size)
{
    if (size < 8 || !(payload[3] & 0x80)) /* TMV */
        return 0;
    return payload[4] | (unsigned)payload[5] << 8;
}

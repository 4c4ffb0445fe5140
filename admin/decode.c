/* SPDX-License-Identifier: MIT */
/*
 * decode.c - status, sense data and the four kinds of PERSISTENT RESERVE IN
 * parameter data, in words.
 *
 * All of it comes from a disk, which may be broken or hostile. So this must
 * never believe a length before it is compared with what is there, print a
 * byte that is not a printable ASCII character, or leave out in silence that
 * something was cut off or made no sense.
 */
#include "decode.h"
#include "../protocol.h"

#include <inttypes.h>

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

static const struct {
    uint8_t status;
    const char *name;
} statuses[] = { /* SAM-5 5.3.1 */
                 { GOOD, "GOOD" },
                 { CHECK_CONDITION, "CHECK CONDITION" },
                 { 0x04, "CONDITION MET" },
                 { BUSY, "BUSY" },
                 { RESERVATION_CONFLICT, "RESERVATION CONFLICT" },
                 { TASK_SET_FULL, "TASK SET FULL" },
                 { 0x30, "ACA ACTIVE" },
                 { 0x40, "TASK ABORTED" }
};

static const char *const keys[16] = { /* SPC-4 4.5.6 */
                                      "NO SENSE",       "RECOVERED ERROR",
                                      "NOT READY",      "MEDIUM ERROR",
                                      "HARDWARE ERROR", "ILLEGAL REQUEST",
                                      "UNIT ATTENTION", "DATA PROTECT",
                                      "BLANK CHECK",    "VENDOR SPECIFIC",
                                      "COPY ABORTED",   "ABORTED COMMAND",
                                      "reserved key",   "VOLUME OVERFLOW",
                                      "MISCOMPARE",     "COMPLETED"
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

/* PERSISTENT RESERVE IN's REPORT CAPABILITIES, SPC-4 6.15.4. */
static const struct {
    uint8_t byte, bit;
    const char *name;
} capabilities[] = {
    { 2, 0x01, "can keep registrations through a loss of power (PTPL_C)" },
    { 3, 0x01, "does so now, as --aptpl asked (PTPL_A)" },
    { 2, 0x04, "can register an initiator at all target ports (ATP_C)" },
    { 2, 0x08, "can register other initiators (SIP_C)" },
    { 2, 0x10, "lets RESERVE(6) and RELEASE(6) be used as well (CRH)" },
    { 2, 0x80, "can replace a lost reservation (RLR_C)" },
};

/* The name of a reservation type, NULL if there is no such type. */
const char *decode_type(unsigned type)
{
    return type <= TYPE_MOST ? types[type].name : NULL;
}

/*
 * Sense key, ASC and ASCQ of PROTOCOL_SENSE_SIZE bytes of sense data, SPC-4
 * 4.5.2 and 4.5.3. False if they are in neither format.
 */
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

/* How a command ended, in one line. */
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

static void hex_print(FILE *out, const uint8_t *bytes, size_t size)
{
    size_t i;

    for (i = 0; i < size; i++)
        fprintf(out, "%02x", bytes[i]);
}

/* Up to a zero byte, as what is not printable might act on a terminal. */
static void text_print(FILE *out, const uint8_t *bytes, size_t size)
{
    size_t i;

    for (i = 0; i < size && bytes[i] != 0; i++)
        if (bytes[i] > 0x20 && bytes[i] < 0x7f && bytes[i] != '\\')
            fputc(bytes[i], out);
        else
            fprintf(out, "\\x%02x", bytes[i]);
}

/* Who is registered: a TransportID, SPC-4 7.6.4. */
static void transport_id_print(FILE *out, const uint8_t *id, size_t size)
{
    unsigned format = size > 0 ? id[0] >> 6 : 0;
    unsigned protocol = size > 0 ? id[0] & 0x0f : 0;

    if (size == 24 && format == 0 && protocol == 0) {
        fputs("FC ", out);
        hex_print(out, id + 8, 8);
    } else if (size == 24 && format == 0 && protocol == 6) {
        fputs("SAS ", out);
        hex_print(out, id + 4, 8);
    } else if (size >= 4 && format <= 1 && protocol == 5) {
        size_t length = be16_get(id + 2);

        fputs("iSCSI ", out);
        text_print(out, id + 4, length < size - 4 ? length : size - 4);
    } else {
        fputs("TransportID ", out);
        hex_print(out, id, size);
    }
}

static void type_print(FILE *out, uint8_t scope_and_type)
{
    unsigned scope = scope_and_type >> 4, type = scope_and_type & 0x0f;

    if (scope != 0)
        fprintf(out, "unknown scope %u, ", scope);
    if (types[type].name != NULL)
        fprintf(out, "%s (type %u)", types[type].name, type);
    else
        fprintf(out, "unknown type %u", type);
}

/* A full status descriptor, SPC-4 6.15.5; size is that of its TransportID. */
static void registration_print(FILE *out, const uint8_t *p, size_t size)
{
    fprintf(out, "  key 0x%" PRIx64, be64_get(p));
    if (p[12] & 0x02) /* ALL_TG_PT */
        fputs(", at all ports", out);
    else
        fprintf(out, ", at port %u", be16_get(p + 18));
    fputs(", ", out);
    transport_id_print(out, p + 24, size);
    if (p[12] & 0x01) { /* R_HOLDER */
        fputs(", holds ", out);
        type_print(out, p[13]);
    }
    fputc('\n', out);
}

/* Returns how many bytes were whole descriptors. */
static size_t registrations_print(FILE *out, const uint8_t *p, size_t size)
{
    size_t done = 0;

    while (size - done >= 24) {
        uint32_t length = be32_get(p + done + 20);

        if (length > size - done - 24)
            break;
        registration_print(out, p + done, length);
        done += 24 + length;
    }
    return done;
}

static size_t keys_print(FILE *out, const uint8_t *p, size_t size)
{
    size_t done;

    for (done = 0; size - done >= 8; done += 8)
        fprintf(out, "  key 0x%" PRIx64 "\n", be64_get(p + done));
    return done;
}

/* SPC-4 6.15.3: there is one, or none. */
static size_t reservation_print(FILE *out, const uint8_t *p, size_t size)
{
    if (size < 16)
        return 0;
    fprintf(out, "  key 0x%" PRIx64 ", ", be64_get(p));
    type_print(out, p[13]);
    if (types[p[13] & 0x0f].name != NULL)
        fprintf(out, ": %s", types[p[13] & 0x0f].effect);
    fputc('\n', out);
    return 16;
}

/* Bit N is set if type N can be had; 0 if the disk does not say. */
unsigned decode_types_supported(const uint8_t *payload, size_t size)
{
    if (size < 8 || !(payload[3] & 0x80)) /* TMV */
        return 0;
    return payload[4] | (unsigned)payload[5] << 8;
}

static bool capabilities_print(FILE *out, const uint8_t *p, size_t size)
{
    unsigned type, supported = decode_types_supported(p, size);
    size_t i;

    if (size < 8 || be16_get(p) != 8)
        return false;
    fputs("The disk\n", out);
    for (i = 0; i < COUNT(capabilities); i++)
        fprintf(out, "  %-3s  %s\n",
                p[capabilities[i].byte] & capabilities[i].bit ? "yes" : "no",
                capabilities[i].name);
    fprintf(out, "  %-3d  is its ALLOW COMMANDS field\n", p[3] >> 4 & 7);
    if (!(p[3] & 0x80)) {
        fputs("It does not say which types of reservation it has.\n", out);
        return true;
    }
    fputs("Types of reservation\n", out);
    for (type = 0; type <= TYPE_MOST; type++)
        if (types[type].name != NULL)
            fprintf(out, "  %-3s  %s (type %u)\n",
                    supported >> type & 1 ? "yes" : "no", types[type].name,
                    type);
    return true;
}

/*
 * Prints the parameter data of a PERSISTENT RESERVE IN with an allocation
 * length of PROTOCOL_DATA_MAX, which is the most that size may be. Returns
 * false if it made no sense, after having printed what did.
 */
bool decode_payload(FILE *out, unsigned action, const uint8_t *payload,
                    size_t size)
{
    static const struct {
        const char *none, *some;
        size_t (*print)(FILE *, const uint8_t *, size_t);
    } lists[] = {
        [READ_KEYS] = { "Nobody is registered", "Registered", keys_print },
        [READ_RESERVATION] = { "Not reserved", "Reserved", reservation_print },
        [READ_FULL_STATUS] = { "Nobody is registered", "Registered",
                               registrations_print },
    };
    uint32_t said;
    size_t came, done;

    if (action == REPORT_CAPABILITIES)
        return capabilities_print(out, payload, size);
    if (size < 8)
        return false;
    said = be32_get(payload + 4); /* the additional length */
    came = said < size - 8 ? said : size - 8;
    fprintf(out, "%s, generation %" PRIu32 "\n",
            said == 0 ? lists[action].none : lists[action].some,
            be32_get(payload));
    done = lists[action].print(out, payload + 8, came);
    if (done == said)
        return true;
    fprintf(out, "  and %" PRIu32 " bytes that are cut off or make no sense\n",
            said - (uint32_t)done);
    return size == PROTOCOL_DATA_MAX && said > came;
}

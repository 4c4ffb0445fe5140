/* SPDX-License-Identifier: MIT */
/*
 * show.c - the four kinds of PERSISTENT RESERVE IN parameter data, in words or
 * in JSON.
 *
 * It must never leave out in silence that something was cut off or made no
 * sense.
 */
#include "show.h"
#include "../protocol.h"

#include <inttypes.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* PERSISTENT RESERVE IN's REPORT CAPABILITIES, SPC-4 6.15.4. */
static const struct {
    uint8_t byte, bit;
    const char *member, *name;
} capabilities[] = {
    { 2, 0x01, "ptpl_capable",
      "can keep registrations through a loss of power (PTPL_C)" },
    { 3, 0x01, "ptpl_activated", "does so now, as --aptpl asked (PTPL_A)" },
    { 2, 0x04, "all_target_ports_capable",
      "can register an initiator at all target ports (ATP_C)" },
    { 2, 0x08, "specify_initiator_ports_capable",
      "can register other initiators (SIP_C)" },
    { 2, 0x10, "compatible_reservation_handling",
      "lets RESERVE(6) and RELEASE(6) be used as well (CRH)" },
    { 2, 0x80, "replace_lost_reservation_capable",
      "can replace a lost reservation (RLR_C)" },
};

void show_reservation(struct output *output, const struct reservation *shown)
{
    const char *name = decode_type(shown->type);

    if (shown->scope != 0)
        words(output, "unknown scope %u, ", shown->scope);
    if (name != NULL)
        words(output, "%s (type %u)", name, shown->type);
    else
        words(output, "unknown type %u", shown->type);
    json_number(output, "scope", shown->scope);
    json_number(output, "type", shown->type);
    json_text(output, "type_name", name);
}

static void keys_show(struct output *output, struct list *list)
{
    uint64_t key;

    json_begin(output, "keys", '[');
    while (decode_key(list, &key)) {
        words(output, "  key 0x%" PRIx64 "\n", key);
        json_key(output, NULL, key);
    }
    json_end(output, ']');
}

static void reservation_show(struct output *output, struct list *list)
{
    struct reservation reservation;
    const char *effect;

    if (!decode_reservation(list, &reservation)) {
        json_text(output, "reservation", NULL);
        return;
    }
    effect = decode_effect(reservation.type);
    json_begin(output, "reservation", '{');
    json_key(output, "key", reservation.key);
    words(output, "  key 0x%" PRIx64 ", ", reservation.key);
    show_reservation(output, &reservation);
    words(output, "%s%s\n", effect != NULL ? ": " : "",
          effect != NULL ? effect : "");
    json_end(output, '}');
}

static void registration_show(struct output *output,
                              const struct registration *shown, show_more *more,
                              void *context)
{
    char initiator[INITIATOR_SIZE];

    decode_transport_id(initiator, shown->id, shown->id_size);
    json_begin(output, NULL, '{');
    words(output, "  key 0x%" PRIx64, shown->key);
    json_key(output, "key", shown->key);
    if (shown->is_for_all_ports)
        words(output, ", at all ports");
    else
        words(output, ", at port %u", shown->port);
    json_bool(output, "all_ports", shown->is_for_all_ports);
    json_number(output, "port", shown->port);
    words(output, ", %s", initiator);
    json_text(output, "initiator", initiator);
    json_bool(output, "holds", shown->is_holder);
    if (shown->is_holder) {
        words(output, ", holds ");
        show_reservation(output, &shown->held);
    }
    if (more != NULL)
        more(output, shown, context);
    words(output, "\n");
    json_end(output, '}');
}

static bool capabilities_show(struct output *output, const uint8_t *p,
                              size_t size)
{
    unsigned type, supported = decode_types_supported(p, size);
    size_t i;

    if (size < 8 || be16_get(p) != 8)
        return false;
    words(output, "The disk\n");
    for (i = 0; i < COUNT(capabilities); i++) {
        bool is_set = p[capabilities[i].byte] & capabilities[i].bit;

        words(output, "  %-3s  %s\n", is_set ? "yes" : "no",
              capabilities[i].name);
        json_bool(output, capabilities[i].member, is_set);
    }
    words(output, "  %-3d  is its ALLOW COMMANDS field\n", p[3] >> 4 & 7);
    json_number(output, "allow_commands", p[3] >> 4 & 7);
    if (!(p[3] & 0x80)) {
        words(output, "It does not say which types of reservation it has.\n");
        json_text(output, "types", NULL);
        return true;
    }
    words(output, "Types of reservation\n");
    json_begin(output, "types", '[');
    for (type = 0; type <= TYPE_MOST; type++) {
        if (decode_type(type) == NULL)
            continue;
        words(output, "  %-3s  %s (type %u)\n",
              supported >> type & 1 ? "yes" : "no", decode_type(type), type);
        if (supported >> type & 1)
            json_number(output, NULL, type);
    }
    json_end(output, ']');
    return true;
}

bool show_payload(struct output *output, unsigned action,
                  const uint8_t *payload, size_t size, show_more *more,
                  void *context)
{
    struct registration registration;
    struct list list;

    if (action == REPORT_CAPABILITIES)
        return capabilities_show(output, payload, size);
    if (!decode_list(&list, payload, size))
        return false;
    words(output, "%s, generation %" PRIu32 "\n",
          action == READ_RESERVATION
              ? list.said == 0 ? "Not reserved" : "Reserved"
          : list.said == 0 ? "Nobody is registered"
                           : "Registered",
          list.generation);
    json_number(output, "generation", list.generation);
    if (action == READ_KEYS) {
        keys_show(output, &list);
    } else if (action == READ_RESERVATION) {
        reservation_show(output, &list);
    } else {
        json_begin(output, "registrations", '[');
        while (decode_registration(&list, &registration))
            registration_show(output, &registration, more, context);
        json_end(output, ']');
    }
    json_number(output, "bytes_missing", list.said - (uint32_t)list.at);
    if (list.at == list.said)
        return true;
    words(output, "  and %" PRIu32 " bytes that are cut off or make no sense\n",
          list.said - (uint32_t)list.at);
    return size == PROTOCOL_DATA_MAX && list.said > list.came;
}

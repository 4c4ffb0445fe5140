/* SPDX-License-Identifier: MIT */
/*
 * fuzz_decode.c - fuzzes what a disk answers, in words and in JSON, and the way
 * back from an initiator's name. The input is what is decoded: a service action
 * (with 80h added, what follows is filled up to the most that can come) and its
 * parameter data; or 4, a status and sense data; or 5 and a text.
 *
 * It must never let pass a byte that is not printable, a read beyond the
 * data, a list that says another length than it has, JSON whose brackets or
 * quotes do not match, or an initiator that becomes another.
 */
#include "fuzz.h"

#include "../../admin/show.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WHOLE = 8192, STATUS = 4, NAME = 5, SENSE = 96 };

static uint32_t number_at(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8
           | p[3];
}

static void text_check(const char *text, size_t size)
{
    for (size_t i = 0; i < size; i++)
        MUST((text[i] >= ' ' && text[i] <= '~') || text[i] == '\n');
}

static size_t count(const char *text, const char *word)
{
    size_t found = 0;

    for (; (text = strstr(text, word)) != NULL; text++)
        found++;
    return found;
}

/* How many entries a list has, and how many bytes of it they are. */
static size_t list_walk(unsigned action, const uint8_t *p, size_t size,
                        size_t *bytes)
{
    static const size_t least[] = { 8, 16, 0, 24 };
    size_t most = action == READ_RESERVATION ? 1 : size;
    size_t entries = 0, entry;

    for (*bytes = 0; entries < most && size - *bytes >= least[action];
         *bytes += entry) {
        entry = least[action];
        if (action == READ_FULL_STATUS) {
            if (number_at(p + *bytes + 20) > size - *bytes - entry)
                break;
            entry += number_at(p + *bytes + 20);
        }
        entries++;
    }
    return entries;
}

static void list_check(unsigned action, const uint8_t *p, size_t size,
                       const char *text, bool made_sense)
{
    size_t said, there, bytes, entries;

    MUST(size >= 8 || (!made_sense && *text == '\0'));
    if (size < 8)
        return;
    said = number_at(p + 4);
    there = said < size - 8 ? said : size - 8;
    entries = list_walk(action, p + 8, there, &bytes);
    MUST(count(text, "  key 0x") == entries);
    MUST((count(text, "cut off") == 1) == (bytes != said));
    MUST(made_sense == (bytes == said || (size == WHOLE && said > there)));
}

/* Strings end, and what is begun ends in turn. */
static void json_check(const char *text)
{
    char open[8];
    unsigned depth = 0;
    bool is_string = false;

    for (; *text != '\0'; text++) {
        if (is_string && *text == '\\') {
            MUST(text[1] == '"' || text[1] == '\\' || text[1] == 'u');
            text++;
        } else if (*text == '"') {
            is_string = !is_string;
        } else if (!is_string && (*text == '{' || *text == '[')) {
            MUST(depth < sizeof(open));
            open[depth++] = *text;
        } else if (!is_string && (*text == '}' || *text == ']')) {
            MUST(depth > 0 && open[--depth] == (*text == '}' ? '{' : '['));
        }
    }
    MUST(!is_string && depth == 0);
}

/* What is shown; the caller frees it. */
static char *show(bool is_json, unsigned action, const uint8_t *payload,
                  size_t size, bool *made_sense)
{
    struct output output = { .is_json = is_json, .is_first = true };

    output.out = open_memstream(&output.document, &output.size);
    MUST(output.out != NULL);
    json_begin(&output, NULL, '{');
    *made_sense = show_payload(&output, action, payload, size, NULL, NULL);
    json_end(&output, '}');
    MUST(fclose(output.out) == 0);
    text_check(output.document, output.size);
    return output.document;
}

static void payload_fuzz(unsigned action, const uint8_t *payload, size_t size)
{
    bool made_sense, again;
    char *text = show(false, action, payload, size, &made_sense);
    char *json = show(true, action, payload, size, &again);

    MUST(again == made_sense);
    json_check(json);
    decode_types_supported(payload, size);
    if (action != REPORT_CAPABILITIES)
        list_check(action, payload, size, text, made_sense);
    else
        MUST(made_sense == (size >= 8 && payload[0] == 0 && payload[1] == 8));
    free(text);
    free(json);
}

/* What is taken for an initiator is shown so that it is taken for the same. */
static void name_fuzz(const char *name)
{
    enum { MOST = 256 };
    static char text[INITIATOR_SIZE], again[INITIATOR_SIZE];
    uint8_t id[MOST];
    size_t size = decode_initiator(id, sizeof(id), name);

    MUST(size <= MOST);
    if (size == 0)
        return;
    decode_transport_id(text, id, size);
    text_check(text, strlen(text));
    size = decode_initiator(id, sizeof(id), text);
    if (size == 0 || strchr(text, '\\') != NULL)
        return;
    decode_transport_id(again, id, size);
    MUST(strcmp(text, again) == 0);
}

static void status_fuzz(uint8_t status, const uint8_t *sense)
{
    char text[128];
    uint32_t code;

    decode_status(text, sizeof(text), status, sense);
    MUST(strlen(text) < sizeof(text) - 1);
    text_check(text, strlen(text));
    if (decode_sense(&code, sense))
        MUST(SENSE_KEY(code) <= 15);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    uint8_t kind, *data;
    size_t room;

    input_begin(bytes, size);
    kind = (uint8_t)input_number(1);
    if ((kind & 0x7f) > NAME || size == 0 || size > WHOLE)
        return 0;
    room = kind == STATUS ? SENSE + 1 : (kind & 0x80) ? WHOLE : size - 1;
    /* Behind a byte, as it may be none; only a text has an end. */
    data = calloc(1, room + 1 + ((kind & 0x7f) == NAME));
    if (data == NULL)
        goto end;
    input_take(data + 1, room);
    if ((kind & 0x7f) == STATUS)
        status_fuzz(data[1], data + 2);
    else if ((kind & 0x7f) == NAME)
        name_fuzz((const char *)data + 1);
    else
        payload_fuzz(kind & 0x7f, data + 1, room);
end:
    free(data);
    return 0;
}

/* SPDX-License-Identifier: MIT */
/*
 * fuzz_decode.c - fuzzes the words for what a disk answers. The input is what
 * is decoded: a service action (with 80h added, what follows is filled up to
 * the most that can come) and its parameter data, or 4, a status and sense
 * data.
 *
 * It must never let pass a byte that is not printable, a read beyond the
 * data, or a list that says another length than it has.
 */
#include "fuzz.h"

#include "../../admin/decode.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WHOLE = 8192, STATUS = 4, SENSE = 96 };

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

static void payload_fuzz(unsigned action, const uint8_t *payload, size_t size)
{
    char *text = NULL;
    size_t length;
    FILE *out = open_memstream(&text, &length);
    bool made_sense;

    MUST(out != NULL);
    made_sense = decode_payload(out, action, payload, size);
    decode_types_supported(payload, size);
    MUST(fclose(out) == 0);
    text_check(text, length);
    if (action != REPORT_CAPABILITIES)
        list_check(action, payload, size, text, made_sense);
    else
        MUST(made_sense == (size >= 8 && payload[0] == 0 && payload[1] == 8));
    free(text);
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
    if ((kind & 0x7f) > STATUS || size == 0 || size > WHOLE)
        return 0;
    room = kind == STATUS ? SENSE + 1 : (kind & 0x80) ? WHOLE : size - 1;
    data = calloc(1, room + 1); /* behind a byte, as it may be none */
    if (data == NULL)
        goto end;
    input_take(data + 1, room);
    if ((kind & 0x7f) == STATUS)
        status_fuzz(data[1], data + 2);
    else
        payload_fuzz(kind & 0x7f, data + 1, room);
end:
    free(data);
    return 0;
}

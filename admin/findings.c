/* SPDX-License-Identifier: MIT */
/*
 * findings.c - what `qemu-pr-client check` finds wrong: it is said at once, and
 * once more, as a list with exit statuses, at the end of a JSON document.
 *
 * It must never drop one in silence but for want of room.
 */
#include "check.h"

#include <stdarg.h>

void finding(struct check *check, int exit_status, const char *cure,
             const char *format, ...)
{
    struct finding *found = &check->findings[check->count];
    va_list arguments;

    if (check->count == FINDINGS_MOST)
        return;
    check->count++;
    found->exit_status = exit_status;
    va_start(arguments, format);
    vsnprintf(found->text, sizeof(found->text), format, arguments);
    va_end(arguments);
    snprintf(found->cure, sizeof(found->cure), "%s", cure);
    say("%s", found->text);
    say("  %s", found->cure);
}

void findings_show(struct check *check, int exit_status)
{
    struct output *output = &check->output;
    unsigned i;

    json_begin(output, "findings", '[');
    for (i = 0; i < check->count; i++) {
        json_begin(output, NULL, '{');
        json_number(output, "exit_status",
                    (uint64_t)check->findings[i].exit_status);
        json_text(output, "text", check->findings[i].text);
        json_text(output, "cure", check->findings[i].cure);
        json_end(output, '}');
    }
    json_end(output, ']');
    json_number(output, "exit_status", (uint64_t)exit_status);
}

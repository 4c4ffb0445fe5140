#!/bin/sh
# order.sh OBJECT...
#
# The order of the files of a program, the client or the helper: each may call
# those that stand behind it, and no other, so that there is no cycle. Must fail
# if a file is not in the order.
set -eu

client='qemu-pr-client watch check check_map findings status commands state
    arguments show transport outcome surroundings identity decode'
order="$client"' prhelper supervisor client ask workers worker actions register
    preempt holder sweep map multipathd report sandbox roster descriptors events
    options listen daemon privdrop sg_io sysfs protocol sockets log output'

for object; do
    name=${object##*/}
    nm "$object" | sed "s/^/${name%.o} /"
done | awk -v order="$order" '
    BEGIN { n = split(order, names); for (i = 1; i <= n; i++) place[names[i]] = i }
    $(NF - 1) ~ /^[TDBRVW]$/ { home[$NF] = $1 }
    $(NF - 1) == "U" { from[++calls] = $1; to[calls] = $NF }
    !($1 in place) && !said[$1]++ { print $1 ".c is not in the order"; bad = 1 }
    END {
        for (i = 1; i <= calls; i++)
            if (to[i] in home && place[home[to[i]]] < place[from[i]]) {
                print from[i] ".c calls " to[i] "() of " home[to[i]] ".c"
                bad = 1
            }
        exit bad
    }'

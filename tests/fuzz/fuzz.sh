#!/bin/sh
# fuzz.sh replay | libfuzzer | afl [TARGET...]
#
# Fuzzes the helper's sources with the targets of tests/fuzz, or those named,
# for FUZZ_SECONDS (60), an equal part of which is each target's. replay only
# runs the seed corpus, built by any compiler (CC); libfuzzer wants clang, and
# afl AFL++, which is fetched if need be. Inputs that reached something new
# are kept in build/fuzz/ENGINE/TARGET, and the next run goes on from there;
# an input that made a target fail is named.
#
# Must end in time, and fail if any target failed, or could not be built or
# run; must never write outside the build directory.
set -eu

top=$(cd "$(dirname "$0")/../.." && pwd)
build=${BUILD:-$top/build}/fuzz
engine=${1:-libfuzzer}
[ $# -eq 0 ] || shift
[ $# -gt 0 ] || set -- client sg_io options listen decode multipathd

if [ -z "${FUZZ_FETCHED:-}" ]; then
    packages='python3 binutils'
    [ "$engine" != afl ] || packages="$packages clang afl++"
    # shellcheck disable=SC2086 # a list of words
    FUZZ_FETCHED=1 exec "$top/tests/lib/fetch.sh" $packages -- \
        "$0" "$engine" "$@"
fi

cd "$top"
seconds=$((${FUZZ_SECONDS:-60} / $#))
main=
fuzzer=-fsanitize=fuzzer
case $engine in
replay)
    CC=${CC:-cc}
    main=tests/fuzz/main.c
    fuzzer=
    ;;
libfuzzer)
    CC=clang
    ;;
afl)
    CC=afl-clang-fast
    AFL_PATH=$(dirname "$(command -v afl-fuzz)")/../lib/afl
    export AFL_PATH AFL_QUIET=1 AFL_NO_UI=1 AFL_NO_AFFINITY=1 \
        AFL_SKIP_CPUFREQ=1 AFL_I_DONT_CARE_ABOUT_MISSING_CRASHES=1 \
        AFL_BENCH_UNTIL_CRASH=1
    ;;
*)
    echo "fuzz.sh: there is no engine $engine" >&2
    exit 1
    ;;
esac

# build TARGET: with the system calls of the helper's file renamed. Without
# _FILE_OFFSET_BITS, which has other names for them.
build() {
    # shellcheck disable=SC2089 # these quotes are for the compiler
    flags="-std=c99 -pedantic -D_GNU_SOURCE -Wall -Wextra -O1 -g
        -DVERSION=\"0\" -DLOCALSTATEDIR=\"/var\"
        -fsanitize=address,undefined -fno-sanitize-recover=all
        ${fuzzer:+$fuzzer-no-link}"
    source=$(ls "$1.c" ./*/"$1.c" 2>/dev/null)
    others=protocol.c
    case $1 in
    decode) others='admin/show.c admin/output.c' ;;
    client | listen | multipathd)
        # shellcheck disable=SC2086,SC2090 # a list of words
        "$CC" $flags -c -o "$program-sockets.o" sockets.c &&
            objcopy --redefine-syms=tests/fuzz/calls "$program-sockets.o"
        others="protocol.c $program-sockets.o"
        ;;
    esac
    # shellcheck disable=SC2086,SC2090 # lists of words
    "$CC" $flags -c -o "$program.o" "$source" &&
        objcopy --redefine-syms=tests/fuzz/calls "$program.o" &&
        "$CC" $flags $fuzzer -o "$program" "$program.o" "tests/fuzz/fuzz_$1.c" \
            tests/fuzz/fuzz.c $main $others
}

# run TARGET
run() {
    seeds=$build/corpus/$1
    kept=$build/$engine/$1
    mkdir -p "$kept"
    case $engine in
    replay) "$program" "$seeds"/* ;;
    libfuzzer)
        # What it says of leaks at its end may hang by itself.
        timeout -k 5 $((seconds + 60)) \
            "$program" -max_total_time="$seconds" -max_len=4096 -timeout=10 \
            -artifact_prefix="$program-" "$kept" "$seeds"
        ;;
    afl)
        rm -rf "$kept/default/crashes" "$kept/default/hangs"
        [ ! -d "$kept/default" ] || seeds=-
        afl-fuzz -V "$seconds" -i "$seeds" -o "$kept" "$program" &&
            cat "$kept/default/fuzzer_stats" &&
            ! find "$kept/default/crashes" "$kept/default/hangs" -name 'id*' |
            grep .
        ;;
    esac
}

mkdir -p "$build"
rm -rf "$build/corpus"
"$PYTHON" -B tests/fuzz/corpus.py "$build/corpus"
failed=
for target; do
    program=$build/$engine-$target
    log=$program.log
    if { build "$target" && run "$target"; } >"$log" 2>&1; then
        echo "$engine $target: passed"
        grep -a -E 'DONE|^(execs_done|edges_found)' "$log" || :
    else
        tail -n 60 "$log"
        echo "$engine $target: FAILED"
        failed=yes
    fi
done
[ -z "$failed" ]

#!/bin/sh
# run.sh [host] [kernel] [hostile] [multipath] [reference] [transport]
#        [supervisors]
#
# The tests, host and kernel at the same time unless others are named: host,
# which is tests/test_*.py, needs no root and no SCSI; kernel runs in User-mode
# Linux, as root, what is in tests/kernel, and again the host's tests in which
# root makes a difference; hostile is tests/hostile; multipath and reference,
# each in a User-mode Linux, are the two files of tests/multipath; transport,
# in one, is tests/transport, with iSCSI sessions as the paths; supervisors
# is what is in contrib/ under systemd, OpenRC, runit and s6, there as well.
# Ends with the line "N passed, N failed, N skipped"; see tests/summary.py for
# what counts.  The programs under test must have been built; what the tests
# themselves need is fetched into the build directory.
#
# While they run there is a line for each file of tests that is done.
#
# Must not need root, must write nothing outside the build directory and the
# temporary one, must end in time whatever hangs, and at once by a signal, and
# must leave neither a process nor a temporary file.
set -eu

top=$(cd "$(dirname "$0")/.." && pwd)
BUILD=${BUILD:-$top/build}
export BUILD
[ $# -gt 0 ] || set -- host kernel

# Without the kernel of uml.sh only these run, and the others are a skip each.
wanted=$*
no_kernel=$("$top/tests/uml.sh" 2>&1) || wanted=$(printf '%s\n' "$@" |
    grep -x -e host -e hostile | paste -s -d ' ')

if [ -z "${RUN_FETCHED:-}" ]; then
    packages='python3 python3-pytest'
    case " $wanted " in
    *' kernel '*)
        packages="$packages user-mode-linux kmod mount sg3-utils dmsetup
            e2fsprogs"
        # To compare with.
        command -v qemu-pr-helper >/dev/null ||
            "$top/tests/fetch.sh" "=qemu-system-common" || :
        ;;
    esac
    case " $wanted " in
    *' multipath '* | *' reference '*)
        packages="$packages user-mode-linux kmod mount
            $("$top/tests/multipath/setup.sh" packages)"
        ;;
    esac
    case " $wanted " in
    *' transport '*)
        packages="$packages user-mode-linux kmod iproute2 open-iscsi
            $("$top/tests/multipath/setup.sh" packages)"
        ;;
    esac
    case " $wanted " in
    *' supervisors '*)
        packages="$packages user-mode-linux kmod mount systemd openrc runit s6"
        ;;
    esac
    case " $wanted " in
    *' kernel '* | *' multipath '* | *' reference '*) minutes=6 megabytes=400 ;;
    *) minutes=5 megabytes=50 ;;
    esac
    echo "The tests take about $minutes minutes on two processors. What they" \
        "need and is not installed, at most $megabytes MB, is fetched into" \
        "$BUILD and stays there."
    # shellcheck disable=SC2086 # a list of words
    RUN_FETCHED=1 exec "$top/tests/fetch.sh" $packages -- "$0" "$@"
fi

cd "$top"
PYTHONDONTWRITEBYTECODE=1
export PYTHONDONTWRITEBYTECODE
results=$BUILD/results
mkdir -p "$results"

# suite NAME TEST...: its results, log and exit status, as files: if it dies
# it must not take the other along.
suite() {
    name=$1
    shift
    seconds=900
    case $name in
    kernel | multipath | reference | supervisors) seconds=420 ;;
    transport) seconds=600 ;;
    esac
    set -- timeout --foreground -s INT -k 10 $seconds "$PYTHON" -m pytest \
        -p no:cacheprovider -q --tb=short --color=no \
        --junitxml="$results/$name.xml" "$@"
    # TMPDIR is of this machine.
    case $name in
    kernel | supervisors) set -- UML_TIMEOUT=430 tests/uml.sh "$@" ;;
    multipath | reference)
        set -- UML_TIMEOUT=430 UML_NEXUSES=3 tests/uml.sh \
            tests/multipath/setup.sh "$@"
        ;;
    transport)
        set -- UML_TIMEOUT=610 UML_NEXUSES=0 tests/uml.sh \
            tests/multipath/setup.sh "$@"
        ;;
    *) set -- "TMPDIR=$temporary" "$@" ;;
    esac
    {
        status=0
        # A shell lets what is in the background ignore SIGINT.
        env --default-signal=INT -u TMPDIR SUITE="$name" "$@" \
            >"$results/$name.log" 2>&1 || status=$?
        echo $status >"$results/$name.status"
    } &
    pids="$pids $!"
}

for name; do
    case $name in
    host | kernel | hostile | multipath | reference | transport | \
        supervisors) ;;
    *)
        echo "run.sh: there is no suite $name" >&2
        exit 1
        ;;
    esac
done

# What is the tests' lies in one place, which is also in the environment of all
# that they start: so that it goes with them, and none of them stays.
pids=
temporary=$(mktemp -d)
chmod 1777 "$temporary"
RUN_MARK="of $temporary"
export RUN_MARK
# shellcheck disable=SC2317 # the trap's
ended() {
    trap '' INT TERM HUP
    for _ in 1 2 3; do
        # shellcheck disable=SC2046 # words
        kill -KILL $(grep -als "$RUN_MARK" /proc/[0-9]*/environ |
            cut -d / -f 3) 2>/dev/null || break
    done
    rm -rf "$temporary" "$BUILD"/uml.*
    exit 1
}
trap ended INT TERM HUP
for name; do
    rm -f "$results/$name".*
    case " $wanted " in
    *" $name "*) ;;
    *) echo "$no_kernel" >"$results/$name.skipped" ;;
    esac
done
trap 'rm -rf "$temporary"' EXIT

# A line for each file of tests as it is done; see conftest.py.
PROGRESS=$results/progress
export PROGRESS
: >"$PROGRESS"
echo "running $wanted, each file of tests:"
tail -n +1 -s 0.3 -f --pid=$$ "$PROGRESS" &
follower=$!
case " $wanted " in
*' kernel '*)
    suite kernel tests/kernel tests/test_options.py tests/test_startup.py \
        tests/test_log.py
    ;;
esac
for name in multipath reference; do
    case " $wanted " in
    *" $name "*) suite $name tests/multipath/test_$name.py ;;
    esac
done
case " $wanted " in
*' host '*) suite host tests/test_*.py ;;
esac
# These want the machine for themselves.
for name in hostile transport supervisors; do
    case " $wanted " in
    *" $name "*)
        # shellcheck disable=SC2086 # a list of words
        [ -z "$pids" ] || wait $pids || :
        suite $name tests/$name
        ;;
    esac
done
# shellcheck disable=SC2086 # a list of words
[ -z "$pids" ] || wait $pids || :
sleep 0.5
kill "$follower" 2>/dev/null || :
status=0
"$PYTHON" tests/summary.py "$results" "$@" || status=$?
exit $status

#!/bin/sh
# run.sh [SUITE | TEST]...
#
# The tests. A SUITE is one of these, each a folder beside this file unless
# another is named; host and kernel, at the same time, unless others are given:
#
#   host         needs no root and no SCSI; its tests of maps, which mostly
#                wait, and those of faults run beside the others
#   kernel       in User-mode Linux, as root; and AGAIN (options startup log),
#                where root makes a difference, unless root runs host
#   hostile      on the simulated disk
#   multipath, reference
#                each in a User-mode Linux, the files of multipath/
#   transport    in one, with iSCSI sessions as the paths
#   foreign      likewise: other people's suites, through QEMU's helper and ours
#   supervisors  what is in contrib/ under systemd, OpenRC, runit and s6, there
#   docs         what the documents say, and the examples
#
# A TEST is a file of tests or one test in it, as lib/find.sh writes them
# (tests/host/test_protocol.py::test_...), and runs as in its suite. Ends with
# the line "N passed, N failed, N skipped"; see lib/summary.py for what counts.
# The programs under test must have been built; what the tests themselves need
# is fetched into the build directory.
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
named=$(printf '%s\n' "$@" | sed -n '/^tests\//p')
suites=$(printf '%s\n' "$@" | sed 's|^tests/\([^/]*\)/.*|\1|' |
    awk '!seen[$0]++' | paste -s -d ' ')
[ -n "$named" ] ||
    suites=$(echo "$suites" | sed 's/\<host\>/host maps-1 maps-2 slow/')

# Without the kernel of uml.sh only these run, and the others are a skip each.
wanted=$suites
no_kernel=$("$top/tests/lib/uml.sh" 2>&1) || wanted=$(echo "$suites" |
    tr ' ' '\n' | grep -x -e host -e 'maps-.' -e slow -e hostile -e docs |
    paste -s -d ' ')

if [ -z "${RUN_FETCHED:-}" ]; then
    packages='python3 python3-pytest'
    case " $wanted " in
    *' kernel '*)
        packages="$packages user-mode-linux kmod mount sg3-utils dmsetup
            e2fsprogs"
        # To compare with.
        command -v qemu-pr-helper >/dev/null ||
            "$top/tests/lib/fetch.sh" "=qemu-system-common" || :
        ;;
    esac
    case " $wanted " in
    *' multipath '* | *' reference '*)
        packages="$packages user-mode-linux kmod mount
            $("$top/tests/lib/multipath.sh" packages)"
        ;;
    esac
    case " $wanted " in
    *' transport '*)
        packages="$packages user-mode-linux kmod iproute2 open-iscsi
            $("$top/tests/lib/multipath.sh" packages)"
        ;;
    esac
    case " $wanted " in
    *' foreign '*)
        packages="$packages user-mode-linux kmod mount iproute2 open-iscsi
            sg3-utils libiscsi-bin =fence-agents python3-pexpect python3-pycurl
            $("$top/tests/lib/multipath.sh" packages)"
        command -v qemu-pr-helper >/dev/null ||
            packages="$packages =qemu-system-common"
        ;;
    esac
    case " $wanted " in
    *' supervisors '*)
        packages="$packages user-mode-linux kmod mount systemd openrc runit s6"
        ;;
    esac
    case " $wanted " in
    *' docs '*)
        packages="$packages =libvirt-clients libxml2-utils =multipath-tools
            systemd python3-yaml"
        ;;
    esac
    case " $wanted " in
    *' kernel '* | *' multipath '* | *' reference '*) minutes=6 megabytes=400 ;;
    *) minutes=5 megabytes=50 ;;
    esac
    [ -n "$named" ] || echo "The tests take about $minutes minutes on two" \
        "processors. What they need and is not installed, at most" \
        "$megabytes MB, is fetched into $BUILD and stays there."
    # shellcheck disable=SC2086 # a list of words
    RUN_FETCHED=1 exec "$top/tests/lib/fetch.sh" $packages -- "$0" "$@"
fi

cd "$top"
PYTHONDONTWRITEBYTECODE=1
export PYTHONDONTWRITEBYTECODE
results=$BUILD/results
mkdir -p "$results"

# tests_of NAME: those that were named, or all.
tests_of() {
    case $1:$named in
    *:?*) echo "$named" | grep "^tests/$1/" ;;
    kernel:)
        echo tests/kernel
        [ "$(id -u) ${suites%% *}" != '0 host' ] || AGAIN=
        for test in ${AGAIN-options startup log}; do
            echo "tests/host/test_$test.py"
        done
        ;;
    host:)
        echo tests/host '--ignore-glob=tests/host/test_multipath*' \
            --ignore=tests/host/test_fault.py
        ;;
    maps-?:) echo tests/host/test_multipath.py ;;
    slow:) echo tests/host/test_fault.py tests/host/test_multipath_random.py ;;
    multipath:) echo tests/multipath/test_multipathd.py ;;
    reference:)
        echo tests/multipath/test_reference.py tests/multipath/test_pod_map.py
        ;;
    *) echo "tests/$1" ;;
    esac
}

# suite NAME: its results, log and exit status, as files: if it dies
# it must not take the other along.
suite() {
    name=$1
    seconds=900
    case $name in
    kernel | supervisors) seconds=540 ;;
    multipath | reference) seconds=720 ;;
    transport | foreign) seconds=900 ;;
    esac
    # With --preserve-status 124 is never the tests' own, but says that the
    # kernel does not end.
    # shellcheck disable=SC2046 # a list of words
    set -- timeout --preserve-status --foreground -s INT -k 10 $seconds \
        "$PYTHON" -m pytest -p no:cacheprovider -q --tb=short --color=no \
        --junitxml="$results/$name.xml" $(tests_of "$name")
    # TMPDIR is of this machine.
    case $name in
    maps-?) set -- "TMPDIR=$temporary" "PART=${name#maps-}/2" "$@" ;;
    kernel | supervisors) set -- UML_TIMEOUT=550 tests/lib/uml.sh "$@" ;;
    multipath | reference)
        set -- UML_TIMEOUT=730 UML_NEXUSES=3 tests/lib/uml.sh \
            tests/lib/multipath.sh "$@"
        ;;
    transport | foreign)
        set -- UML_TIMEOUT=910 UML_NEXUSES=0 tests/lib/uml.sh \
            tests/lib/multipath.sh "$@"
        ;;
    *) set -- "TMPDIR=$temporary" "$@" ;;
    esac
    {
        status=0
        # A shell lets what is in the background ignore SIGINT.
        env --default-signal=INT -u TMPDIR SUITE="$name" "$@" \
            >"$results/$name.log" 2>&1 || status=$?
        # The kernel itself has died: User-mode Linux 6.12 does so now and
        # then, in exit_mmap() of a fork() that has failed late. Or it hangs:
        # without preemption, its target waits for ever if who holds a
        # reference to a registration sleeps (__core_scsi3_free_registration).
        if [ $status -eq 125 ] || [ $status -eq 124 ]; then
            status=0
            echo "run.sh: $name once more, with another kernel" >>"$PROGRESS"
            env --default-signal=INT -u TMPDIR SUITE="$name" "$@" \
                >>"$results/$name.log" 2>&1 || status=$?
        fi
        echo $status >"$results/$name.status"
    } &
    pids="$pids $!"
}

for name in $suites; do
    case $name in
    host | maps-? | slow | kernel | hostile | multipath | reference | \
        transport | foreign | supervisors | docs) ;;
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
for name in $suites; do
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
for name in kernel multipath reference slow maps-1 maps-2 host docs; do
    case " $wanted " in
    *" $name "*) suite $name ;;
    esac
done
# These want the machine for themselves.
for name in hostile transport foreign supervisors; do
    case " $wanted " in
    *" $name "*)
        # shellcheck disable=SC2086 # a list of words
        [ -z "$pids" ] || wait $pids || :
        suite $name
        ;;
    esac
done
# shellcheck disable=SC2086 # a list of words
[ -z "$pids" ] || wait $pids || :
sleep 0.5
kill "$follower" 2>/dev/null || :
status=0
# shellcheck disable=SC2086 # a list of words
"$PYTHON" tests/lib/summary.py "$results" $suites || status=$?
exit $status

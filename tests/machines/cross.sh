#!/bin/sh
# cross.sh [MACHINE...]
#
# Builds the helper with Debian's cross compilers for each MACHINE (all of
# them unless named), and tests it: under qemu-user, without the sandbox,
# which qemu-user cannot do; i386 with it, straight on this machine's kernel,
# or, if that does not run its programs, as the others, after a line "SKIP:".
# The last line is "N passed, N failed, N skipped", where a test counts once
# for each MACHINE.
#
# Compilers and qemu-user are fetched if they are not installed.
#
# Must work for any user, must accept no warning of a compiler's, and must
# write nothing outside the build directory and the temporary one.
set -eu

top=$(cd "$(dirname "$0")/../.." && pwd)
BUILD=${BUILD:-$top/build}
[ $# -gt 0 ] || set -- aarch64 arm i386 ppc64le riscv64 s390x

# what MACHINE: its names in Debian, of its compiler, and its byte order and
# size_t as Python's struct calls them.
what() {
    order='<' size='<Q'
    case $1 in
    aarch64) debian=arm64 compiler=aarch64-linux-gnu ;;
    arm) debian=armhf compiler=arm-linux-gnueabihf size='<I' ;;
    i386) debian=i386 compiler=i686-linux-gnu size='<I' ;;
    ppc64le) debian=ppc64el compiler=powerpc64le-linux-gnu ;;
    riscv64) debian=riscv64 compiler=riscv64-linux-gnu ;;
    s390x) debian=s390x compiler=s390x-linux-gnu order='>' size='>Q' ;;
    *)
        echo "cross.sh: there is no machine $1" >&2
        exit 1
        ;;
    esac
}

if [ -z "${CROSS_FETCHED:-}" ]; then
    packages=
    for machine; do
        what "$machine"
        packages="$packages gcc-$compiler libc6-dev-$debian-cross"
    done
    # shellcheck disable=SC2086 # a list of words
    CROSS_FETCHED=1 exec "$top/tests/lib/fetch.sh" $packages qemu-user python3 \
        python3-pytest -- "$0" "$@"
fi

cd "$top"
results=$BUILD/cross/results
mkdir -p "$results"
export PYTHONDONTWRITEBYTECODE=1
export PYTHONPATH="$top/tests/machines:${PYTHONPATH:-}"

# compilers: sets CC and LDFLAGS for what runs here, with those libraries.
compilers() {
    root=
    [ -d "/usr/$compiler/lib" ] || root=$BUILD/debian
    libraries=$root/usr/$compiler/lib
    CC="$compiler-gcc ${root:+--sysroot=$root}"
    LDFLAGS="-Wl,--dynamic-linker=$(echo "$libraries"/ld*.so.*) \
        -Wl,-rpath=$libraries"
}

# runs_here MACHINE: whether this kernel runs i386's programs by itself. The
# variable is there if it was built to; that it does, only a program shows.
runs_here() {
    [ "$1 $(uname -m)" = 'i386 x86_64' ] || return 1
    if [ -e /proc/sys/abi/vsyscall32 ]; then
        mkdir -p "$out"
        # shellcheck disable=SC2086 # lists of words
        echo 'int main(void) { return 0; }' |
            $CC $LDFLAGS -x c -o "$out/runs" - && "$out/runs" && return
    fi
    echo "SKIP: i386 with the sandbox: this kernel does not run its programs"
    return 1
}

# build MACHINE: all that is tested.
build() {
    make -s CC="$CC" CFLAGS='-O2 -Werror' CPPFLAGS="$sandbox" \
        LDFLAGS="$LDFLAGS" \
        BUILD="$out" HELPER="$out/qemu-pr-helper" \
        CLIENT="$out/qemu-pr-client" "$out/qemu-pr-helper" \
        "$out/qemu-pr-client" "$out/sim/qemu-pr-helper" \
        "$out/sim/qemu-pr-client"
}

# emulated MACHINE PROGRAM: a script that runs PROGRAM, as its name.
emulated() {
    mkdir -p "$out/run/${2%/*}"
    cat >"$out/run/$2" <<END
#!/bin/sh
exec $(command -v "qemu-$1") '$out/$2' "\$@"
END
    chmod 755 "$out/run/$2"
}

# suite MACHINE: its results, log and exit status, as files.
suite() {
    what "$1"
    out=$BUILD/cross/$1
    rm -f "$results/$1".*
    run=$out
    sandbox=
    compilers
    set -- "$1" tests/host/test_protocol.py tests/host/test_log.py
    # What decodes and is decoded, once for each width and order of bytes that
    # make check does not have already.
    case $1 in
    i386 | s390x) set -- "$@" tests/host/test_client.py ;;
    esac
    # Of multipath what a size_t or its bytes could make a difference to, where
    # they are not as here.
    some='all_paths or wrong_key or cannot_be_opened or SPEC_I_PT or aptpl'
    [ "$size" = '<Q' ] || set -- "$@" tests/host/test_multipath.py -k \
        "$some or not test_multipath"
    # What is about processes and time says nothing of a machine, and little
    # under qemu-user, which is slow.
    if runs_here "$1"; then
        set -- "$@" tests/host/test_daemon.py tests/host/test_options.py \
            tests/host/test_startup.py tests/host/test_sandbox.py
    else
        run=$out/run
        sandbox=-DSANDBOX=false
        emulated "$1" ./qemu-pr-helper
        emulated "$1" ./qemu-pr-client
        emulated "$1" sim/qemu-pr-helper
        emulated "$1" sim/qemu-pr-client
        set -- "$@" -p emulated
    fi
    machine=$1
    shift
    build >"$results/$machine.log" 2>&1 || return 0
    status=0
    HELPER=$run/qemu-pr-helper SIM_HELPER=$run/sim/qemu-pr-helper \
        CLIENT=$run/qemu-pr-client SIM_BYTE_ORDER=$order SIM_SIZE_T=$size \
        timeout --foreground -s INT -k 10 480 \
        "$PYTHON" -m pytest -p no:cacheprovider -q --tb=short --color=no \
        --junit-prefix="$machine" --durations=3 \
        --junitxml="$results/$machine.xml" "$@" \
        >"$results/$machine.log" 2>&1 || status=$?
    echo $status >"$results/$machine.status"
}

trap 'trap "" TERM; kill 0; exit 1' INT TERM HUP
# Two at a time, every second one in each row: more would be late for what
# tests wait for.
for row in 0 1; do
    for machine; do
        [ $row -ne 0 ] || suite "$machine"
        row=$((1 - row))
    done &
done
wait
exec "$PYTHON" tests/lib/summary.py "$results" "$@"

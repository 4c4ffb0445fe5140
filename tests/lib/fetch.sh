#!/bin/sh
# fetch.sh [PACKAGE | =PACKAGE]... [-- COMMAND...]
#
# Makes Debian packages available without installing them: each PACKAGE that
# is neither installed nor fetched already is unpacked into build/debian,
# together with everything it depends on that is not installed; =PACKAGE only
# with libraries and with its namesakes (what has the same word up to the first
# dash), as for one program out of a package that wants half a desktop.  Then
# runs COMMAND with the unpacked programs, libraries and Python modules on its
# paths, behind the installed ones, and PYTHON set to Debian's python3.  Exits
# with 77 if the archive does not give what is needed.
#
# Must never need root, never change the system's own apt or dpkg state, and
# never use the network when there is nothing to fetch.  Whatever an
# interrupted run left behind is done again: a package counts as fetched only
# once its stamp in build/debian/fetched exists.
set -eu

top=$(cd "$(dirname "$0")/../.." && pwd)
build=${BUILD:-$top/build}
into=$build/debian
stamps=$into/fetched
case $top$build in
*[!A-Za-z0-9_./+@~=-]*)
    echo "fetch.sh: the tests take no space and nothing that a shell, make or" \
        "mount splits at in the path of these sources: $top" >&2
    exit 1
    ;;
esac

installed() {
    command -v dpkg-query >/dev/null &&
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = \
            installed ]
}

missing=
names=
while [ $# -gt 0 ]; do
    package=$1
    shift
    [ "$package" != -- ] || break
    name=${package#=}
    names="$names $name"
    installed "$name" || [ -e "$stamps/$name" ] || missing="$missing $package"
done

# apt [OPTION...]: apt-get, on the system's package lists or on our own.
apt_state=
apt() {
    # shellcheck disable=SC2086 # words
    apt-get -q -o Debug::NoLocking=1 -o APT::Sandbox::User=root \
        -o Acquire::Retries=3 $apt_state "$@" 2>"$into/errors"
}

# Names of the package and of what it needs, without those installed; apt
# says "Inst NAME (NEW...)" for these, "Inst NAME [OLD] (NEW...)" for updates.
closure() {
    plan=$(apt -s --no-install-recommends install "${1#=}") || return 1
    case $1 in
    =*) name=${1#=} only="lib|${name%%-*}(-|\$)" ;;
    *) only= ;;
    esac
    echo "$plan" | sed -n 's/^Inst \([^ ]*\) (.*/\1/p' | grep -E "^($only)"
}

fetch() {
    for package; do
        name=${package#=}
        [ ! -e "$stamps/$name" ] || continue
        parts=$(closure "$package") || return 1
        for part in $parts; do
            [ ! -e "$stamps/$part" ] || continue
            echo "fetching $part" >&2
            rm -rf "$into/new"
            mkdir -p "$into/new" "$stamps"
            (cd "$into/new" && apt download "$part" >/dev/null) || return 1
            dpkg -x "$into"/new/*.deb "$into" 2>"$into/errors" || return 1
            # Nobody's rights but one's own, as we may not be root.
            find "$into" -type f -perm /6000 -exec chmod ug-s {} +
            rm -r "$into/new"
            : >"$stamps/$part"
        done
        : >"$stamps/$name"
    done
}

if [ -n "$missing" ]; then
    if ! command -v apt-get >/dev/null || ! command -v dpkg >/dev/null; then
        echo "fetch.sh: there is no apt-get here; please install what these" \
            "Debian packages contain:$names" >&2
        exit 1
    fi
    mkdir -p "$into"
    exec 9>"$into/lock"
    flock 9
    # shellcheck disable=SC2086 # a list of words
    if ! fetch $missing; then
        # No lists yet, or old ones: get lists of our own.
        mkdir -p "$build/apt/lists/partial" "$build/apt/cache/archives/partial"
        apt_state="-o Dir::State::Lists=$build/apt/lists
            -o Dir::Cache=$build/apt/cache
            -o APT::Update::Post-Invoke::=true"
        echo "fetching the package lists" >&2
        if ! { apt update >/dev/null && fetch $missing; }; then
            cat "$into/errors" >&2
            exit 77
        fi
    fi
    exec 9>&-
fi

[ $# -gt 0 ] || exit 0

if [ -d "$into/usr" ]; then
    libraries=
    for dir in "$into"/usr/lib/*-linux-gnu* "$into"/lib/*-linux-gnu*; do
        [ ! -d "$dir" ] || libraries=$libraries:$dir
    done
    PATH=$PATH:/usr/sbin:/sbin:$into/usr/bin:$into/usr/sbin:$into/bin
    PATH=$PATH:$into/sbin
    LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-}$libraries
    LD_LIBRARY_PATH=${LD_LIBRARY_PATH#:}
    PYTHONPATH=${PYTHONPATH:+$PYTHONPATH:}$into/usr/lib/python3/dist-packages
    export PATH LD_LIBRARY_PATH PYTHONPATH
fi
PYTHON=/usr/bin/python3     # Debian's, for which its modules are
[ -x "$PYTHON" ] || PYTHON=$into/usr/bin/python3
export PYTHON
exec "$@"

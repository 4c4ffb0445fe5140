#!/bin/sh
# reproducible.sh
#
# Shows that the same source makes the same bytes: the tar file of `make dist`
# twice, and from it the helper, the static one and the container image, in
# two directories, at two times, under two umasks, languages and time zones.
# Then runs those tests on what was built from the tar file, where no git is,
# to which the tree makes a difference.
#
# What is committed is what is tested. Must write nothing outside the build
# directory and the temporary one, and must not fetch what is in the former
# already.
set -eu

top=$(cd "$(dirname "$0")/../.." && pwd)
fetched=${BUILD:-$top/build}/debian
cd "$top"
# What an outer make was told is not for those here.
unset BUILD HELPER SIM_HELPER FAULT_HELPER MAKEFLAGS MFLAGS MAKEOVERRIDES

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM HUP

same() {
    cmp "$1" "$2" && echo "the same bytes: ${2##*/} $(sha256sum <"$2")"
}

make -s dist
dist=$(echo build/prhelper-*.tar.gz)
mv "$dist" "$work/first"
touch Makefile
(umask 077 && TZ=Pacific/Chatham make -s dist)
same "$work/first" "$dist"

# unpack PLACE: the tar file, which must not depend on being in a repository.
unpack() {
    mkdir -p "$work/$1"
    gzip -dc "$dist" | tar -xf - -C "$work/$1" --strip-components=1
    [ -e "$work/$1/Makefile" ] && [ ! -e "$work/$1/.git" ]
}

unpack 'one place'
unpack another/directory/with-a-longer-name
other=$work/another/directory/with-a-longer-name
cd "$work/one place"
make -s CFLAGS='-O2 -g' all static image
cd "$other"
find . -exec touch -d '2001-02-03' {} +
(
    umask 077
    export TZ=Pacific/Chatham LC_ALL=C.UTF-8
    make -s CFLAGS='-O2 -g' all static image
)
for built in qemu-pr-helper build/static/qemu-pr-helper build/image.tar; do
    same "$work/one place/$built" "$other/$built"
done

mkdir -p "$fetched"
ln -s "$fetched" build/debian
make -s clean
make -s all
# shellcheck disable=SC2016 # for the inner shell
tests/lib/fetch.sh python3 python3-pytest -- \
    sh -c 'exec "$PYTHON" -B -m pytest -p no:cacheprovider -q \
    tests/host/test_install.py tests/host/test_options.py'

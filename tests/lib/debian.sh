#!/bin/sh
# debian.sh [-r] [-m UMASK] [-p 'PACKAGE...'] SUITE COMMAND [ARGUMENT...]
#
# Runs COMMAND in a Debian of its own: SUITE (trixie, sid, ...) with apt, the
# PACKAGEs and nothing else, made by mmdebstrap in build/roots, in which it
# stays for the next call with the same packages.  COMMAND runs as an ordinary
# user, or as root with -r, with UMASK (0022), in a copy of these sources in
# that user's home, ~/prhelper, whose build directory stays, too.  -n makes the
# root anew.  stdin, stdout and stderr are ours, of the environment only what
# names a proxy.  Ends with COMMAND's exit status, with 125 if there is no such
# root to be had, and with 77 if that is for want of the archive.  A second
# call for the same root waits for the first.
#
# Needs root.  What is mounted for COMMAND is seen by it alone, and nothing
# that it has started outlives it.  Must never write to this machine's files
# but below build/roots.
set -eu

top=$(cd "$(dirname "$0")/../.." && pwd)
user=user
mask=0022
packages=
new=
while getopts rm:p:n option; do
    case $option in
    r) user=root ;;
    m) mask=$OPTARG ;;
    p) packages=$OPTARG ;;
    n) new=1 ;;
    *) exit 125 ;;
    esac
done
shift $((OPTIND - 1))
fail() {
    echo "debian.sh: $*" >&2
    exit 125
}
[ $# -gt 1 ] || fail "needs a suite and a command"
suite=$1
shift
[ "$(id -u)" -eq 0 ] || fail "needs to be root, to make a Debian of its own"
command -v mmdebstrap >/dev/null || fail "needs mmdebstrap; please install it"

# The archive that this machine's apt uses, and how it gets there.
# shellcheck disable=SC2016 # apt's
archive=$(apt-get indextargets --format '$(ORIGIN) $(COMPONENT) $(REPO_URI)' \
    'Created-By: Packages' | sed -n '/security/d; s/^Debian main //p' | head -n 1)
proxies=$(apt-config dump | grep -i '^Acquire::https\?::Proxy' || :)

# mmdebstrap works in a directory of its own until the root is complete.
roots=$top/build/roots
# shellcheck disable=SC2086 # words
name=$(printf '%s\n' "$suite" $packages | paste -s -d +)
root=$roots/$name
mkdir -p "$roots"
exec 9>"$roots/$name.lock"
flock 9
[ -z "$new" ] || rm -rf --one-file-system "$root"
if [ ! -d "$root" ]; then
    echo "making a root of $suite in $root" >&2
    rm -rf --one-file-system "$root.new"
    # shellcheck disable=SC2016 # for the hook
    mmdebstrap --quiet --variant=apt \
        --aptopt='Acquire::Check-Valid-Until "false"' \
        ${proxies:+--aptopt="$proxies"} \
        --include="apt $packages" --customize-hook='
            echo user:x:1000:1000::/home/user:/bin/sh >>"$1/etc/passwd"
            echo user:x:1000: >>"$1/etc/group"
            install -d -o 1000 -g 1000 "$1/home/user"' \
        "$suite" "$root.new" ${archive:+"$archive"} 9>&- </dev/null || {
        rm -rf --one-file-system "$root.new"
        echo "debian.sh: no root of $suite could be made" >&2
        exit 77
    }
    mv "$root.new" "$root"
fi

home=/home/user
[ $user = user ] || home=/root
copy=$root$home/prhelper
mkdir -p "$copy"
find "$copy" -mindepth 1 -maxdepth 1 ! -name build \
    ! -name qemu-pr-helper ! -name qemu-pr-client -exec rm -rf {} +
(umask "$mask" && cd "$top" && tar --exclude=./build --exclude=./.git \
    --exclude=./qemu-pr-helper --exclude=./qemu-pr-client -cf - . |
    tar -C "$copy" --no-same-permissions --no-same-owner -xf -)
[ $user = root ] || chroot "$root" chown -R user: $home/prhelper

exec 8<&0 # a command in the background has none
# shellcheck disable=SC2016 # for the inner shells
unshare --mount --propagation private --pid --fork --kill-child sh -c '
    root=$1 user=$2 home=$3
    shift 3
    set -e
    mount --rbind /dev "$root/dev"
    mount -t proc proc "$root/proc"
    mount --rbind /sys "$root/sys"
    mount -t tmpfs -o mode=1777 tmp "$root/tmp"
    mount -t tmpfs -o mode=755 run "$root/run"
    cp -L /etc/resolv.conf /etc/hosts "$root/etc/" 2>/dev/null || :
    path=/usr/local/bin:/usr/bin:/bin
    [ "$user" = user ] || path=/usr/local/sbin:$path:/usr/sbin:/sbin
    status=0
    chroot --userspec="$user:$user" "$root" env -i PATH="$path" \
        HOME="$home" USER="$user" \
        ${TERM:+"TERM=$TERM"} ${http_proxy:+"http_proxy=$http_proxy"} \
        ${https_proxy:+"https_proxy=$https_proxy"} \
        ${no_proxy:+"no_proxy=$no_proxy"} "$@" || status=$?
    exit $status' sh "$root" $user "$home" \
    sh -c 'umask "$1"; shift; cd ~/prhelper; exec "$@"' sh "$mask" "$@" \
    <&8 8<&- 9>&- &
pid=$!
trap 'kill -KILL $pid; wait $pid; exit 143' INT TERM HUP
wait $pid

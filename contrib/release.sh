#!/bin/sh
# release.sh VERSION
#
# Makes, in build/release, all that is published of a version: the tar file
# (make dist) and, built from it, both programs for each of MACHINES, static;
# one container image for all of these; the Debian package of the Debian that
# this runs on, or of each of SUITES in a Debian of its own (as root, with
# mmdebstrap); an SBOM (SPDX 2.3); SHA256SUMS of all that; and, if KEY is an
# SSH key, its signature. The same commit and the same compilers, which the
# SBOM names, make the same bytes.
#
# Needs a cross compiler for each machine. The libc of the static programs,
# musl, is built, too: one version for all machines and whatever Debian this
# is, fetched by its hash.
#
# Must release nothing that is not committed, and must leave no build/release
# at all if any part of it is missing.
set -eu
umask 022

version=$1
top=$(cd "$(dirname "$0")/.." && pwd)
cd "$top"
MACHINES=${MACHINES:-x86_64 aarch64 arm i386 ppc64le riscv64 s390x}
SUITES=${SUITES:-}
KEY=${KEY:-}
export LC_ALL=C TZ=UTC
# What is said on the command line of make, or usual here, is not for a release.
unset BUILD CC CPPFLAGS CFLAGS LDFLAGS DEB_BUILD_OPTIONS MAKEFLAGS MFLAGS \
    MAKEOVERRIDES VERSION

release=build/release
rm -rf "$release"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM HUP

fail() {
    echo "make release: $*" >&2
    exit 1
}

# git ...: whoever's this repository is.
git() {
    command git -c safe.directory="$top" "$@"
}

# what MACHINE: Debian's name of it, and its compiler's, with flags.
what() {
    flags=
    case $1 in
    x86_64) debian=amd64 compiler=x86_64-linux-gnu ;;
    aarch64) debian=arm64 compiler=aarch64-linux-gnu ;;
    arm) debian=armhf compiler=arm-linux-gnueabihf ;;
    i386) debian=i386 compiler=i686-linux-gnu ;;
    ppc64le) # musl has no other long double there
        debian=ppc64el compiler=powerpc64le-linux-gnu flags=-mlong-double-64
        ;;
    riscv64) debian=riscv64 compiler=riscv64-linux-gnu ;;
    s390x) debian=s390x compiler=s390x-linux-gnu ;;
    *) fail "there is no machine $1" ;;
    esac
}

# headers: where the kernel's are for $compiler, whose own folder comes first.
headers() {
    place=$(command -v "$compiler-gcc")
    for include in "${place%/bin/*}/$compiler/include" \
        "/usr/include/$("$compiler-gcc" -print-multiarch)"; do
        [ ! -e "$include/asm/unistd.h" ] || return 0
    done
    return 1
}

# ready: has this machine all that it takes? Says all that is missing at once.
ready() {
    missing=
    case $top in
    *[[:space:]]*) fail "musl cannot be built in a path with a blank: $top" ;;
    esac
    for machine in $MACHINES; do
        what "$machine"
        if ! command -v "$compiler-gcc" >/dev/null; then
            echo "$machine: there is no $compiler-gcc: please install" \
                "gcc-$(echo "$compiler" | tr _ -)" >&2
            missing=1
        elif ! headers; then
            echo "$machine: there are no headers of its kernel: please" \
                "install linux-libc-dev-$debian-cross" >&2
            missing=1
        fi
    done
    while read -r program package; do
        if [ -n "$program" ] && ! command -v "$program" >/dev/null; then
            echo "there is no $program: please install $package" >&2
            missing=1
        fi
    done <<END
git git
$([ -n "$SUITES" ] && echo mmdebstrap mmdebstrap ||
        printf '%s\n' 'dpkg-buildpackage dpkg-dev' 'dh debhelper')
${KEY:+ssh-keygen openssh-client}
END
    [ -z "$missing" ] || fail "not everything is there"
    [ -z "$SUITES" ] || [ "$(id -u)" -eq 0 ] || fail "SUITES takes root"
    [ -z "$KEY" ] || [ -r "$KEY" ] || fail "$KEY cannot be read"
    git diff --quiet HEAD ||
        fail "there are changes that are not committed"
}

# fetch: musl's own tar file, which Debian keeps, too.
musl=1.2.5
musl_sum=a9a118bbe84d8764da0ea0d28b3ab3fae8477fc7e4085d90102b8596fc7c75e4
fetch() {
    tar=build/debian/musl-$musl.tar.gz
    mkdir -p build/debian
    for url in "$archive/pool/main/m/musl/musl_$musl.orig.tar.gz" \
        "https://musl.libc.org/releases/musl-$musl.tar.gz"; do
        echo "$musl_sum  $tar" | sha256sum --status -c 2>/dev/null ||
            /usr/lib/apt/apt-helper -qq download-file "$url" "$tar" \
                "SHA256:$musl_sum" 2>"$work/log" || cat "$work/log" >&2
    done
    tar -C "$work" -xzf "$tar" || fail "there is no musl $musl to be had"
}

# musl_build: for $compiler, to $libc, where it stays for the next release.
musl_build() {
    rm -rf "$work/musl"
    mkdir -p "$work/musl"
    (cd "$work/musl" && CC="$compiler-gcc $flags" CROSS_COMPILE="$compiler-" \
        "$work/musl-$musl/configure" --host="$compiler" --prefix="$libc" \
        --disable-shared --disable-wrapper &&
        make -s -j "$(nproc)" install) >"$work/log" 2>&1 || {
        cat "$work/log" >&2
        fail "musl for $machine could not be built"
    }
    : >"$libc/complete"
}

# static MACHINE: its libc, and with that both programs, in the release.
static() {
    machine=$1
    what "$machine"
    headers
    libc=$top/build/debian/musl-$musl/$("$compiler-gcc" --version |
        sed 's/[^A-Za-z0-9.+-]/_/g; q')
    [ -e "$libc/complete" ] || musl_build
    sh "$work/musl-$musl/tools/musl-gcc.specs.sh" "$libc/include" \
        "$libc/lib" none >"$work/specs"
    make -s -C "$source" BUILD="$work/$machine" STRIP="$compiler-strip" \
        STATIC_CC="$compiler-gcc $flags -specs=$work/specs" \
        KERNEL_HEADERS="-idirafter $include -idirafter /usr/include" static
    for program in helper client; do
        mv "$work/$machine/static/qemu-pr-$program" \
            "$work/release/qemu-pr-$program-$version-$machine"
    done
}

# packages: Debian's, of this Debian or of all SUITES.
packages() {
    if [ -z "$SUITES" ]; then
        make -s -C "$source" deb >"$work/log" 2>&1 || {
            cat "$work/log" >&2
            fail "the Debian package could not be built"
        }
        # shellcheck source=/dev/null
        publish "$source" "$(. /etc/os-release && echo "$VERSION_CODENAME")"
    fi
    mkdir -p build/roots "$source/build"
    ln -s "$top/build/roots" "$source/build/roots"
    tools='build-essential debhelper'
    for suite in $SUITES; do
        "$source/tests/lib/debian.sh" -p "$tools" "$suite" \
            env SOURCE_DATE_EPOCH="$SOURCE_DATE_EPOCH" make -s deb \
            >"$work/log" 2>&1 || {
            cat "$work/log" >&2
            fail "the package for $suite could not be built"
        }
        publish "build/roots/$suite+$(echo "$tools" |
            tr ' ' +)/home/user/prhelper" "$suite"
    done
}

# publish SOURCE SUITE: the package that was built there.
publish() {
    for deb in "$1"/build/deb/prhelper_*.deb; do
        file=${deb##*/}
        cp "$deb" "$work/release/${file%.deb}_$2.deb"
    done
}

# sbom: what the tar file has, and what the static programs have beside it.
sbom() {
    cat <<END
{
    "spdxVersion": "SPDX-2.3",
    "dataLicense": "CC0-1.0",
    "SPDXID": "SPDXRef-DOCUMENT",
    "name": "$name",
    "documentNamespace": "https://spdx.org/spdxdocs/$name-$sum",
    "creationInfo": {
        "created": "$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)",
        "creators": ["Organization: the prhelper authors", "Tool: release.sh-$version"],
        "comment": "Compilers: $(for machine in $MACHINES; do
        what "$machine"
        "$compiler-gcc" --version | head -n 1
    done | paste -s -d ';')"
    },
    "packages": [
        {
            "SPDXID": "SPDXRef-prhelper",
            "name": "prhelper",
            "versionInfo": "$version",
            "packageFileName": "$name.tar.gz",
            "checksums": [{"algorithm": "SHA256", "checksumValue": "$sum"}],
            "sourceInfo": "git commit $commit",
            "supplier": "Organization: the prhelper authors",
            "downloadLocation": "NOASSERTION",
            "filesAnalyzed": false,
            "primaryPackagePurpose": "APPLICATION",
            "licenseConcluded": "MIT",
            "licenseDeclared": "MIT",
            "copyrightText": "$(sed -n '/^Copyright/p' LICENSE)"
        },
        {
            "SPDXID": "SPDXRef-musl",
            "name": "musl",
            "versionInfo": "$musl",
            "packageFileName": "musl-$musl.tar.gz",
            "checksums": [{"algorithm": "SHA256", "checksumValue": "$musl_sum"}],
            "supplier": "NOASSERTION",
            "downloadLocation": "https://musl.libc.org/releases/musl-$musl.tar.gz",
            "filesAnalyzed": false,
            "primaryPackagePurpose": "LIBRARY",
            "licenseConcluded": "NOASSERTION",
            "licenseDeclared": "MIT",
            "copyrightText": "NOASSERTION"
        }
    ],
    "relationships": [
        {
            "spdxElementId": "SPDXRef-DOCUMENT",
            "relationshipType": "DESCRIBES",
            "relatedSpdxElement": "SPDXRef-prhelper"
        },
        {
            "spdxElementId": "SPDXRef-prhelper",
            "relationshipType": "STATIC_LINK",
            "relatedSpdxElement": "SPDXRef-musl",
            "comment": "In the static programs and the image; the Debian packages take the system's libc."
        }
    ]
}
END
}

ready
commit=$(git rev-parse HEAD)
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
# The archive that this machine's apt uses.
# shellcheck disable=SC2016 # apt's
archive=${ARCHIVE:-$(apt-get indextargets \
    --format '$(ORIGIN) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
    sed -n '/security/d; s|/*$||; s/^Debian main //p' | head -n 1)}

make -s dist
name=prhelper-$version
source=$work/$name
mkdir "$work/release"
mv "build/$name.tar.gz" "$work/release"
tar -C "$work" -xzf "$work/release/$name.tar.gz"
sum=$(sha256sum <"$work/release/$name.tar.gz" | cut -d ' ' -f 1)

fetch
set --
for machine in $MACHINES; do
    echo "static programs for $machine"
    static "$machine"
    set -- "$@" "$work/release/qemu-pr-helper-$version-$machine"
done
"$source/contrib/image.sh" "$work/release/$name-image.tar" "$version" "$@"
echo "Debian package for ${SUITES:-this Debian}"
packages
sbom >"$work/release/$name.spdx.json"
(cd "$work/release" && sha256sum -- * >"$work/SHA256SUMS")
mv "$work/SHA256SUMS" "$work/release"
[ -z "$KEY" ] ||
    ssh-keygen -q -Y sign -f "$KEY" -n prhelper "$work/release/SHA256SUMS"
mv "$work/release" "$release"
echo "$release:"
cat "$release/SHA256SUMS"

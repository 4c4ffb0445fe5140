#!/bin/sh
# check-release.sh
#
# `make release` twice, from two clones in two places, under two umasks,
# languages and time zones: the same bytes. Then what a stranger does with it:
# README's commands that verify it, with a key made for this, and that they
# refuse what was changed; the SBOM has the fields that SPDX 2.3 requires;
# skopeo finds an image for each machine; each static program runs, where
# qemu-user can run it. Takes minutes, as it builds a libc for each machine.
#
# What is committed is what is tested. Must write nothing outside the build
# directory and the temporary one.
set -eu

top=$(cd "$(dirname "$0")/../.." && pwd)
unset BUILD MACHINES SUITES KEY MAKEFLAGS MFLAGS MAKEOVERRIDES
[ -n "${RELEASE_FETCHED:-}" ] ||
    RELEASE_FETCHED=1 exec "$top/tests/lib/fetch.sh" gcc-aarch64-linux-gnu \
        gcc-arm-linux-gnueabihf gcc-i686-linux-gnu \
        gcc-powerpc64le-linux-gnu gcc-riscv64-linux-gnu gcc-s390x-linux-gnu \
        libc6-dev-arm64-cross libc6-dev-armhf-cross libc6-dev-i386-cross \
        libc6-dev-ppc64el-cross libc6-dev-riscv64-cross \
        libc6-dev-s390x-cross qemu-user skopeo openssh-client python3 -- "$0"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM HUP
fail() {
    echo "check-release: $*" >&2
    exit 1
}

# clone PLACE: with what has been fetched and built for it already.
clone() {
    git clone -q "$top" "$1"
    mkdir -p "$top/build/debian" "$1/build"
    ln -s "$top/build/debian" "$1/build/debian"
}

ssh-keygen -q -t ed25519 -N '' -C test -f "$work/key"
clone "$work/one"
clone "$work/another/directory/with-a-longer-name"
other=$work/another/directory/with-a-longer-name
make -s -C "$work/one" release KEY="$work/key"
# One libc is built again, to see that it comes out the same.
rm "$other/build/debian"
mkdir "$other/build/debian"
cp -r "$top"/build/debian/musl-* "$other/build/debian"
rm -rf "$other"/build/debian/musl-*/x86*
(
    umask 077
    export TZ=Pacific/Chatham LC_ALL=C.UTF-8 CFLAGS=-O0 LDFLAGS=-Wl,-s
    make -s -C "$other" release >/dev/null
)
cmp "$work/one/build/release/SHA256SUMS" "$other/build/release/SHA256SUMS" ||
    fail "two places made two releases"

cd "$work/one/build/release"
[ "$(find . -type f ! -name 'SHA256SUMS*' | wc -l)" = \
    "$(wc -l <SHA256SUMS)" ] || fail "not everything has its sum"

# README's way.
verified() {
    printf 'prhelper %s\n' "$(cat "$work/key.pub")" >"$work/signers" &&
        ssh-keygen -Y verify -f "$work/signers" -I prhelper -n prhelper \
            -s SHA256SUMS.sig <SHA256SUMS && sha256sum --quiet --ignore-missing -c SHA256SUMS
}
verified || fail "it does not verify"
echo >>SHA256SUMS
! verified >/dev/null 2>&1 || fail "changed sums verify"
cp "$other/build/release/SHA256SUMS" .
echo >>"$(echo prhelper-*.spdx.json)"
! verified >/dev/null 2>&1 || fail "a changed file verifies"
cp "$other"/build/release/prhelper-*.spdx.json .

"$PYTHON" - prhelper-*.spdx.json prhelper-*.tar.gz <<'END'
import hashlib, json, re, sys
with open(sys.argv[1]) as f:
    sbom = json.load(f)
with open(sys.argv[2], 'rb') as f:
    tar = hashlib.sha256(f.read()).hexdigest()
made = sbom['creationInfo']
assert sbom['spdxVersion'] == 'SPDX-2.3' and sbom['dataLicense'] == 'CC0-1.0'
assert sbom['SPDXID'] == 'SPDXRef-DOCUMENT' and sbom['name']
assert re.fullmatch(r'https?://[^#\s]+', sbom['documentNamespace'])
assert re.fullmatch(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ', made['created'])
for creator in made['creators']:
    assert re.fullmatch(r'(Person|Organization|Tool): \S.*', creator)
packages = {package['SPDXID']: package for package in sbom['packages']}
assert len(packages) == len(sbom['packages'])
for name, package in packages.items():
    assert re.fullmatch(r'SPDXRef-[A-Za-z0-9.-]+', name)
    # With files that were not analysed, these must not be there.
    assert package['filesAnalyzed'] is False
    assert not {'packageVerificationCode', 'hasFiles'} & package.keys()
    for field in ('name', 'versionInfo', 'downloadLocation',
                  'licenseConcluded', 'licenseDeclared', 'copyrightText',
                  'supplier'):
        assert package[field], (name, field)
assert packages['SPDXRef-prhelper']['checksums'] == [
    {'algorithm': 'SHA256', 'checksumValue': tar}]
for relation in sbom['relationships']:
    for end in 'spdxElementId', 'relatedSpdxElement':
        assert relation[end] in {'SPDXRef-DOCUMENT', *packages}
assert ('SPDXRef-DOCUMENT', 'DESCRIBES', 'SPDXRef-prhelper') in [
    (r['spdxElementId'], r['relationshipType'], r['relatedSpdxElement'])
    for r in sbom['relationships']]
END

# Copying reads every blob, and compares it with its digest.
image=oci-archive:$(echo prhelper-*-image.tar)
skopeo --insecure-policy copy -q --all "$image" "dir:$work/copy"
for machine in amd64:x86_64 arm64:aarch64 arm:arm 386:i386 ppc64le:ppc64le \
    riscv64:riscv64 s390x:s390x; do
    name=${machine#*:} machine=${machine%:*}
    skopeo --override-arch "$machine" inspect --config "$image" |
        grep -q "\"architecture\": *\"$machine\"" ||
        fail "the image has nothing for $machine"
    for program in qemu-pr-helper-*-"$name" qemu-pr-client-*-"$name"; do
        if [ "$name" != "$(uname -m)" ] &&
            command -v "qemu-$name" >/dev/null; then
            said=$("qemu-$name" "$program" -V)
        else
            said=$("./$program" -V)
        fi
        case $said in
        *prhelper*) ;;
        *) fail "$program says $said" ;;
        esac
    done
done
dpkg-deb --info prhelper_*.deb >/dev/null
echo "the release is the same from two places, and verifies:"
cat SHA256SUMS

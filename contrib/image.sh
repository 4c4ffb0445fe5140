#!/bin/sh
# image.sh IMAGE VERSION PROGRAM...
#
# Makes a container image of the static helper PROGRAM: an OCI image layout
# (image-spec 1.0) in the tar file IMAGE, which skopeo, podman and the rest
# take as oci-archive:IMAGE. It has the helper, its name in KubeVirt's pods
# /entrypoint.sh, and nothing else. Of several PROGRAMs, each for another
# machine, it makes one image for all of these, an OCI image index. The same
# PROGRAMs make the same bytes; its time is SOURCE_DATE_EPOCH, or 1970.
#
# Needs GNU tar, and must need neither root nor a container engine. Must never
# put anything else into the image: whoever breaks into the helper shall find
# no second program.
set -eu
umask 022

image=$1
version=$2
shift 2
epoch=${SOURCE_DATE_EPOCH:-0}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM HUP

# machine PROGRAM: what it runs on, by byte order and machine in its ELF header.
machine() {
    case $(od -An -j5 -N1 -tu1 "$1" | tr -d ' ')$(
        od -An -j18 -N2 -tx1 "$1") in
    '1 3e 00') architecture='"amd64"' ;;
    '1 03 00') architecture='"386"' ;;
    '1 b7 00') architecture='"arm64", "variant": "v8"' ;;
    '1 28 00') architecture='"arm", "variant": "v7"' ;;
    '1 f3 00') architecture='"riscv64"' ;;
    '1 15 00') architecture='"ppc64le"' ;;
    '2 00 16') architecture='"s390x"' ;;
    *)
        echo "image.sh: $1 is of no machine that I know" >&2
        exit 1
        ;;
    esac
}

# pack DIRECTORY NAME...: a tar file that tells nothing of who made it.
pack() (
    cd "$1"
    shift
    tar --format=ustar --no-recursion --numeric-owner --owner=0 --group=0 \
        --mode=u=rwX,go=rX --mtime="@$epoch" -cf - "$@"
)

digest() {
    sha256sum <"$1" | cut -d ' ' -f 1
}

# blob TYPE FILE: moves it into the layout; prints its descriptor, which ends
# where annotations could stand.
blob() {
    hash=$(digest "$2")
    printf '{"mediaType": "application/vnd.oci.image.%s", ' "$1"
    printf '"digest": "sha256:%s", "size": %d' "$hash" "$(wc -c <"$2")"
    mv "$2" "$work/layout/blobs/sha256/$hash"
}

# manifest PROGRAM: of the image for its machine, as the descriptor $manifest.
#
# The user is root by number (the image has no /etc/passwd): another user
# would lose CAP_SYS_RAWIO at exec, might not make a socket in the directory
# that the host lends, and multipathd takes orders of root only. Of root's
# power the helper keeps that one capability.
manifest() {
    machine "$1"
    rm -rf "$work/root"
    mkdir -p "$work/root/usr/bin"
    cp "$1" "$work/root/usr/bin/qemu-pr-helper"
    chmod 755 "$work/root/usr/bin/qemu-pr-helper"
    ln -s usr/bin/qemu-pr-helper "$work/root/entrypoint.sh"
    pack "$work/root" entrypoint.sh usr usr/bin usr/bin/qemu-pr-helper \
        >"$work/layer"
    content=$(digest "$work/layer")
    gzip -9n "$work/layer"
    layer=$(blob layer.v1.tar+gzip "$work/layer.gz")
    cat >"$work/config" <<END
{
    "created": "$(date -u -d "@$epoch" +%Y-%m-%dT%H:%M:%SZ)",
    "architecture": $architecture,
    "os": "linux",
    "config": {
        "User": "0:0",
        "Entrypoint": ["/entrypoint.sh"],
        "Labels": {
            "org.opencontainers.image.title": "prhelper",
            "org.opencontainers.image.description": "SCSI persistent reservations for QEMU's virtual machines",
            "org.opencontainers.image.version": "$version",
            "org.opencontainers.image.licenses": "MIT"
        }
    },
    "rootfs": {"type": "layers", "diff_ids": ["sha256:$content"]}
}
END
    config=$(blob config.v1+json "$work/config")
    cat >"$work/manifest" <<END
{
    "schemaVersion": 2,
    "mediaType": "application/vnd.oci.image.manifest.v1+json",
    "config": $config},
    "layers": [$layer}]
}
END
    manifest=$(blob manifest.v1+json "$work/manifest")
}

# index DESCRIPTORS: an index of these, on stdout.
index() {
    cat <<END
{
    "schemaVersion": 2,
    "mediaType": "application/vnd.oci.image.index.v1+json",
    "manifests": [$1]
}
END
}

mkdir -p "$work/layout/blobs/sha256"
if [ $# -eq 1 ]; then
    manifest "$1"
    whole=$manifest
else
    manifests=
    for program; do
        manifest "$program"
        manifests="${manifests:+$manifests,
        }$manifest, \"platform\": {\"architecture\": $architecture, \"os\": \"linux\"}}"
    done
    index "$manifests" >"$work/index"
    whole=$(blob index.v1+json "$work/index")
fi
index "$whole,
        \"annotations\": {\"org.opencontainers.image.ref.name\": \"prhelper:$version\"}}" \
    >"$work/layout/index.json"
echo '{"imageLayoutVersion": "1.0.0"}' >"$work/layout/oci-layout"
# shellcheck disable=SC2046 # names without blanks
pack "$work/layout" oci-layout index.json blobs blobs/sha256 \
    $(cd "$work/layout" && echo blobs/sha256/*) >"$work/image"
mv "$work/image" "$image"

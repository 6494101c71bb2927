#!/usr/bin/env bash
# Make sure that the base image of the Dockerfile is here: `deploy/base-image.sh debian:bookworm-slim`.
# It does nothing when the image is here already, else pulls it. Where no image registry can be reached it makes a
# minimal Debian of that name out of Debian's own packages (as root, with debootstrap). `make image` runs it.
set -euo pipefail

image=${1:?which image? e.g. debian:bookworm-slim}

if docker image inspect "$image" >/dev/null 2>&1; then
    exit 0
fi
if docker pull --quiet "$image" 2>/dev/null; then
    exit 0
fi

case $image in
debian:*) suite=${image#debian:} suite=${suite%-slim} ;;
*)
    echo "$image is not here and cannot be pulled; only debian:SUITE or debian:SUITE-slim can be made without a registry" >&2
    exit 1
    ;;
esac
if ! command -v debootstrap >/dev/null; then
    echo "$image cannot be pulled, and to make it debootstrap is missing: apt-get install debootstrap" >&2
    exit 1
fi
if [ "$(id -u)" != 0 ]; then
    echo "$image cannot be pulled, and to make it debootstrap must run as root: sudo $0 $image" >&2
    exit 1
fi

echo "$image cannot be pulled; making it with debootstrap (a minute)" >&2
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# DEBIAN_MIRROR: a mirror of your own; empty is debootstrap's default.
if ! debootstrap --variant=minbase "$suite" "$folder/root" ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"} >"$folder/log" 2>&1; then
    tail -n 20 "$folder/log" >&2
    exit 1
fi
rm -rf "$folder"/root/var/cache/apt/archives/*.deb "$folder"/root/var/lib/apt/lists/*
tar --numeric-owner -C "$folder/root" -c . | docker import --change 'CMD ["bash"]' - "$image" >/dev/null
echo "$image is made" >&2

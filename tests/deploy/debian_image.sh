#!/bin/sh
# Makes an image like debian:bookworm-slim out of Debian's packages, for machines that cannot pull.
#
#   sh tests/deploy/debian_image.sh NAME [FOLDER]
#
# Needs root, debootstrap and a Docker engine. The folder keeps what was downloaded for the next time.
set -eu
name=$1
folder=${2:-/var/tmp/neurona-debian}
mirror=$(sed -n 's/^URIs: //p; s/^deb \([^ ]*\) .*/\1/p' \
    /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null | head -n 1)
mirror=${mirror:-http://deb.debian.org/debian}

if [ ! -e "$folder/etc/debian_version" ]; then
    rm -rf "$folder"
    debootstrap --variant=minbase bookworm "$folder" "$mirror"
fi
# What the slim images leave out.
printf '%s\n' 'path-exclude /usr/share/doc/*' 'path-exclude /usr/share/man/*' \
    'path-exclude /usr/share/locale/*' >"$folder/etc/dpkg/dpkg.cfg.d/docker"
# A machine behind a proxy that signs what passes: the builds must trust it as the machine does.
mkdir -p "$folder/usr/local/share/ca-certificates"
cp /usr/local/share/ca-certificates/*.crt "$folder/usr/local/share/ca-certificates/" 2>/dev/null || :

tar -C "$folder" --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' \
    --exclude='./usr/share/locale/*' --exclude='./var/cache/apt/*.bin' \
    --exclude='./var/cache/apt/archives/*.deb' --exclude='./var/lib/apt/lists/*' \
    --exclude='./dev/*' -c . |
    docker import --change 'CMD ["bash"]' - "$name"

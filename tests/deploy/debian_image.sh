#!/bin/sh
# Builds an image like debian:bookworm-slim from Debian's packages, for machines that cannot pull it.
#
#   sh tests/deploy/debian_image.sh NAME [FOLDER]
#
# Needs root, debootstrap and a Docker engine. The folder is reused the next time.
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
# Files that slim images omit.
printf '%s\n' 'path-exclude /usr/share/doc/*' 'path-exclude /usr/share/man/*' \
    'path-exclude /usr/share/locale/*' >"$folder/etc/dpkg/dpkg.cfg.d/docker"
# Builds must trust the certificates of a proxy that the machine trusts.
mkdir -p "$folder/usr/local/share/ca-certificates"
cp /usr/local/share/ca-certificates/*.crt "$folder/usr/local/share/ca-certificates/" 2>/dev/null || :

tar -C "$folder" --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' \
    --exclude='./usr/share/locale/*' --exclude='./var/cache/apt/*.bin' \
    --exclude='./var/cache/apt/archives/*.deb' --exclude='./var/lib/apt/lists/*' \
    --exclude='./dev/*' -c . |
    docker import --change 'CMD ["bash"]' - "$name"

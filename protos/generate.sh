#!/bin/sh
# Writes the generated files into neurona_protos/, or into the folder that is named.
# The -I mapping gives their imports the installed package's name.
set -eu
here=$(dirname "$0")
out=${1:-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m grpc_tools.protoc "-Ineurona_protos=$here" \
    --python_out="$work" --pyi_out="$work" --grpc_python_out="$work" \
    "$here"/*.proto
cp "$work"/neurona_protos/* "${out:-$here/neurona_protos}/"

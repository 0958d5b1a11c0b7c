#!/bin/sh
# Generates src/generated/ from the .proto files, or the same files in another folder: generate.sh FOLDER
# protoc is that of grpcio-tools, in the Python that $PYTHON names.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/src/generated}
protos=${PROTOS:-$here/../../protos}
options=env=node,esModuleInterop=true,outputServices=grpc-js,importSuffix=.js,oneof=unions-value
options=$options,outputJsonMethods=false,useExactTypes=false,stringEnums=false,outputIndex=false
mkdir -p "$out"
"${PYTHON:-python3}" -m grpc_tools.protoc "-I$protos" "-I$here" \
    "--plugin=${MODULES:-$here/node_modules}/.bin/protoc-gen-ts_proto" \
    "--ts_proto_out=$out" "--ts_proto_opt=$options" prediction.proto health.proto

"""Writes neurona_v1.md beside it, the reference of the API, from the comments in prediction.proto.

    python protos/docs/generate.py [FOLDER]

`make docs` calls it; tests/test_reference.py fails when the page is not what the file says.
"""

import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)
from grpc_tools import protoc

PROTOS = Path(__file__).parents[1]
HEAD = (
    "<!-- Written from protos/prediction.proto by protos/docs/generate.py: run `make docs`. -->\n"
)
MESSAGE, ENUM, SERVICE = 4, 5, 6  # fields of FileDescriptorProto
FIELD, NESTED, NESTED_ENUM, ONEOF = 2, 3, 4, 8  # of DescriptorProto
VALUE = METHOD = 2  # of EnumDescriptorProto and ServiceDescriptorProto

Path_ = tuple[int, ...]
Comments = Mapping[Path_, str]


def reference() -> str:
    """The whole page."""
    file = _described()
    comments = {
        tuple(place.path): _text(place.leading_comments or place.trailing_comments)
        for place in file.source_code_info.location
    }
    introduction = next(
        (
            _text(place.leading_detached_comments[0])
            for place in file.source_code_info.location
            if place.leading_detached_comments
        ),
        "",
    )
    parts = [HEAD, f"# The API {file.package}\n", introduction + "\n"]
    for number, service in enumerate(file.service):
        parts += _service(service, (SERVICE, number), comments)
    parts.append("## Messages\n")
    for number, message in enumerate(file.message_type):
        parts += _message(message, message.name, (MESSAGE, number), comments)
    parts.append("## Enums\n")
    for number, enum in enumerate(file.enum_type):
        parts += _enum(enum, enum.name, (ENUM, number), comments)
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def _described() -> FileDescriptorProto:
    """prediction.proto with its comments."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set"
        arguments = ["protoc", f"-I{PROTOS}", f"--descriptor_set_out={out}"]
        if protoc.main([*arguments, "--include_source_info", str(PROTOS / "prediction.proto")]):
            raise SystemExit("prediction.proto cannot be compiled")
        return FileDescriptorSet.FromString(out.read_bytes()).file[0]


def _service(service: ServiceDescriptorProto, path: Path_, comments: Comments) -> Iterator[str]:
    yield f"## {service.name}\n"
    yield comments.get(path, "") + "\n"
    for number, method in enumerate(service.method):
        takes = ("stream " if method.client_streaming else "") + _link(method.input_type)
        gives = ("stream " if method.server_streaming else "") + _link(method.output_type)
        yield f"### {service.name}.{method.name}\n"
        yield f"{takes} → {gives}\n"
        yield comments.get((*path, METHOD, number), "") + "\n"


def _message(message: DescriptorProto, name: str, path: Path_, comments: Comments) -> Iterator[str]:
    maps = {one.name for one in message.nested_type if one.options.map_entry}
    yield f"### {name}\n"
    yield comments.get(path, "") + "\n"
    if message.field:
        yield _table(
            ("Field", "Type", "Meaning"),
            [
                (
                    f"`{field.name}` = {field.number}",
                    _type(field, message, maps),
                    comments.get((*path, FIELD, number), "") or _of_oneof(field, path, comments),
                )
                for number, field in enumerate(message.field)
            ],
        )
    for number, nested in enumerate(message.nested_type):
        if nested.name not in maps:
            yield from _message(nested, f"{name}.{nested.name}", (*path, NESTED, number), comments)
    for number, enum in enumerate(message.enum_type):
        yield from _enum(enum, f"{name}.{enum.name}", (*path, NESTED_ENUM, number), comments)


def _enum(enum: EnumDescriptorProto, name: str, path: Path_, comments: Comments) -> Iterator[str]:
    yield f"### {name}\n"
    yield comments.get(path, "") + "\n"
    yield _table(
        ("Value", "Number", "Meaning"),
        [
            (f"`{value.name}`", str(value.number), comments.get((*path, VALUE, number), ""))
            for number, value in enumerate(enum.value)
        ],
    )


def _of_oneof(field: FieldDescriptorProto, path: Path_, comments: Comments) -> str:
    if not field.HasField("oneof_index") or field.proto3_optional:
        return ""
    return comments.get((*path, ONEOF, field.oneof_index), "")


def _type(field: FieldDescriptorProto, message: DescriptorProto, maps: set[str]) -> str:
    entry = field.type_name.rpartition(".")[2]
    if entry in maps:
        (pair,) = (one for one in message.nested_type if one.name == entry)
        key, value = (_type(one, pair, set()) for one in pair.field)
        return f"map of {key} to {value}"
    kind = (
        _link(field.type_name)
        if field.type_name
        else FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    )
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {kind}"
    if field.proto3_optional:
        return f"optional {kind}"
    return f"one of: {kind}" if field.HasField("oneof_index") else kind


def _link(type_name: str) -> str:
    name = type_name.removeprefix(".neurona.v1.")
    return f"[{name}](#{name.lower().replace('.', '')})"


def _text(comment: str) -> str:
    """A comment without its first spaces; an indented block becomes a block of code."""
    lines = [line.removeprefix(" ") for line in comment.strip("\n").splitlines()]
    text = re.sub(r"(?m)^ {2}", " " * 4, "\n".join(lines).rstrip())
    return re.sub(r"(?m)^(\S.*)\n(?= {4})", r"\1\n\n", text)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    cells = [[" ".join(cell.replace("|", "\\|").split()) for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def main(folder: Path) -> None:
    """Write the page into a folder."""
    (folder / "neurona_v1.md").write_text(reference(), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)

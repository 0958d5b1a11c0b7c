"""Says what a model's file seems to be if it is not ONNX, from a few bytes of it.

People put in place what their framework saves, what a download left in place of the file, or an
archive of it. Nothing is unpickled, unpacked or parsed further than its head and its end.
"""

import contextlib
import io
import pickletools
import re
from typing import BinaryIO

EXPORT = "export the model to ONNX"
_HEAD_BYTES = 4096
_TAIL_BYTES = 1 << 16
"""Where a zip archive lists its files."""

_MAX_SAFETENSORS_HEADER = 100_000_000  # the limit of the format
_PICKLE_OPCODES = 12  # that are looked at
_MEMO_OPCODES = {"PUT", "BINPUT", "LONG_BINPUT", "GLOBAL", "REDUCE"}  # no text has them by chance

_SIGNATURES = (
    (0, b"version https://git-lfs", "a Git LFS pointer: fetch the file itself with git lfs pull"),
    (0, b"version https://hawser", "a Git LFS pointer: fetch the file itself with git lfs pull"),
    (0, b"# xet version", "a pointer of git-xet: fetch the file itself"),
    (0, b"\x89HDF\r\n\x1a\n", f"an HDF5 file, as Keras saves models and weights: {EXPORT}"),
    (4, b"ORTM", "ORT format (.ort): put the .onnx file there that it was made of"),
    (4, b"TFL3", f"a TensorFlow Lite model (TFLite): {EXPORT}"),
    (0, b"GGUF", "GGUF, of llama.cpp: it holds weights for a program, not a graph"),
    (0, b"tjgg", "GGML, of llama.cpp: it holds weights for a program, not a graph"),
    (0, b"lmgg", "GGML, of llama.cpp: it holds weights for a program, not a graph"),
    (0, b"\x93NUMPY", "a NumPy array (.npy)"),
    (0, b"ir_version:", "ONNX as protobuf's text: save the model in the binary form"),
    (0, b"CBM1", f"a CatBoost model (.cbm): {EXPORT}"),
    (0, b"tree\nversion=", f"a LightGBM model as text: {EXPORT}"),
    (0, b"ftrt", "a TensorRT engine: put the .onnx file there that it was built from"),
    (0, b"ptrt", "a TensorRT engine: put the .onnx file there that it was built from"),
    (0, b"7767517", f"the parameters of an ncnn model: {EXPORT}"),
    (0, b"\x1f\x8b", "a gzip archive: unpack it"),
    (0, b"BZh", "a bzip2 archive: unpack it"),
    (0, b"\xfd7zXZ\x00", "an xz archive: unpack it"),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard archive: unpack it"),
    (0, b"\x04\x22\x4d\x18", "an LZ4 archive: unpack it"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it"),
    (0, b"Rar!", "a RAR archive: unpack it"),
    (257, b"ustar", "a tar archive: unpack it"),
    (0, b"PAR1", "a Parquet file"),
    (0, b"%PDF", "a PDF document"),
    (0, b"\x89PNG", "a picture (PNG)"),
    (0, b"\xff\xd8\xff", "a picture (JPEG)"),
    (0, b"\x7fELF", "a program or library"),
)
"""Offset and bytes of formats that begin with the same bytes each time, and what they are."""

_ZIP_CONTENTS = (
    (rb"\.onnx", "a zip archive with an ONNX model in it: unpack it"),
    (rb"(constants\.pkl|/code/__torch__)", f"TorchScript, a zip archive: {EXPORT}"),
    (rb"data\.pkl", f"a zip archive, as torch.save writes: {EXPORT}"),
    (rb"model\.weights\.h5", f"a Keras model (.keras), a zip archive: {EXPORT}"),
    (rb"saved_model\.pb", f"a zip archive with a TensorFlow SavedModel: {EXPORT}"),
    (rb"\.npy", "a zip archive with NumPy arrays (.npz)"),
)

_MARKUP = (
    (rb"^<\s*ir_version", "ONNX in its text form: save the model in the binary form"),
    (rb"<!doctype html|<html|<head|<body", "a page of HTML: was a web page saved in its place?"),
    (rb"<net[ >]", f"OpenVINO's description of a model (XML): {EXPORT}"),
    (rb"<pmml", f"a PMML document: {EXPORT}"),
    (rb"<error>|<code>", "an error message of a storage service (XML): download the file again"),
)


def describe_format(file: BinaryIO, size: int) -> str:
    """Return what a file of `size` bytes is, in words, "" if it is of no format that is known."""
    head = _read_at(file, 0, _HEAD_BYTES)
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for offset, magic, text in _SIGNATURES:
        if head[offset : offset + len(magic)] == magic or (not offset and start.startswith(magic)):
            return text
    return (
        _describe_zip(head, file, size)
        or _describe_weights(head, size)
        or _describe_tensorflow(head)
        or _describe_markup(start)
        or _describe_pickle(head, file, size)
        or _describe_json(start)
        or ("a text" if _is_text(head) else "")
    )


def describe_content(file: BinaryIO, size: int) -> str:
    """Return what a file seems to be, in words, also if it is of no format that is known."""
    if description := describe_format(file, size):
        return description
    head = _read_at(file, 0, _HEAD_BYTES)
    if not any(head):
        return "zeros: a file that was created but not filled?"
    return f"data that begin with the bytes {head[:8].hex(' ')}"


def _read_at(file: BinaryIO, offset: int, count: int) -> bytes:
    file.seek(offset)
    return file.read(count)


def _describe_zip(head: bytes, file: BinaryIO, size: int) -> str:
    if not head.startswith((b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")):
        return ""
    content = head + _read_at(file, max(0, size - _TAIL_BYTES), _TAIL_BYTES)
    matches = [text for pattern, text in _ZIP_CONTENTS if re.search(pattern, content)]
    return matches[0] if matches else "a zip archive: unpack it"


def _describe_weights(head: bytes, size: int) -> str:
    """Recognise safetensors, which begin with the size of a JSON object."""
    header_size = int.from_bytes(head[:8], "little")
    if head[8:9] != b"{" or header_size > min(size - 8, _MAX_SAFETENSORS_HEADER):
        return ""
    return f"safetensors: it holds weights, not a graph; {EXPORT}"


def _describe_tensorflow(head: bytes) -> str:
    if head.startswith(b"\x08\x01\x12") and re.search(rb"VarHandleOp|Placeholder|serve", head):
        return f"a TensorFlow SavedModel: {EXPORT}"
    if head.startswith(b"\n") and re.search(rb"\x12\x0bPlaceholder|\x12\x05Const", head):
        return f"a TensorFlow graph (.pb): {EXPORT}"
    return ""


def _describe_markup(start: bytes) -> str:
    if not start.startswith(b"<"):
        return ""
    matches = [text for pattern, text in _MARKUP if re.search(pattern, start.lower())]
    return matches[0] if matches else "a page of HTML or XML: was a web page saved in its place?"


def _describe_json(start: bytes) -> str:
    if not start.startswith((b"{", b"[")):
        return ""
    if b'"learner"' in start or start[1:2] == b"L":  # JSON, UBJSON
        return f"an XGBoost model (JSON or UBJ): {EXPORT}"
    return "JSON: the answer of a download server, or a model's configuration?"


def _describe_pickle(head: bytes, file: BinaryIO, size: int) -> str:
    if protocol := _pickle_protocol(head, file, size):
        return f"a Python pickle (protocol {protocol}), as joblib or torch save: {EXPORT}"
    if re.match(rb"\x78[\x01\x5e\x9c\xda]", head):
        return f"zlib data, as joblib saves compressed pickles: {EXPORT}"
    return ""


def _pickle_protocol(head: bytes, file: BinaryIO, size: int) -> str:
    """Return the protocol of a pickle, "0 or 1" if it does not begin with it, "" for no pickle."""
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return str(head[1])
    if not size or _read_at(file, size - 1, 1) != b".":
        return ""
    names = []
    with contextlib.suppress(ValueError):  # it is longer than its head, or no pickle
        for opcode, _, _ in pickletools.genops(io.BytesIO(head)):
            names.append(opcode.name)
            if len(names) >= _PICKLE_OPCODES:
                break
    return "0 or 1" if len(names) >= 3 and not _MEMO_OPCODES.isdisjoint(names) else ""


def _is_text(head: bytes) -> bool:
    encoding = "utf-16" if head.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8"
    try:
        # Without the last characters, which may be cut off.
        text = head[: -4 if len(head) == _HEAD_BYTES else None].decode(encoding)
    except ValueError:
        return False
    return re.fullmatch(r"[^\x00-\x08\x0e-\x1f\x7f]+", text) is not None

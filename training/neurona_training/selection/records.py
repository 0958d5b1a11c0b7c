"""Results of trainings in a JSON file, which a command that was stopped reads again.

The file is replaced in one step after each training, so that a kill at any moment loses at most
the training that was in progress.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neurona_training.errors import OutputError
from neurona_training.export.files import write_file

_FORMAT = 1
Record = dict[str, Any]  # plain JSON


class RecordFile:
    """Records by key, each with what it was the result of.

    Args:
        path: of the file.
        keep: whether records of an earlier command count; False starts anew.

    Raises:
        OutputError: a file is there and cannot be read.
    """

    def __init__(self, path: Path, *, keep: bool = True) -> None:
        self.path = path
        self._records: dict[str, Record] = read_records(path) if keep else {}

    def find(self, key: str, fingerprint: str) -> Record | None:
        """Returns the record if it is the result of the same training, otherwise None."""
        record = self._records.get(key)
        return record if record is not None and record["fingerprint"] == fingerprint else None

    def add(self, key: str, fingerprint: str, result: Mapping[str, Any]) -> Record:
        """Writes a record, in place of an earlier one with this key.

        Args:
            key: by which it is found again.
            fingerprint: describes data, settings and seed.
            result: plain JSON values.

        Raises:
            OutputError: the file cannot be written.
        """
        record = {"fingerprint": fingerprint, **result}
        self._records[key] = record
        content = {"format": _FORMAT, "records": self._records}
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        write_file(f"{text}\n".encode(), self.path)
        return record


def read_records(path: Path) -> dict[str, Record]:
    """Reads all records; none without a file.

    Raises:
        OutputError: the file cannot be read, or is not of this format.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise OutputError(f"{path}: format {content['format']} (expected {_FORMAT})")
        records: dict[str, Record] = content["records"]
        for record in records.values():
            record["fingerprint"]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise OutputError(f"cannot read {path}: {reason} (remove it to start anew)") from error
    return records

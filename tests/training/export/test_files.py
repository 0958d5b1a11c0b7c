"""Files are replaced in one step."""

import pytest

from neurona_training.errors import OutputError
from neurona_training.export.files import write_file


def test_a_file_is_replaced_completely_or_not_at_all(tmp_path):
    path = tmp_path / "m" / "1" / "model.onnx"
    write_file(b"first", path)
    write_file(b"second", path)
    assert path.read_bytes() == b"second"
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(path.parent.iterdir()) == [path]

    existing_folder = tmp_path / "folder" / "model.onnx"
    existing_folder.mkdir(parents=True)
    with pytest.raises(OutputError, match="cannot write .*folder/model.onnx"):
        write_file(b"third", existing_folder)
    assert list(existing_folder.parent.iterdir()) == [existing_folder]

"""Files are put in place whole, and a place that cannot be written is told as that."""

import pytest

from neurona_training.errors import OutputError
from neurona_training.export.files import write_file


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "m" / "1" / "model.onnx"
    write_file(b"first", path)
    write_file(b"second", path)
    assert path.read_bytes() == b"second"
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(path.parent.iterdir()) == [path]

    taken = tmp_path / "taken" / "model.onnx"
    taken.mkdir(parents=True)
    with pytest.raises(OutputError, match="taken/model.onnx cannot be written"):
        write_file(b"third", taken)
    assert list(taken.parent.iterdir()) == [taken]

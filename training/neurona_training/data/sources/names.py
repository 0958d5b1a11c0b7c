"""Family names of 18 languages: which language is a name from?

Collected by S. Robertson for the tutorials of practical-pytorch (2017), MIT licence. The
files repeat names (2,000 Arabic lines are 108 names); duplicates within a language are
removed, so that no test name is a training name.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neurona_client.files.content import FileContentError
from neurona_client.files.texts import text_lines
from neurona_training.data import Dataset, Input, Split
from neurona_training.data.published_files import PublishedFile, fetch
from neurona_training.data.splits import stratified_indices
from neurona_training.data.transforms import pad_sequences
from neurona_training.errors import DataError

_COPY = (
    "https://raw.githubusercontent.com/spro/practical-pytorch/"
    "c520c52e68e945d88fff563dba1c028b6ec0197b/data/names/"
)
_CHECKSUMS = {
    "Arabic": "6f424a8dbe51cbbbabab7a57d38b617210125e4e3991f3c657cb79b8f104bafc",
    "Chinese": "09ba8f1f7e38dbc99372d461b26ad4433b811fc6bfa6a3ecca6fe11a9a777465",
    "Czech": "e17ab0ec47616a72c39cb85c783f70c3663ab64488721e5d8378f146d2226be7",
    "Dutch": "924f32b635170eae561f84538632138fc07d4c8bbd70ba3fb980de1ecc4d2af3",
    "English": "9cca037066d3d5989e24bc01801416162de506b5e28e15b7c092a47905d29bf2",
    "French": "81e65b36c60ed5b89a17422f6edcadbb89546f38ad69e960e64e7ba682012a95",
    "German": "7449cd590b97a733e18d613a4155decd77ec35dc5f8aadd7a82204dce4f051db",
    "Greek": "3555b5186de7f401e6d991b088e9e644ca3099116477818c25ab5793801389e6",
    "Irish": "cf8c7013256252a88d2503127b87282a11f21b2ff6db1bded68834c19a1ec058",
    "Italian": "f88414c27d0606a11a678b4859277828c2565d6cc4d9ee932deef6e94f3b35e4",
    "Japanese": "e0e717e114fec3e7eade4d9dabe0067c475f43147e36a22b47902ee76ad9e67f",
    "Korean": "cd54221ccb362a6cba4c78828838cf3268a0e59744767a37cf6ec4b74036b136",
    "Polish": "45bab898af2f60ed3a728bbf6980e28821011a7caa53227553b5785903a40826",
    "Portuguese": "50a8735f41f4f73757c8ce5b16cb0275cd86b2b214bcbc8c9805f508cb131c53",
    "Russian": "0cfe53ac18041e8f63666aa77313e0a3ff378facb132abee052d8ebdc8c3d62c",
    "Scottish": "78d0252711d87d948ea86fe34826c51d2d794a8e52d15b5d6f7b6244d45d62dd",
    "Spanish": "1bcb462ed3316756a85781d68232bddae04498fdddd5d9219c53fd1fbdeba7a7",
    "Vietnamese": "f3f9e4164ab47601178a6e45b216464a64122f49d05541f24bf18a757253281d",
}
FILES = {
    language: PublishedFile(f"names/{language}.txt", f"{_COPY}{language}.txt", sha256)
    for language, sha256 in _CHECKSUMS.items()
}

_SPLIT_SEED = 2017  # the same rows whatever the seed of a training run


def names_by_character(data_dir: Path | None = None) -> Dataset:
    """Each name as the codes of its characters, with capitals and accents as written.

    The characters are those of the training names; any other has the code after the last,
    which is also the padding.

    Args:
        data_dir: folder with the published files; see `fetch`.

    Returns:
        int64 of shape (rows, time), padded, with lengths.

    Raises:
        DataError: a file is missing or damaged.
    """
    names = {language: read_names(fetch(file, data_dir)) for language, file in FILES.items()}
    pairs = [(name, code) for code, some in enumerate(names.values()) for name in some]
    targets = np.array([code for _, code in pairs], np.int64)
    train, validation, test = stratified_indices(targets, _SPLIT_SEED)
    characters = tuple(sorted({character for row in train for character in pairs[row][0]}))
    codes = {character: code for code, character in enumerate(characters)}
    unknown = len(characters)

    def encode(rows: NDArray[np.int64]) -> Split:
        encoded = [
            np.array([codes.get(character, unknown) for character in pairs[row][0]], np.int64)
            for row in rows
        ]
        inputs, lengths = pad_sequences(encoded, unknown)
        return Split(inputs, targets[rows], lengths)

    return Dataset(
        name="names",
        source="names of 18 languages (S. Robertson, practical-pytorch, 2017), each once",
        train=encode(train),
        validation=encode(validation),
        test=encode(test),
        input=Input(
            name="characters",
            axes=("batch", "time"),
            description="a family name as it is written, one character a step; what pads a "
            "shorter name may be any string",
            unit="character",
            categories=characters,
        ),
        labels=tuple(names),
    )


def read_names(path: Path) -> list[str]:
    """Reads a file of one name a line; sorted, without duplicates.

    Raises:
        DataError: no text, or no names.
    """
    try:
        # Some lines end in a space, and some spaces are non-breaking ones.
        names = sorted({line for _, line in text_lines(path.read_bytes())})
    except FileContentError as error:
        raise DataError(f"{path}: {error}") from error
    if not names:
        raise DataError(f"{path} has no names")
    return names

"""Published files: in the user's folder or downloaded once, and verified either way.

    fetch(PublishedFile("mnist/t10k-labels-idx1-ubyte.gz", url, sha256), data_dir)

The folder has the layout of `PublishedFile.path`, as the cache has.
"""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import pooch
import requests

from neurona_training.errors import DataError

ENVIRONMENT = "NEURONA_DATA"  # names the folder that has the files
_TIMEOUT = 30.0  # seconds without a byte
_ALGORITHM_NAMES = {"sha256": "SHA-256", "md5": "MD5"}


@dataclass(frozen=True)
class PublishedFile:
    """A file that somebody has published.

    Args:
        path: below the data folder, with forward slashes.
        url: from which it is downloaded.
        sha256: its checksum in hexadecimal; None if none is known.
        md5: its checksum if the publisher gives only this one.
    """

    path: str
    url: str
    sha256: str | None
    md5: str | None = None

    @property
    def checksum(self) -> tuple[str, str] | None:
        """Algorithm and expected digest; None without a checksum."""
        if self.sha256 is not None:
            return "sha256", self.sha256
        return None if self.md5 is None else ("md5", self.md5)


def fetch(file: PublishedFile, data_dir: Path | None = None) -> Path:
    """Finds or downloads a file and verifies its checksum.

    Args:
        file: to find.
        data_dir: the only folder that is searched; None takes the one that NEURONA_DATA
            names. Without either the file is downloaded into the user's cache.

    Returns:
        Where the file is on this machine.

    Raises:
        DataError: the file is not in the folder, differs from the published one, or cannot be
            downloaded.
    """
    if data_dir is None and (folder := os.environ.get(ENVIRONMENT)):
        data_dir = Path(folder)
    if data_dir is None:
        return _download(file, Path(pooch.os_cache("neurona")))
    path = data_dir / file.path
    if not path.is_file():
        raise DataError(
            f"{file.path} is missing in {data_dir}; it is published at {file.url} "
            f"(downloaded if neither --data-dir nor {ENVIRONMENT} is given)"
        )
    if file.checksum is not None:
        algorithm, expected = file.checksum
        if (digest := pooch.file_hash(str(path), algorithm)) != expected:
            raise DataError(
                f"{path} is not the published file: its {_ALGORITHM_NAMES[algorithm]} is "
                f"{digest} (expected {expected}); it is published at {file.url}"
            )
    return path


def _download(file: PublishedFile, cache: Path) -> Path:
    path = cache / file.path
    # pooch logs each download; errors are reported in one line below.
    logging.getLogger("pooch").setLevel(logging.WARNING)
    try:
        # pooch would make it with the mode of any folder, and neurona-serve, which has its cache
        # there too, takes none that others may use.
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        pooch.retrieve(
            file.url,
            known_hash=file.checksum and ":".join(file.checksum),
            fname=path.name,
            path=path.parent,
            downloader=pooch.HTTPDownloader(timeout=_TIMEOUT),
        )
    except requests.HTTPError as error:  # its text has the status
        reason = " ".join(str(error).split())
    except requests.RequestException as error:  # whose text is pages long
        reason = f"no connection ({type(error).__name__})"
    except ValueError:  # pooch: another checksum; pooch has deleted the download
        algorithm, expected = file.checksum or ("", "")
        name = _ALGORITHM_NAMES.get(algorithm, "checksum")
        reason = f"the download does not have the {name} {expected}"
    except OSError as error:
        reason = f"cannot write to {cache}: {error.strerror or error}"
    else:
        return path
    raise DataError(
        f"cannot download {file.path} from {file.url}: {reason}; "
        f"--data-dir or {ENVIRONMENT} can name a folder that has it"
    )

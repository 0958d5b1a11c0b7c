"""Published files: found in the user's folder or downloaded once, and checked either way.

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

ENVIRONMENT = "NEURONA_DATA"  # the folder with files that are there already
_TIMEOUT = 30.0  # seconds without a byte
_CALLED = {"sha256": "SHA-256", "md5": "MD5"}


@dataclass(frozen=True)
class PublishedFile:
    """path: under the data folder, with /.  sha256: None when nobody has published one.
    md5: for a file of which its makers have published this alone.
    """

    path: str
    url: str
    sha256: str | None
    md5: str | None = None

    @property
    def checksum(self) -> tuple[str, str] | None:
        """By which algorithm, and what it must give."""
        if self.sha256 is not None:
            return "sha256", self.sha256
        return None if self.md5 is None else ("md5", self.md5)


def fetch(file: PublishedFile, data_dir: Path | None = None) -> Path:
    """Where the file is on this machine, its checksum found right.

    Looks in `data_dir`, else in the folder that NEURONA_DATA names, and then nowhere else;
    without either downloads into the cache of this user. Raises DataError with the file, the
    place and the address.
    """
    if data_dir is None and (named := os.environ.get(ENVIRONMENT)):
        data_dir = Path(named)
    if data_dir is None:
        return _downloaded(file, Path(pooch.os_cache("neurona")))
    path = data_dir / file.path
    if not path.is_file():
        raise DataError(
            f"{file.path} is not in {data_dir}; it comes from {file.url} "
            f"(without --data-dir and {ENVIRONMENT} it is downloaded)"
        )
    if file.checksum is not None:
        algorithm, wanted = file.checksum
        if (found := pooch.file_hash(str(path), algorithm)) != wanted:
            raise DataError(
                f"{path} is not the published file: its {_CALLED[algorithm]} is {found}, "
                f"not {wanted}; it comes from {file.url}"
            )
    return path


def _downloaded(file: PublishedFile, cache: Path) -> Path:
    path = cache / file.path
    # pooch tells of each download on a logger of its own, below our one-line errors.
    logging.getLogger("pooch").setLevel(logging.WARNING)
    try:
        pooch.retrieve(
            file.url,
            known_hash=file.checksum and ":".join(file.checksum),
            fname=path.name,
            path=path.parent,
            downloader=pooch.HTTPDownloader(timeout=_TIMEOUT),
        )
    except requests.HTTPError as error:  # an answer, but not the file: its text has the status
        reason = " ".join(str(error).split())
    except requests.RequestException as error:  # whose text is pages long
        reason = f"no connection ({type(error).__name__})"
    except ValueError:  # pooch: what came has another checksum; it has been thrown away
        algorithm, wanted = file.checksum or ("", "")
        reason = f"what the server sent does not have the {_CALLED.get(algorithm)} {wanted}"
    except OSError as error:
        reason = f"{cache} cannot be written: {error.strerror or error}"
    else:
        return path
    raise DataError(
        f"{file.path} cannot be downloaded from {file.url}: {reason}; "
        f"a folder that has it can be given by --data-dir or {ENVIRONMENT}"
    )

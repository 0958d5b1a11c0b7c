"""Looks at the repository, one at a time, and what is said of those that fail."""

import logging
import threading

from neurona_server.errors import LoadError, NotFoundError, NotLoadedError, quoted
from neurona_server.models.repository import Folder, Repository

log = logging.getLogger(__name__)


class Looks:
    """Any thread may look."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._problem = ""
        self._looking = threading.Lock()

    def at_all(self) -> dict[str, Folder] | None:
        """Every folder by name; None when it cannot be read, which the log hears once."""
        try:
            with self._looking:
                folders = self._repository.scan()
            problem = ""
        except LoadError as error:
            problem = str(error)
        except Exception:  # whatever is odd on the disk, what is loaded serves on
            log.exception("the repository cannot be read")
            problem = "an internal error; the server's log says why"
        if problem and problem != self._problem:
            log.error("%s; what is loaded serves on", problem)
        self._problem = problem
        return None if problem else folders

    def at(self, name: str) -> Folder:
        """Raises NotFoundError when there is no such model, NotLoadedError when the repository
        cannot be read: both are for callers, and no path is."""
        try:
            with self._looking:
                folders = self._repository.scan()
        except LoadError as error:
            log.error("%s", error)
            raise NotLoadedError("the repository cannot be read; the log says why") from error
        if name not in folders or not (folders[name].versions or folders[name].problem):
            raise NotFoundError(f"the repository has no model {quoted(name)}")
        return folders[name]

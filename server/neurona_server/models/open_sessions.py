"""The sessions that hold a model version: it is unloaded only once they have ended.

The file is alone because models know nothing of sessions but that there are some.
"""

import threading
from typing import Protocol

from neurona_server.errors import UnavailableError


class HeldSession(Protocol):
    """A caller's session, which stays on the version that it began with."""

    def end(self, reason: str) -> None:
        """End it from the server's side, for a reason that its caller gets. Thread-safe.

        It leaves the `OpenSessions` before this returns.
        """


class OpenSessions:
    """The open sessions of one model version. Thread-safe."""

    def __init__(self) -> None:
        self._sessions: dict[HeldSession, None] = {}
        self._changed = threading.Condition()
        self._closed_reason = ""

    def __len__(self) -> int:
        return len(self._sessions)

    def add(self, session: HeldSession) -> None:
        """Add a session.

        Raises:
            UnavailableError: The version is being unloaded.
        """
        with self._changed:
            if self._closed_reason:
                raise UnavailableError(self._closed_reason)
            self._sessions[session] = None

    def discard(self, session: HeldSession) -> None:
        """Remove a session, which has ended, unless that was done before."""
        with self._changed:
            self._sessions.pop(session, None)
            if not self._sessions:
                self._changed.notify_all()

    def wait(self, timeout: float) -> bool:
        """Wait until no session is open; return whether that was so within `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._sessions, timeout)

    def end_all(self, reason: str) -> int:
        """End all sessions, and accept no more; return how many there were."""
        with self._changed:
            self._closed_reason = reason
            sessions = [*self._sessions]
        for session in sessions:
            session.end(reason)
        return len(sessions)

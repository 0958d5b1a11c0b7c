"""One session on one device, and the thread that waits for work on it."""

import threading

from neurona_server.batching.batcher import Batcher
from neurona_server.models.session import Session


class Instance:
    """Serves a batcher's queue from `start` until the batcher is closed and drained."""

    def __init__(self, number: int, session: Session, batcher: Batcher) -> None:
        self.session = session
        # A daemon: a run that never returns must not keep the process from ending.
        self._thread = threading.Thread(
            target=batcher.serve,
            args=(session.new_run,),
            name=f"{batcher.name}#{number}",
            daemon=True,
        )

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout: float | None = None) -> bool:
        """Waits until the queue is drained; False when it was not after `timeout` seconds, or
        when the instance never started."""
        if self._thread.ident is None:
            return False
        self._thread.join(timeout)
        return not self._thread.is_alive()

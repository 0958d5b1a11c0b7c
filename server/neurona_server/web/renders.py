"""Pages are written beside the loop, a few at a time, and shared by all who wait for the same."""

import asyncio
import threading
from collections.abc import Callable, Hashable

AT_A_TIME = 2
"""A second one, so that one that hangs (in a GPU's driver) does not take the page from all."""

Rendered = tuple[bytes, str]


class Renders:
    """For one loop. However many ask, what waits is one render for each key."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(AT_A_TIME)
        self._waiting: dict[Hashable, asyncio.Task[Rendered]] = {}

    async def get(self, key: Hashable, render: Callable[[], Rendered]) -> Rendered:
        """What `render` gives, begun after this call. Raises what it raises."""
        task = self._waiting.get(key)
        if task is None:
            task = asyncio.create_task(self._run(key, render))
            self._waiting[key] = task
        # One who goes does not take it from the others.
        return await asyncio.shield(task)

    async def _run(self, key: Hashable, render: Callable[[], Rendered]) -> Rendered:
        async with self._free:
            del self._waiting[key]  # who comes from now on has another one
            return await _beside(render)


async def _beside(render: Callable[[], Rendered]) -> Rendered:
    """In a daemon thread: one that hangs must not keep the process from ending."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Rendered] = loop.create_future()

    def end(result: Rendered | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        elif result is not None:
            done.set_result(result)

    def run() -> None:
        result, raised = None, None
        try:
            result = render()
        except Exception as error:  # its caller has it
            raised = error
        try:
            loop.call_soon_threadsafe(end, result, raised)
        except RuntimeError:  # the loop is closed: nobody waits any more
            return

    threading.Thread(target=run, name="metrics page", daemon=True).start()
    return await done

"""Renders pages of metrics: one at a time, and only for readers who are still there.

A page of 200 models takes half a second of Python, in which calls are slower. Readers who come and
go, or come together, must not multiply that.
"""

import asyncio
import sys
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

MAX_PENDING_RENDERS = 8
"""Different pages that may wait to be rendered, besides the whole one in each of its formats."""

HANG_SECONDS = 10.0
"""A render that takes longer (it hangs in a GPU's driver) does not hold back the next one."""

MAX_HANGING_RENDERS = 2
"""Renders that may hang at the same time; after that there are no pages until one ends."""

MAX_REST = 1.0
"""A render begins only when as much time as the last one took has passed, up to this many seconds:
readers without a pause get half of one CPU."""

SWITCH_SECONDS = 0.0005
"""Time after which a render lets another thread run that waits for Python's lock. With Python's
5 ms, each system call of the threads that serve calls and connections would cost them as much."""

RenderedPage = tuple[bytes, str]
"""Content and content type."""

_SWITCH_SECONDS_OF_PYTHON = sys.getswitchinterval()


class TooManyRendersError(Exception):
    """Too many pages wait to be rendered, or renders hang."""


@dataclass
class _PendingRender:
    """A render that has not begun."""

    readers: int = 0
    task: asyncio.Task[RenderedPage] = field(init=False)


class SharedRenders:
    """Renders pages in threads, and shares each render among all requests that wait for it."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._pending: dict[Hashable, _PendingRender] = {}
        self._hanging = 0

    async def get(
        self, key: Hashable, render: Callable[[], RenderedPage], *, bounded: bool = False
    ) -> RenderedPage:
        """Return the result of a `render` that began after this call; raise what it raises.

        Args:
            key: Names the page; requests for the same one share a render.
            render: Makes the page, in a thread. It is not called if all its readers have left.
            bounded: Callers can name any number of such pages.

        Raises:
            TooManyRendersError: The page cannot be rendered soon.
        """
        pending = self._pending.get(key)
        if pending is None:
            if self._hanging >= MAX_HANGING_RENDERS or (
                bounded and len(self._pending) >= MAX_PENDING_RENDERS
            ):
                raise TooManyRendersError
            pending = self._pending[key] = _PendingRender()
            pending.task = asyncio.create_task(self._render(key, render))
        pending.readers += 1
        try:
            # A request that is cancelled must not cancel the render of the others.
            return await asyncio.shield(pending.task)
        except asyncio.CancelledError:
            pending.readers -= 1
            if not pending.readers and self._pending.get(key) is pending:
                del self._pending[key]
                pending.task.cancel()
            raise

    async def _render(self, key: Hashable, render: Callable[[], RenderedPage]) -> RenderedPage:
        loop = asyncio.get_running_loop()
        await self._turn.acquire()
        self._pending.pop(key, None)  # later requests need a later render
        started = loop.time()
        try:
            rendering = asyncio.create_task(_run_in_daemon_thread(render))
            await asyncio.wait({rendering}, timeout=HANG_SECONDS)
        finally:
            rest = min(MAX_REST, loop.time() - started)
            loop.call_later(rest, self._turn.release)
        if not rendering.done():
            self._hanging += 1
            rendering.add_done_callback(self._count_hanging_end)
        return await rendering

    def _count_hanging_end(self, _: asyncio.Task[RenderedPage]) -> None:
        self._hanging -= 1


async def _run_in_daemon_thread(render: Callable[[], RenderedPage]) -> RenderedPage:
    """Run `render` in a daemon thread: one that hangs must not keep the process from ending."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[RenderedPage] = loop.create_future()

    def finish(result: RenderedPage | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        elif result is not None:
            future.set_result(result)

    def run() -> None:
        result, failure = None, None
        sys.setswitchinterval(SWITCH_SECONDS)
        try:
            result = render()
        except Exception as error:  # raised again where the result is awaited
            failure = error
        finally:
            sys.setswitchinterval(_SWITCH_SECONDS_OF_PYTHON)
        try:
            loop.call_soon_threadsafe(finish, result, failure)
        except RuntimeError:  # the loop is closed: no request waits for the result
            return

    threading.Thread(target=run, name="metrics page", daemon=True).start()
    return await future

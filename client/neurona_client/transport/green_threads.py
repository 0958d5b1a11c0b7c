"""gevent and eventlet, which replace the threads of a process by greenlets of one thread.

The threads of a client wait inside gRPC, which is C: as greenlets they would stop their thread, and
with it the whole program. gRPC can wait in gevent's own threads instead; with eventlet it cannot.
The file is alone because only programs that have one of these libraries need it.
"""

import sys
import time
from collections.abc import Callable

sleep: Callable[[float], None] = time.sleep
"""Sleeps for some seconds in a thread of the client; `sleep(0)` lets others run. It must not switch
to a greenlet of the same thread unless the locks of the client do, too."""


def prepare_green_threads() -> None:
    """Have gRPC wait in gevent's threads, if gevent has replaced those of this process.

    May be called any number of times.

    Raises:
        RuntimeError: eventlet has replaced the threads.
    """
    global sleep  # noqa: PLW0603  # of the process, as the patches are
    if "gevent.monkey" in sys.modules:
        sleep = _prepare_gevent()
    eventlet = sys.modules.get("eventlet.patcher")
    if eventlet is not None and eventlet.is_monkey_patched("thread"):
        raise RuntimeError(
            "eventlet has replaced the threads of this process, in which gRPC cannot wait "
            "(expected threads, asyncio or gevent; or eventlet.monkey_patch(thread=False), with "
            "which calls wait in their thread)"
        )
    if eventlet is not None:
        sleep = eventlet.original("time").sleep


def _prepare_gevent() -> Callable[[float], None]:
    """Prepare gRPC, and return the function that sleeps as the locks of the client wait."""
    from gevent.monkey import get_original, is_module_patched
    from grpc._cython import cygrpc  # type: ignore[attr-defined]
    from grpc.experimental.gevent import init_gevent

    is_patched = is_module_patched("threading")
    if is_patched and not getattr(cygrpc, "g_gevent_activated", False):
        init_gevent()
    original: Callable[[float], None] = get_original("time", "sleep")
    return time.sleep if is_patched else original

"""gevent and eventlet, which replace the threads of a process by greenlets of one thread.

The threads of a client wait inside gRPC, which is C: as greenlets they would stop their thread, and
with it the whole program. gRPC can wait in gevent's own threads instead; with eventlet it cannot.
The file is alone because only programs that have one of these libraries need it.
"""

import sys


def prepare_green_threads() -> None:
    """Have gRPC wait in gevent's threads, if gevent has replaced those of this process.

    May be called any number of times.

    Raises:
        RuntimeError: eventlet has replaced the threads.
    """
    if "gevent.monkey" in sys.modules:
        _prepare_gevent()
    eventlet = sys.modules.get("eventlet.patcher")
    if eventlet is not None and eventlet.is_monkey_patched("thread"):
        raise RuntimeError(
            "eventlet has replaced the threads of this process, in which gRPC cannot wait "
            "(expected threads, asyncio or gevent; or eventlet.monkey_patch(thread=False), with "
            "which calls wait in their thread)"
        )


def _prepare_gevent() -> None:
    from gevent.monkey import is_module_patched
    from grpc._cython import cygrpc  # type: ignore[attr-defined]
    from grpc.experimental.gevent import init_gevent

    if is_module_patched("threading") and not getattr(cygrpc, "g_gevent_activated", False):
        init_gevent()

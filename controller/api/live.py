"""Streams that go on while certificates are revoked: their callers are looked at again.

A call is checked when it begins; a tail may last for days. Decides nothing: `admit` does.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc

from controller.api.base import Caller
from controller.errors import LightermanError

LOOK_S = 1.0


class LiveStreams:
    """The streams of one listener. Its thread lives while there is one."""

    def __init__(self, admit: Callable[[Caller], None], look_s: float = LOOK_S) -> None:
        self._admit = admit
        self._look_s = look_s
        self._streams: dict[int, tuple[Caller, grpc.ServicerContext]] = {}
        self._changed = threading.Condition()
        self._watching = False

    @contextmanager
    def watched(self, caller: Caller, context: grpc.ServicerContext) -> Iterator[None]:
        """Cancel the call while it lasts, once its caller may not call any more."""
        with self._changed:
            self._streams[id(context)] = (caller, context)
            if not self._watching:
                self._watching = True
                threading.Thread(target=self._watch, name="live", daemon=True).start()
        try:
            yield
        finally:
            with self._changed:
                del self._streams[id(context)]
                self._changed.notify_all()

    def _watch(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: not self._streams, self._look_s)
                if not self._streams:
                    self._watching = False
                    return
                live = list(self._streams.values())
            denied: dict[bytes, bool] = {}
            for caller, context in live:
                if caller.certificate_pem not in denied:
                    denied[caller.certificate_pem] = self._is_denied(caller)
                if denied[caller.certificate_pem]:
                    context.cancel()

    def _is_denied(self, caller: Caller) -> bool:
        try:
            self._admit(caller)
        except LightermanError:
            return True
        except Exception:  # noqa: BLE001 - the store is away: what was admitted goes on
            return False
        return False

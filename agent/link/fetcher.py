"""Brings the bytes of a target from the controller, from any byte on.

Refuses to be held up: every download has a deadline made of its length, and a rate below which it
is cut. Refuses to judge content: the store hashes what it keeps.
"""

import threading
from collections.abc import Iterator

from agent.domain.desired import Target
from agent.errors import FetchError
from agent.link.client import BlobStream, ControllerClient
from agent.link.errors import LinkError


class BlobFetcher:
    """Fetches over the controller's channel; satisfies `agent.domain.ports.Fetcher`."""

    def __init__(
        self,
        client: ControllerClient,
        min_rate_bytes_s: float = 4096.0,
        stall_s: float = 20.0,
    ) -> None:
        self._client = client
        self._min_rate = min_rate_bytes_s
        self._stall_s = stall_s

    def fetch(self, target: Target, offset: int) -> Iterator[bytes]:
        """Chunks from `offset` on, never more than the signed length. FetchError."""
        left = target.length - offset
        if left <= 0:
            return
        deadline_s = self._stall_s + left / self._min_rate
        stream = self._client.open_blob(target.digest, offset, deadline_s)
        watch = _RateWatch(stream, self._min_rate * self._stall_s, self._stall_s)
        at = offset
        try:
            with watch:
                for chunk in stream:
                    if chunk.offset != at or (chunk.total_bytes not in (0, target.length)):
                        raise FetchError(
                            f"{_name(target)}: byte {chunk.offset} of {chunk.total_bytes} came,"
                            f" byte {at} of {target.length} was due",
                            "the controller holds another file than the one that was signed",
                            retryable=False,
                        )
                    at += len(chunk.data)
                    watch.came(len(chunk.data))
                    yield chunk.data
                    if at >= target.length:
                        return
        except LinkError as error:
            if watch.tripped:
                raise FetchError(
                    f"{_name(target)} came slower than {self._min_rate:,.0f} bytes/s",
                    "the download was cut and goes on at the same byte",
                ) from None
            raise FetchError(
                f"{_name(target)}: {error.message}", error.hint, retryable=error.retryable
            ) from None
        finally:
            stream.cancel()
        raise FetchError(
            f"{_name(target)} ended at byte {at} of {target.length}",
            "the download goes on at the same byte",
        )


def _name(target: Target) -> str:
    return f"download of {target.digest[:19]}…"


class _RateWatch:
    """Cuts the stream when fewer than `least` bytes came in one span."""

    def __init__(self, stream: BlobStream, least: float, span_s: float) -> None:
        self._stream = stream
        self._least = least
        self._span_s = span_s
        self._bytes = 0
        self._over = threading.Event()
        self.tripped = False

    def came(self, count: int) -> None:
        self._bytes += count

    def __enter__(self) -> None:
        threading.Thread(target=self._watch, name="fetch-rate", daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _watch(self) -> None:
        seen = 0
        while not self._over.wait(self._span_s):
            total = self._bytes
            if total - seen < self._least:
                self.tripped = True
                self._stream.cancel()
                return
            seen = total

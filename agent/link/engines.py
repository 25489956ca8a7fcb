"""What devices of one kind compile for each other, over the controller.

Refuses bytes that are not signed, by the engines key, for exactly the key that this device made of
itself; then it compiles for itself. A builder offers what it compiled; from any other device the
controller takes nothing.
"""

import hashlib
import json
from collections.abc import Callable, Mapping

from agent.domain.ports import Fetcher
from agent.errors import AgentError, FetchError
from agent.link.client import ControllerClient
from agent.link.errors import LinkError, TrustError
from agent.link.orders import OrdersVerifier

ENGINE_BYTES_MOST = 1024**3
MIN_RATE_BYTES_S, STALL_S = 4096.0, 20.0


class EngineExchange:
    """Satisfies `agent.domain.ports.Engines`. `refused` is told why an engine was not taken,
    `taken` who compiled one that was.
    """

    def __init__(
        self,
        client: ControllerClient,
        verifier: OrdersVerifier,
        fetcher: Fetcher,
        refused: Callable[[str], None],
        taken: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._client, self._verifier, self._fetcher = client, verifier, fetcher
        self._refused, self._taken = refused, taken

    def fetch(self, key: Mapping[str, str]) -> bytes | None:
        """The verified bytes for this key; None where there are none, or none to be believed."""
        try:
            came = self._client.find_engine(_text(key))
            if came is None:
                return None
            target = self._verifier.engine(came, key)
            if target.length > ENGINE_BYTES_MOST:
                raise TrustError(f"an engine of {target.length:,} bytes is not taken")
            data = b"".join(self._fetcher.fetch(target, 0))
            if "sha256:" + hashlib.sha256(data).hexdigest() != target.digest:
                raise TrustError("the engine's bytes are not those that were signed")
        except (LinkError, FetchError) as error:
            if isinstance(error, TrustError):
                self._refused(str(error))
            return None
        except AgentError as error:  # a statement that cannot be read
            self._refused(str(error))
            return None
        self._taken(str(target.custom.get("builder", "")))
        return data

    def offer(self, key: Mapping[str, str], data: bytes) -> None:
        """Give it to the controller; LinkError where it does not take it."""
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        timeout_s = STALL_S + len(data) / MIN_RATE_BYTES_S
        self._client.publish_engine(_text(key), digest, data, timeout_s)


def _text(key: Mapping[str, str]) -> str:
    return json.dumps(dict(key), sort_keys=True, separators=(",", ":"), ensure_ascii=False)

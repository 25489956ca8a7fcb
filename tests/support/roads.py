"""A faulty network between one agent and its controller: a relay each for gRPC and for the broker.

gRPC finds its relay by the agent's own identity files, rewritten before it starts. Where the broker
is the controller says anew at every greeting; so `tests.support.routed_agent` sends connections to
its port to the relay, as a router would. Holds no rule of the product.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from agent.link.authority import Endpoint, parse_endpoint
from agent.store.identity import FileIdentityStore
from tests.proxy import Direction, Door, Faults, Proxy


@dataclass(slots=True)
class Roads:
    """What lies between; both relays are used in step unless a test names one."""

    grpc: Proxy
    mqtt: Proxy
    routes: str = ""  # for the agent's environment

    @classmethod
    def lay(cls, state_dir: Path, seed: int = 0) -> "Roads":
        """Between an enrolled agent that does not run yet and its controller."""
        store = FileIdentityStore(state_dir / "identity")
        identity = store.current()
        assert identity is not None, f"{state_dir} is not enrolled"
        ends = [parse_endpoint(e) for e in (identity.grpc_endpoint, identity.mqtt_endpoint)]
        grpc, mqtt = (Proxy(end.host, end.port, seed) for end in ends)
        made = cls(grpc, mqtt, f"{ends[1].port}:{mqtt.port}")
        store.keep_next(replace(identity, grpc_endpoint=str(Endpoint(ends[0].host, grpc.port))))
        store.promote()
        return made

    @property
    def both(self) -> tuple[Proxy, Proxy]:
        """gRPC and broker."""
        return self.grpc, self.mqtt

    def cut(self, door: Door = Door.REFUSE) -> None:
        """A partition: what is open is reset, nothing new gets through."""
        for proxy in self.both:
            proxy.cut(door)

    def set(self, faults: Faults, *directions: Direction) -> None:
        """Treat both roads so."""
        for proxy in self.both:
            proxy.set(faults, *directions)

    def restore(self) -> None:
        """A good network again."""
        for proxy in self.both:
            proxy.restore()

    def close(self) -> None:
        """For good."""
        for proxy in self.both:
            proxy.close()


@contextmanager
def bad_network(roads: Roads, faults: Faults, *directions: Direction) -> Iterator[None]:
    """These faults on both roads for a while."""
    roads.set(faults, *directions)
    try:
        yield
    finally:
        roads.restore()

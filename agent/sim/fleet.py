"""A fleet of simulated devices in one process: enrols them, runs them, counts what they do.

Refuses to decide anything of a device.
"""

import asyncio
import contextlib
import ipaddress
import resource
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from agent.domain.capability import Capabilities
from agent.domain.ports import Clock, Identity
from agent.errors import AgentError
from agent.link.authority import Endpoint, find_authority, parse_endpoint, parse_token, parse_url
from agent.link.backoff import Backoff
from agent.link.enrol import Enrolment
from agent.link.errors import EnrolError, LinkError, LinkFault
from agent.sim.around import Happened
from agent.sim.device import SimDevice
from agent.sim.script import Script
from agent.sim.wire import enrol_one, open_enrolment

ENROLLING = 8  # at a time
CONNECTING = 16  # TLS handshakes at a time
SOURCES = 8  # loopback addresses that connections come from
ENROL_TRIES = 20
FILES_PER_DEVICE = 3


@dataclass(frozen=True, slots=True)
class Wanted:
    """A fleet to simulate. `token` has to be good for `count` enrolments. Seconds."""

    controller: str
    token: str
    count: int
    prefix: str = "sim"
    telemetry_s: float = 10.0
    script: Script = field(default_factory=Script)


@dataclass(slots=True)
class Around:
    """What the devices share; satisfies `Surroundings`."""

    clock: Clock
    script: Script
    capabilities: Capabilities
    telemetry_s: float
    folder: Path
    connecting: asyncio.Semaphore
    told: Callable[[Happened], None]
    counts: Counter[str] = field(default_factory=Counter)

    def tell(self, happened: Happened) -> None:
        """Count it and pass it on."""
        self.counts[happened.kind] += 1
        self.told(happened)


@dataclass(frozen=True, slots=True)
class Summary:
    """How the fleet stands: devices by what they run and in which phase, and what happened."""

    devices: int
    connected: int
    unacknowledged: int
    phases: dict[str, int]  # "model:version PHASE" -> devices
    happened: dict[str, int]


class SimFleet:
    """Built of identities; `run` until cancelled."""

    def __init__(self, identities: list[Identity], around: Around) -> None:
        sources = _sources(identities[0].mqtt_endpoint) if identities else []
        self._around = around
        self.devices = [
            SimDevice(who, around, sources[number % len(sources)] if sources else None)
            for number, who in enumerate(identities)
        ]

    async def run(self) -> None:
        """Run every device until cancelled, then say goodbye for all."""
        try:
            async with asyncio.TaskGroup() as all_of_them:
                for device in self.devices:
                    all_of_them.create_task(device.run())
        finally:
            await asyncio.gather(*(one.stop() for one in self.devices), return_exceptions=True)

    async def poll_all(self) -> None:
        """Let every device fetch and verify its desired state once, all at the same time."""
        await asyncio.gather(*(one.poll() for one in self.devices), return_exceptions=True)

    def summary(self) -> Summary:
        """How it stands now."""
        phases: Counter[str] = Counter()
        for device in self.devices:
            for model in device.models.values():
                order = model.state.order
                if order is not None:
                    phases[f"{model.name}:{order.version} {model.state.phase}"] += 1
        return Summary(
            devices=len(self.devices),
            connected=sum(one.connected for one in self.devices),
            unacknowledged=sum(one.unacknowledged for one in self.devices),
            phases=dict(sorted(phases.items())),
            happened=dict(sorted(self._around.counts.items())),
        )


async def enrol_fleet(
    wanted: Wanted, capabilities: Capabilities, told: Callable[[int], None]
) -> list[Identity]:
    """Enrol all devices with the one token; `told` hears how many are in. LinkError.

    Ids are `PREFIX-00001` and so on. Where the controller limits the rate, it is waited for.
    """
    endpoint, token = parse_url(wanted.controller), parse_token(wanted.token)
    found = await asyncio.to_thread(find_authority, endpoint, token.ca_fingerprint)
    ca_pem = found.encode("ascii")
    done: list[Identity] = []
    numbers = iter(range(1, wanted.count + 1))

    async def work() -> None:
        for number in numbers:
            one = Enrolment(
                url=wanted.controller,
                token=wanted.token,
                device_id=f"{wanted.prefix}-{number:05d}",
                hardware_id=f"simulated-{wanted.prefix}-{number}",
                capabilities=capabilities,
            )
            backoff = Backoff(base_s=0.2, cap_s=8.0)
            while True:
                try:
                    done.append(await enrol_one(channel, one, token.secret, ca_pem))
                    break
                except LinkError as error:
                    if not error.retryable or backoff.tries + 1 >= ENROL_TRIES:
                        raise EnrolError(
                            f"{one.device_id}: {error.message}", error.hint, fault=error.fault
                        ) from error
                    await asyncio.sleep(backoff.failed(error.retry_after_s))
            told(len(done))

    channel = open_enrolment(endpoint, ca_pem)
    try:
        async with asyncio.TaskGroup() as workers:
            for _ in range(min(ENROLLING, wanted.count)):
                workers.create_task(work())
    except* AgentError as group:
        raise group.exceptions[0] from None
    finally:
        await channel.close()
    return sorted(done, key=lambda one: one.device_id)


def allow_files(count: int) -> None:
    """Raise this process's limit of open files for so many devices. LinkError where it cannot."""
    need = count * FILES_PER_DEVICE + 100
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= need:
        return
    if hard != resource.RLIM_INFINITY and hard < need:
        raise LinkError(
            f"{count} devices need {need} open files, the system allows this process {hard}",
            "fewer devices per process (--count), or another limit: ulimit -Hn",
            fault=LinkFault.REFUSED,
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (need, hard))


def _sources(mqtt_endpoint: str) -> list[str]:
    """Addresses to connect from: several of 127.x where the broker is on this machine."""
    endpoint: Endpoint = parse_endpoint(mqtt_endpoint)
    with contextlib.suppress(OSError, ValueError):
        address = ipaddress.ip_address(socket.gethostbyname(endpoint.host))
        if address.is_loopback and address.version == 4:
            return [f"127.0.0.{number}" for number in range(1, SOURCES + 1)]
    return []

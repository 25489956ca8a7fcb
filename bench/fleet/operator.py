"""FleetService as the local operator calls it: no process start in what is measured."""

import json
from pathlib import Path

import grpc

from lighterman.v1 import fleet_pb2, fleet_pb2_grpc

CALL_S = 60.0
OVER = frozenset({"SUCCEEDED", "ROLLED_BACK", "FAILED", "ABORTED"})


class Operator:
    """One channel with the certificate that the controller wrote for this host."""

    def __init__(self, data_dir: Path) -> None:
        found = json.loads((data_dir / "operator.json").read_text(encoding="utf-8"))
        credentials = grpc.ssl_channel_credentials(
            *(found[name].encode() for name in ("ca_pem", "key_pem", "certificate_pem"))
        )
        self._channel = grpc.secure_channel(found["controller"], credentials)
        self._stub = fleet_pb2_grpc.FleetServiceStub(self._channel)

    def close(self) -> None:
        """End the channel."""
        self._channel.close()

    def start(self, model: str, version: str, devices: int, selector: str = "all") -> str:
        """Start a rollout in one wave, with the override that permits it; returns its id."""
        spec = fleet_pb2.RolloutSpec(
            model=model,
            version=version,
            selector=selector,
            waves=["100%"],
            soak_s=1.0,
            min_samples=5,
            override_first_wave_reason="the bench measures one wave",
        )
        request = fleet_pb2.StartRolloutRequest(spec=spec, confirmed_devices=devices)
        return str(self._stub.StartRollout(request, timeout=CALL_S).rollout_id)

    def look(self, rollout: str) -> fleet_pb2.Rollout:
        """A rollout as it is now."""
        return self._stub.GetRollout(fleet_pb2.RolloutRequest(rollout_id=rollout), timeout=CALL_S)

    def phase(self, rollout: str) -> str:
        """Its phase."""
        name = fleet_pb2.RolloutPhase.Name(self.look(rollout).phase)
        return name.removeprefix("ROLLOUT_PHASE_")

"""The two fleets that can be put through faults: the demo's, and one of small models in a hurry.

`PhotoFleet` has the demo's six devices, policies and EfficientNet-Lite versions; `DigitsFleet` has
four devices more of the end-to-end tests' kind and models that build in seconds.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import examples.demo
from agent.host.capabilities import detect
from examples import digits, models
from examples.demo.pressure import queue_threshold_ms
from examples.demo.world import EDGE_CLIENT, EDGE_SERVER, MODEL, RATE, REAL, SIMULATED
from examples.fleet.camera import Picture
from tests.support import e2e_world
from tests.support.e2e_jobs import first_job, open_cameras_on
from tests.support.e2e_models import GLARE, Shape
from tests.support.e2e_world import WAVES, Fleet

_POLICIES = Path(examples.demo.__file__).parent / "policies.yaml"
_PICTURES = 40
_MIB = 1024 * 1024


@dataclass(slots=True)
class DigitsFleet(Fleet):
    """See the module."""

    devices: tuple[str, ...] = (*e2e_world.REAL, "n100-1", "n100-2", "n100-3", "n100-4")
    edge_server: str = e2e_world.EDGE_SERVER
    small_disk: str = "n100-4"
    disk_bytes: int = 48 * _MIB

    def first(self) -> Any:
        """The first version on all devices; the rollout as it is shown."""
        return first_job(self).shown

    def push_good(self) -> str:
        """Another version that is well, built; of the same weights, so compiled only once."""
        version = self.push_digits()
        self.build(self.model, version)
        return version


@dataclass(slots=True)
class PhotoFleet(Fleet):
    """See the module."""

    devices: tuple[str, ...] = (*REAL, *SIMULATED)
    edge_server: str = EDGE_SERVER
    small_disk: str = SIMULATED[1]
    disk_bytes: int = 160 * _MIB
    queue_ms: float = 30.0
    _shown: list[Picture] = field(default_factory=list)

    def first(self) -> Any:
        """The first version on all devices; the rollout as it is shown."""
        self.ctl.run("admin", "dataset", "push", self.model, str(self.files / "photos.npz"))
        version = self.push_good()
        shown = self.ctl.json("model", "show", f"{self.model}:{version}")
        self.shape = Shape.of(shown["signature"])
        builds = self.ctl.items("build", "list", f"{self.model}:{version}")
        heavy = [
            b["figures"]["p50_ms"] for b in builds
            if (b["variant"], b["recipe"]) == ("heavy", "onnxruntime-int8")
        ]  # fmt: skip
        self.queue_ms = queue_threshold_ms(max(heavy))
        self.apply_policies()
        rollout = self.begin(self.model, version, waves=WAVES)
        open_cameras_on(self, rollout, self.model, list(self.agents))
        self.watch(rollout, 0)
        return self.show(rollout)

    def push_good(self) -> str:
        """Another version that is well, built; the demo's weights of 1.0.0 and 1.1.0 in turn."""
        known = self.versions.get(self.model, -1) + 1
        folder = self.files / ("1.0.0", "1.1.0")[known % 2]
        version = self.push(self.model, heavy=folder / "heavy.pt2", light=folder / "light.pt2")
        self.build(self.model, version)
        return version

    def label_names(self, version: str) -> list[str]:
        """The demo's, the first of them marked."""
        names = (self.files / "labels.txt").read_text(encoding="utf-8").splitlines()
        return [f"{names[0]} of {version}", *names[1:]]

    def apply_policies(self, **_: str) -> None:
        """The demo's."""
        assert self.proxy is not None
        machine = detect(Path("/"), self.root)
        text = _POLICIES.read_text(encoding="utf-8")
        for name, value in (
            ("EDGE_ENDPOINT", f"grpc://127.0.0.1:{self.proxy.port}"),
            ("MACHINE_ARCH", machine.arch),
            ("MACHINE_CPU", machine.cpu_model),
            ("QUEUE_MS", f"{self.queue_ms:.1f}"),
        ):
            text = text.replace(name, value)
        file = self.root / "policies.yaml"
        file.write_text(text, encoding="utf-8")
        self.ctl.run("apply", "-f", str(file))

    def pictures(self, batch: int = 1, glare: bool = False) -> list[Picture]:
        """The demo's crops; with `glare` every fourth has a spot that no dataset has."""
        with np.load(self.files / "photos.npz", allow_pickle=False) as photos:
            images = photos["x"][:_PICTURES].astype(np.float32)
        for image in images[3::4] if glare else ():
            image.flat[0] = 2 * GLARE
        assert self.shape is not None
        size = (batch, *self.shape.row)
        return [
            Picture(self.shape.input, "FP32", size, np.repeat(image[None], batch, axis=0).tobytes())
            for image in images
        ]


FaultyFleet = DigitsFleet | PhotoFleet


def digits_fleet(root: Path) -> DigitsFleet:
    """Small models; nothing runs yet."""
    return DigitsFleet.create(root, digits.generate(Path(".cache") / "digits"))


def photo_fleet(root: Path) -> PhotoFleet:
    """The demo's. ExampleModelsError where its packages are missing; nothing runs yet."""
    fleet = PhotoFleet.create(root, models.generate(Path(".cache") / "models"))
    fleet.model, fleet.rate, fleet.real, fleet.edge_client = MODEL, RATE, REAL, EDGE_CLIENT
    return fleet

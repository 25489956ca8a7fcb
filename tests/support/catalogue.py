"""A controller's dependencies for tests, with a real store and blobs; small models and datasets."""

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from controller.blobs import Blobs
from controller.domain.device import Capabilities
from controller.ids import RandomIds
from controller.services.artifacts import store_artifact
from controller.services.builds import BuildView
from controller.services.context import Ctx, Deps, Limits
from controller.services.datasets import DatasetView, push_dataset
from controller.services.jobs import ClaimedJob, claim_job, complete_job, put_output
from controller.services.models import NewVariant, NewVersion, Pushed, push_model
from controller.services.objects import load_shipped
from controller.services.samples import SampleWindow
from controller.store.session import Store, migrate
from controller.trust.authority import Authority
from controller.trust.signing import Signer
from tests.support.stores import NOW

HOST = Capabilities(
    arch="x86_64", cpu_model="Intel(R) N100", runtimes={"onnxruntime": "1.32.0"}, memory_bytes=2**33
)


@dataclass(frozen=True, slots=True)
class World:
    """Dependencies, and the context of one person at one time."""

    deps: Deps
    ctx: Ctx

    def at(self, seconds: float) -> "World":
        """The same so many seconds after the start of the story."""
        return World(self.deps, replace(self.ctx, now=NOW + timedelta(seconds=seconds)))

    def by(self, actor: str) -> "World":
        """The same with another caller."""
        return World(self.deps, replace(self.ctx, actor=actor))

    def upload(self, data: bytes, name: str = "file") -> str:
        """Store bytes as an artifact, return their digest."""
        digest = digest_of(data)
        store_artifact(
            self.deps, self.ctx, digest=digest, length=len(data), name=name, chunks=[data]
        )
        return digest

    def push(
        self,
        ref: str = "digits:1.0.0",
        variants: Sequence[tuple[str, bytes]] | None = None,
        **more: Any,
    ) -> Pushed:
        """Push a model; default a heavy and a light one of different weights."""
        model, _, version = ref.partition(":")
        files = variants or [("heavy", tiny_onnx(1)), ("light", tiny_onnx(2))]
        return push_model(
            self.deps,
            self.ctx,
            NewVersion(
                model,
                version,
                [NewVariant(name, self.upload(data), f"{name}.onnx") for name, data in files],
                **more,
            ),
        )

    def push_data(self, name: str = "digits", data: bytes | None = None) -> DatasetView:
        """Push a dataset; default 40 labelled digits of 10 sources."""
        digest = self.upload(data or tiny_npz())
        return push_dataset(self.deps, self.ctx, name=name, digest=digest, file_name=f"{name}.npz")

    def claim(self, host: Capabilities = HOST) -> ClaimedJob:
        """Claim a job that must be there."""
        job = claim_job(self.deps, self.ctx, host)
        assert job is not None, "no job is queued"
        return job

    def finish(self, job: ClaimedJob, **figures: Any) -> None:
        """Answer a job with a result of every build; `figures` go into each evidence."""
        rows = []
        for build in job.spec["builds"]:
            data = f"compiled {build['build_id']}".encode()
            put_output(
                self.deps,
                self.ctx,
                job_id=job.job_id,
                lease=job.lease,
                digest=digest_of(data),
                length=len(data),
                chunks=[data],
            )
            rows.append(result_row(build["build_id"], data, **figures))
        result = json.dumps({"schema": 1, "host": {}, "builds": rows})
        complete_job(
            self.deps, self.ctx, job_id=job.job_id, lease=job.lease, ok=True, result_json=result
        )

    def finish_all(self, **figures: Any) -> None:
        """Answer every job that is queued."""
        while (job := claim_job(self.deps, self.ctx, HOST)) is not None:
            self.finish(job, **figures)


def make_world(root: Path, limits: Limits | None = None) -> World:
    """A migrated SQLite store and blobs below `root`, with everything shipped loaded."""
    url = f"sqlite:///{root}/store.db"
    migrate(url)
    deps = Deps(
        store=Store.open(url),
        blobs=Blobs(root / "blobs"),
        authority=Authority.create(datetime.now(UTC)),  # TLS looks at the real clock
        signer=Signer.create(),
        engines=Signer.create(),
        samples=SampleWindow(),
        limits=limits or Limits(),
    )
    world = World(deps, Ctx(NOW, RandomIds(), "ana"))
    load_shipped(deps, replace(world.ctx, actor="controller"))
    return world


def open_world(root: Path, limits: Limits | None = None) -> Iterator[World]:
    """For fixtures: a world that is closed at the end."""
    world = make_world(root, limits)
    yield world
    world.deps.store.close()


def digest_of(data: bytes) -> str:
    """``sha256:<64 hex>``."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def tiny_onnx(seed: int, side: int = 8, classes: int = 10, output: str = "scores") -> bytes:
    """A linear classifier of grey images as an ONNX file."""
    weights = np.random.default_rng(seed).normal(size=(side * side, classes)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["image"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], [output]),
        ],
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, side, side])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", classes])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def tiny_npz(rows: int = 40, sources: int = 10, side: int = 8, seed: int = 0) -> bytes:
    """Labelled grey images as an .npz file."""
    random = np.random.default_rng(seed)
    out = io.BytesIO()
    np.savez(
        out,
        x=random.normal(size=(rows, 1, side, side)).astype(np.float32),
        y=np.arange(rows) % 10,
        source=np.arange(rows) % sources,
    )
    return out.getvalue()


def interval(value: float, n: int = 400, half: float = 1.0) -> dict[str, float | int]:
    """A figure with its interval."""
    return {"value": value, "low": value - half, "high": value + half, "n": n}


def result_row(build_id: str, data: bytes, **figures: Any) -> dict[str, Any]:
    """One good build of a job's result; `figures` replace those of its evidence."""
    evidence: dict[str, Any] = {
        "accuracy": interval(97.0),
        "source_accuracy": interval(97.5),
        "accuracy_delta_pts": interval(-0.5),
        "agreement": interval(98.0),
        "p50_ms": 4.0,
        "p95_ms": 5.0,
        "latency_n": 200,
        "fp32_p50_ms": 8.0,
        "eager_p50_ms": 20.0,
        "p50_interval_ms": interval(4.0, n=200, half=0.1),
        "fp32_p50_interval_ms": interval(8.0, n=200, half=0.1),
        "eager_p50_interval_ms": interval(20.0, n=31, half=0.1),
        "measured_on": "x86_64 test",
        "tool_versions": {},
        "rows_checked": 375,
        "rows_not_finite": 0,
    }
    return {
        "build_id": build_id,
        "ok": True,
        "error": "",
        "digest": digest_of(data),
        "length": len(data),
        "media_type": "application/onnx",
        "peak_rss_bytes": 80 * 2**20,
        "evidence": evidence | figures,
    }


def states(views: Sequence[BuildView]) -> dict[tuple[str, str, str], str]:
    """State by (profile, variant, recipe)."""
    return {(view.profile, view.variant, view.recipe): view.state for view in views}

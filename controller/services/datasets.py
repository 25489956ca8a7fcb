"""Datasets: push, list, show. Never lets one source stand in calibration and evaluation."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from controller.domain.model import parse_name
from controller.errors import NotFoundError
from controller.intake.dataset import parse_dataset, split_dataset
from controller.services.artifacts import require_stored, used_or_discarded
from controller.services.context import Ctx, Deps
from controller.services.suggestions import suggest_names
from controller.store import events
from controller.store.artifacts import record_artifact
from controller.store.datasets import DatasetRow, find_dataset, list_datasets, put_dataset
from controller.store.session import Connection


@dataclass(frozen=True, slots=True)
class Replaced:
    """What a name meant before a push. The content stays: builds that were made of it name it."""

    digest: str
    rows: int
    created_at: datetime
    created_by: str


@dataclass(frozen=True, slots=True)
class DatasetView:
    """A dataset as people see it; ``classes`` is 0 without labels, ``shape`` that of one row.

    ``replaced`` is told by the push alone.
    """

    name: str
    digest: str
    rows: int
    calibration_rows: int
    evaluation_rows: int
    sources: int
    classes: int
    shape: tuple[int, ...]
    dtype: str
    created_at: datetime
    created_by: str
    boxes: int | None = None  # None: it says nothing of boxes
    existed: bool = False
    replaced: Replaced | None = None


@dataclass(frozen=True, slots=True)
class _Part:
    digest: str
    length: int


def push_dataset(deps: Deps, ctx: Ctx, *, name: str, digest: str, file_name: str) -> DatasetView:
    """Split an uploaded file and store it as what ``name`` means from now on.

    The same content again changes nothing. Raises InvalidError for what intake refuses,
    NotFoundError when the file was not uploaded.
    """
    with used_or_discarded(deps, ctx, [digest]):
        return _push(deps, ctx, name, digest, file_name)


def _push(deps: Deps, ctx: Ctx, name: str, digest: str, file_name: str) -> DatasetView:
    parse_name(name, "dataset")
    path = deps.blobs.local_path(digest)
    if path is None:
        raise NotFoundError(f"dataset {name}: {digest} was not uploaded", "upload the file first")
    with deps.store.read() as conn:
        same = find_dataset(conn, ctx.project, name)
    if same is not None and same.digest == digest:
        return _view(same, existed=True)
    facts, calibration, evaluation = _split(deps, path, file_name or name)
    row = DatasetRow(name, digest, calibration.digest, evaluation.digest, facts, ctx.now, ctx.actor)
    with deps.store.write() as conn:
        for part in (calibration, evaluation):
            require_stored(deps, part.digest)
            record_artifact(conn, ctx.project, part.digest, part.length, ctx.now)
        before = find_dataset(conn, ctx.project, name)
        put_dataset(conn, ctx.project, row)
        events.append(
            conn,
            ctx.project,
            ctx.now,
            "dataset_pushed",
            ctx.actor,
            details={
                "name": name,
                "digest": digest,
                "rows": facts["rows"],
                "replaced": before.digest if before else "",
            },
        )
    return _view(row, replaced=before)


def list_all_datasets(deps: Deps, ctx: Ctx) -> list[DatasetView]:
    """The newest content of every name."""
    with deps.store.read() as conn:
        return [_view(row) for row in list_datasets(conn, ctx.project)]


def get_dataset(deps: Deps, ctx: Ctx, name: str) -> DatasetView:
    """The newest content of a name; NotFoundError suggests one."""
    with deps.store.read() as conn:
        return _view(require_dataset(conn, ctx.project, name))


def require_dataset(conn: Connection, project: str, name: str) -> DatasetRow:
    """The newest content of a name; NotFoundError suggests one."""
    row = find_dataset(conn, project, name)
    if row is None:
        known = [one.name for one in list_datasets(conn, project)]
        raise NotFoundError(
            f"dataset {name} does not exist",
            *suggest_names(name, known, f"push one: fleetctl admin dataset push {name} FILE.npz"),
        )
    return row


def _split(deps: Deps, path: Path, what: str) -> tuple[dict[str, Any], _Part, _Part]:
    parsed = parse_dataset(path, deps.limits, what)
    with deps.blobs.scratch() as folder:
        halves = (folder / "calibration.npz", folder / "evaluation.npz")
        split = split_dataset(path, *halves, what=what)
        calibration, evaluation = (_keep(deps, half) for half in halves)
    facts = {
        "rows": parsed.rows,
        "calibration_rows": split.calibration_rows,
        "evaluation_rows": split.evaluation_rows,
        "sources": parsed.sources,
        "classes": parsed.classes,
        "shape": list(parsed.shape),
        "dtype": parsed.dtype,
        "boxed": parsed.boxed,
        "boxes": parsed.boxes,
        "box_classes": parsed.box_classes,
        "targeted": parsed.targeted,
    }
    return facts, calibration, evaluation


def _keep(deps: Deps, path: Path) -> _Part:
    with path.open("rb") as stream:
        digest = "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()
    return _Part(digest, deps.blobs.put_file(path, digest))


def _view(
    row: DatasetRow, *, existed: bool = False, replaced: DatasetRow | None = None
) -> DatasetView:
    facts: Mapping[str, Any] = row.facts
    return DatasetView(
        name=row.name,
        digest=row.digest,
        rows=facts["rows"],
        calibration_rows=facts["calibration_rows"],
        evaluation_rows=facts["evaluation_rows"],
        sources=facts["sources"],
        classes=facts["classes"],
        shape=tuple(facts["shape"]),
        dtype=facts["dtype"],
        created_at=row.created_at,
        created_by=row.created_by,
        boxes=facts["boxes"] if facts.get("boxed") else None,
        existed=existed,
        replaced=None
        if replaced is None
        else Replaced(
            replaced.digest, replaced.facts["rows"], replaced.created_at, replaced.created_by
        ),
    )

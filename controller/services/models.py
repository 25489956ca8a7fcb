"""Models: push, list, show. Versions never change; what is stored was parsed whole first."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, assert_never

from controller.domain.ladder import OFF
from controller.domain.model import ModelFormat, ModelRef, Signature, parse_name, parse_version
from controller.domain.preparation import prepare
from controller.domain.task import Task, TaskKind, check_outputs, parse_task
from controller.domain.version_spec import variant_spec
from controller.errors import ConflictError, InvalidError, NotFoundError, RefusedError
from controller.intake.models import check_labels, check_one_signature, check_size, parse_model
from controller.intake.torch_export import sanitize_pt2
from controller.intake.torchscript import sanitize_torchscript
from controller.services.artifacts import require_stored, used_or_discarded
from controller.services.context import Ctx, Deps
from controller.services.suggestions import size_text, suggest_names
from controller.store import events
from controller.store.artifacts import record_artifact
from controller.store.models import (
    VariantRow,
    VersionRow,
    add_version,
    count_running,
    find_version,
    list_model_names,
    list_versions,
)
from controller.store.session import Connection

MAX_LABELS = 100_000
MAX_LABEL_CHARS = 200
MAX_SPEC_CHARS = 64 * 1024

_Clean = Callable[[Path, Path, int, str], None]


@dataclass(frozen=True, slots=True)
class NewVariant:
    """A variant to push: an artifact that is stored already."""

    variant: str
    digest: str
    file_name: str


@dataclass(frozen=True, slots=True)
class NewVersion:
    """A version to push; variants heavy to light."""

    model: str
    version: str
    variants: Sequence[NewVariant]
    labels: Sequence[str] = ()
    params: Mapping[str, Any] | None = None
    licence: str = ""
    task: Mapping[str, Any] | None = None  # kind, post, metric; None: classification
    spec: Mapping[str, Any] | None = None  # of `domain.version_spec`


@dataclass(frozen=True, slots=True)
class VersionView:
    """A version as people see it; ``devices`` run it now."""

    model: str
    version: str
    variants: tuple[VariantRow, ...]
    signature: Signature
    labels: tuple[str, ...]
    params: Mapping[str, Any]
    licence: str
    spec: Mapping[str, Any]
    created_at: datetime
    created_by: str
    devices: int
    task: Task


@dataclass(frozen=True, slots=True)
class Pushed:
    """The result of a push; ``existed``: the same content was pushed before."""

    version: VersionView
    existed: bool


@dataclass(frozen=True, slots=True)
class _Understood:
    """An uploaded file after intake; the digest is that of what is stored."""

    row: VariantRow
    core: Signature  # the file's own
    outer: Signature  # with what goes around its graph
    entry: str


def push_model(deps: Deps, ctx: Ctx, new: NewVersion) -> Pushed:
    """Store a version. The same content again changes nothing.

    Raises InvalidError for what intake refuses or variants of different signatures, NotFoundError
    for files that were not uploaded, ConflictError when the version exists with other content. What
    was uploaded for a push that is refused is not kept.
    """
    digests = [one.digest for one in new.variants]
    with used_or_discarded(deps, ctx, digests):
        return _push(deps, ctx, new, digests)


def _push(deps: Deps, ctx: Ctx, new: NewVersion, digests: list[str]) -> Pushed:
    """`digests` gets those of what is made of the uploads."""
    ref = ModelRef(parse_name(new.model), parse_version(new.version))
    _check_new(new)
    understood: list[_Understood] = []
    for position in range(len(new.variants)):
        understood.append(_understand(deps, new, position))
        digests.append(understood[-1].row.digest)
    signature = check_one_signature({one.row.variant: one.outer for one in understood})
    task = _task_of(new, understood, signature)
    new = replace(new, task=_declared(task), params={**(new.params or {}), **task.numbers})
    variants = tuple(one.row for one in understood)
    row = VersionRow(
        model=ref.model,
        version=ref.version,
        content_digest=_content_digest(new, variants),
        signature=signature.to_json(),
        labels=list(new.labels),
        params=dict(new.params or {}),
        licence=new.licence,
        created_at=ctx.now,
        created_by=ctx.actor,
        variants=variants,
        task=dict(new.task or {}),
        spec=dict(new.spec or {}),
    )
    with deps.store.write() as conn:
        stored = find_version(conn, ctx.project, ref.model, ref.version)
        if stored is not None:
            if stored.content_digest != row.content_digest:
                raise _conflict(conn, ctx.project, row, stored)
            return Pushed(_view(stored, count_running(conn, ctx.project)), existed=True)
        for variant in row.variants:
            require_stored(deps, variant.digest)
            record_artifact(conn, ctx.project, variant.digest, variant.length, ctx.now)
        add_version(conn, ctx.project, row)
        events.append(
            conn,
            ctx.project,
            ctx.now,
            "model_pushed",
            ctx.actor,
            model=ref.model,
            version=ref.version,
            details={one.variant: one.digest for one in row.variants}
            | {f"{one.row.variant}.entry": one.entry for one in understood if one.entry},
        )
    return Pushed(_view(row, {}), existed=False)


def _task_of(new: NewVersion, understood: Sequence[_Understood], signature: Signature) -> Task:
    """What the version is for; InvalidError where its outputs or labels are not of that."""
    task = parse_task(new.task or {}, new.params or {})
    check_outputs(task, signature)
    if task.kind is TaskKind.CLASSIFICATION:
        for one in understood:  # a graph that gives the best classes does not say how many
            check_labels(len(new.labels), one.core)
    return task


def list_models(deps: Deps, ctx: Ctx, model: str = "") -> list[VersionView]:
    """All versions, or those of one model (NotFoundError when it does not exist)."""
    with deps.store.read() as conn:
        rows = list_versions(conn, ctx.project, model)
        if model and not rows:
            raise unknown_model(conn, ctx.project, model)
        running = count_running(conn, ctx.project)
    return [_view(row, running) for row in rows]


def get_model(deps: Deps, ctx: Ctx, model: str, version: str = "") -> VersionView:
    """One version, the newest without ``version``. NotFoundError suggests what was meant."""
    with deps.store.read() as conn:
        row = require_version(conn, ctx.project, model, version)
        return _view(row, count_running(conn, ctx.project))


def require_version(conn: Connection, project: str, model: str, version: str = "") -> VersionRow:
    """One version, the newest without ``version``. NotFoundError suggests what was meant."""
    rows = list_versions(conn, project, model)
    if not rows or not model:
        raise unknown_model(conn, project, model)
    if not version:
        return rows[0]
    for row in rows:
        if row.version == version:
            return row
    raise NotFoundError(
        f"{model}:{version} does not exist", *suggest_names(version, [r.version for r in rows])
    )


def unknown_model(conn: Connection, project: str, model: str) -> NotFoundError:
    """The error for a model name that nobody pushed."""
    return NotFoundError(
        f"model {model} does not exist",
        *suggest_names(model, list_model_names(conn, project), "no model was pushed yet"),
    )


def _declared(task: Task) -> dict[str, Any] | None:
    """What is stored of a task: nothing of the default, so that such versions stay as they were."""
    return None if task.is_default else task.to_json()


def _check_new(new: NewVersion) -> None:
    if not new.variants:
        raise InvalidError("a version needs a variant", "for example --variant heavy=FILE")
    names = [parse_name(one.variant, "variant") for one in new.variants]
    if len(set(names)) != len(names):
        raise InvalidError("a variant is named twice", f"given are {', '.join(names)}")
    if OFF in names:
        raise InvalidError(
            f"a variant cannot be named {OFF}", "in a policy's rungs that word turns a model off"
        )
    if len(new.labels) > MAX_LABELS:
        raise InvalidError(f"{len(new.labels)} labels, at most {MAX_LABELS} are taken")
    for number, label in enumerate(new.labels, 1):
        if len(label) > MAX_LABEL_CHARS:
            raise InvalidError(
                f"label {number} has {len(label):,} characters, at most {MAX_LABEL_CHARS} are taken"
            )
        if not label.isprintable():
            raise InvalidError(
                f"label {number} is not printable: {label!r}", "labels are plain text, one a line"
            )
    if len(json.dumps(new.spec or {})) > MAX_SPEC_CHARS:
        raise InvalidError(f"the spec is longer than {MAX_SPEC_CHARS} characters")
    for name, text in (
        ("licence", new.licence),
        *(("file name", v.file_name) for v in new.variants),
    ):
        if len(text) > MAX_LABEL_CHARS or not text.isprintable():
            raise InvalidError(
                f"the {name} {text[:80]!r} is longer than {MAX_LABEL_CHARS} characters or not"
                " printable"
            )


def _understand(deps: Deps, new: NewVersion, position: int) -> _Understood:
    """Parse an uploaded file and store the clean form of it."""
    pushed = new.variants[position]
    path = deps.blobs.local_path(pushed.digest)
    if path is None:
        raise NotFoundError(
            f"variant {pushed.variant}: {pushed.digest} was not uploaded", "upload the file first"
        )
    what = pushed.file_name or pushed.variant
    spec = variant_spec(new.spec or {}, pushed.variant, [one.variant for one in new.variants])
    parsed = parse_model(path, deps.limits, what, spec.signature)
    _check_entry(deps, parsed.format, spec.entry, what)
    outer = prepare(parsed.signature, spec.wishes).outer
    check_size(outer, what)
    digest, length = pushed.digest, parsed.length
    match parsed.format:
        case ModelFormat.TORCH_EXPORT:
            digest, length = _cleaned(deps, path, what, sanitize_pt2)
        case ModelFormat.TORCHSCRIPT:
            digest, length = _cleaned(deps, path, what, sanitize_torchscript)
        case ModelFormat.ONNX | ModelFormat.PYTHON:
            pass
        case _:
            assert_never(parsed.format)
    row = VariantRow(pushed.variant, position, digest, length, parsed.format, pushed.file_name)
    return _Understood(row, parsed.signature, outer, spec.entry)


def _check_entry(deps: Deps, kind: ModelFormat, entry: str, what: str) -> None:
    """Weights need the function that makes their network, and this controller has to allow it."""
    if kind is not ModelFormat.PYTHON:
        if entry:
            raise InvalidError(
                f"{what} is a whole model, and the spec names the function {entry}",
                "a function makes a network for weights: push a .safetensors file, or leave it out",
            )
        return
    if not entry:
        raise InvalidError(
            f"{what} holds weights alone",
            "name the function that makes their network in the file of --spec:"
            " entry: module:function",
        )
    if not deps.limits.python_entry_points:
        raise RefusedError(
            f"{what}: this controller takes no Python functions ({entry})",
            "they are code of the build workers that whoever may push can have run, in the job's"
            " sandbox: without network, but with what is installed there",
            "to allow them set python_entry_points = on (LIGHTERMAN_PYTHON_ENTRY_POINTS=on) and"
            " start the controller again; or push the .pt2 of torch.export.save",
        )


def _cleaned(deps: Deps, path: Path, what: str, clean: _Clean) -> tuple[str, int]:
    """Store the file without what is code beyond the format's need; its digest and length."""
    with deps.blobs.scratch() as folder:
        target = folder / "model"
        clean(path, target, deps.limits.artifact_bytes, what)
        with target.open("rb") as stream:
            digest = "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()
        return digest, deps.blobs.put_file(target, digest)


def _content_digest(new: NewVersion, variants: Sequence[VariantRow]) -> str:
    """Digest of what "the same content" means; file names are not part of it."""
    content = {
        "variants": [[one.variant, one.digest] for one in variants],
        "labels": list(new.labels),
        "params": dict(new.params or {}),
        "licence": new.licence,
        **({"task": dict(new.task)} if new.task else {}),
        **({"spec": dict(new.spec)} if new.spec else {}),
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _conflict(conn: Connection, project: str, now: VersionRow, stored: VersionRow) -> ConflictError:
    when = f"{stored.created_at:%Y-%m-%d %H:%M} UTC by {stored.created_by}"
    lines: list[str] = []
    before = {one.variant: one for one in stored.variants}
    after = {one.variant: one for one in now.variants}
    for name in dict.fromkeys([*after, *before]):
        new, old = after.get(name), before.get(name)
        if new is not None and old is not None and new.digest == old.digest:
            continue
        prefix = f"{name}  " if len(before) + len(after) > 2 else ""
        lines.append(f"pushed now   {prefix}{_file(new)}")
        lines.append(f"stored       {prefix}{_file(old)}, {when}")
    if not lines:
        different = [
            name
            for name, new_value, old_value in (
                ("variant order", list(after), list(before)),
                ("labels", now.labels, stored.labels),
                ("params", now.params, stored.params),
                ("task", now.task, stored.task),
                ("licence", now.licence, stored.licence),
                ("spec", now.spec, stored.spec),
            )
            if new_value != old_value
        ]
        lines.append(f"the files are the same, {' and '.join(different)} differ")
        lines.append(f"stored       {when}")
    taken = {row.version for row in list_versions(conn, project, now.model)}
    lines.append(
        "versions never change; push this as a new one, for example"
        f" {now.model}:{next_version(now.version, taken)}"
    )
    return ConflictError(f"{now.model}:{now.version} exists with other content", *lines)


def next_version(version: str, taken: set[str]) -> str:
    """A version that is not taken: the last number counted up."""
    found = list(re.finditer(r"\d+", version))
    if not found:
        return f"{version}.1"
    last = found[-1]
    number = int(last[0])
    while True:
        number += 1
        candidate = f"{version[: last.start()]}{number}{version[last.end() :]}"
        if candidate not in taken:
            return candidate


def _file(row: VariantRow | None) -> str:
    return "no such variant" if row is None else f"{row.digest[:13]}…  {size_text(row.length)}"


def _view(row: VersionRow, running: Mapping[tuple[str, str], int]) -> VersionView:
    return VersionView(
        row.model,
        row.version,
        row.variants,
        Signature.from_json(row.signature),
        tuple(row.labels),
        row.params,
        row.licence,
        row.spec,
        row.created_at,
        row.created_by,
        running.get((row.model, row.version), 0),
        parse_task(row.task, row.params),
    )

"""Wire and values of models, datasets and objects. Decides nothing."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from controller.domain.model import Signature, TensorSpec
from controller.domain.spec import read_json
from controller.errors import InvalidError
from controller.services.datasets import DatasetView
from controller.services.models import NewVariant, NewVersion, VersionView
from controller.services.objects import Applied, NewObject, ObjectView
from lighterman.v1 import common_pb2, fleet_pb2


def timestamp(at: datetime) -> Timestamp:
    """An aware time for the wire."""
    wire = Timestamp()
    wire.FromDatetime(at)
    return wire


def parse_json(text: str, what: str) -> dict[str, Any]:
    """A JSON object; empty text is an empty one. Raises InvalidError."""
    if not text.strip():
        return {}
    value = read_json(text, what)
    if not isinstance(value, dict):
        raise InvalidError(f"{what} is no JSON object")
    return value


def dump_json(value: Mapping[str, Any]) -> str:
    """Canonical JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def new_version(request: fleet_pb2.PushModelRequest) -> NewVersion:
    """What is to be pushed."""
    return NewVersion(
        model=request.model,
        version=request.version,
        variants=[NewVariant(v.variant, v.digest, v.file_name) for v in request.variants],
        labels=list(request.labels),
        params=parse_json(request.params_json, "params"),
        licence=request.licence,
        task=parse_json(request.task_json, "task"),
        spec=parse_json(request.spec_json, "spec"),
    )


def signature_message(signature: Signature) -> common_pb2.Signature:
    """A signature for the wire."""
    return common_pb2.Signature(
        inputs=[_tensor(spec) for spec in signature.inputs],
        outputs=[_tensor(spec) for spec in signature.outputs],
    )


def _tensor(spec: TensorSpec) -> common_pb2.TensorSpec:
    return common_pb2.TensorSpec(
        name=spec.name, dtype=spec.dtype, shape=[str(axis) for axis in spec.shape]
    )


def version_message(view: VersionView, *, with_labels: bool = True) -> fleet_pb2.ModelVersion:
    """A version for the wire; lists leave the labels out."""
    return fleet_pb2.ModelVersion(
        model=view.model,
        version=view.version,
        variants=[
            fleet_pb2.Variant(
                variant=one.variant,
                digest=one.digest,
                length=one.length,
                format=one.format,
                position=one.position,
                file_name=one.file_name,
            )
            for one in view.variants
        ],
        signature=signature_message(view.signature),
        labels_count=len(view.labels),
        labels=view.labels if with_labels else (),
        params_json=dump_json(view.params),
        licence=view.licence,
        created_at=timestamp(view.created_at),
        created_by=view.created_by,
        device_count=view.devices,
        task_json=dump_json(view.task.to_json() | {"text": view.task.text()}),
        spec_json=dump_json(view.spec) if view.spec else "",
    )


def dataset_message(view: DatasetView) -> fleet_pb2.Dataset:
    """A dataset for the wire."""
    return fleet_pb2.Dataset(
        name=view.name,
        digest=view.digest,
        rows=view.rows,
        calibration_rows=view.calibration_rows,
        evaluation_rows=view.evaluation_rows,
        sources=view.sources,
        classes=view.classes,
        shape=view.shape,
        dtype=view.dtype,
        created_at=timestamp(view.created_at),
        created_by=view.created_by,
        existed=view.existed,
        boxes=view.boxes,
        replaced=None
        if view.replaced is None
        else fleet_pb2.ReplacedDataset(
            digest=view.replaced.digest,
            rows=view.replaced.rows,
            created_at=timestamp(view.replaced.created_at),
            created_by=view.replaced.created_by,
        ),
    )


def new_object(message: fleet_pb2.Object) -> NewObject:
    """An object that is to be applied."""
    what = f"{message.kind or 'object'} {message.name}: spec"
    return NewObject(message.kind, message.name, parse_json(message.spec_json, what))


def object_message(view: ObjectView) -> fleet_pb2.Object:
    """An object for the wire."""
    return fleet_pb2.Object(
        kind=view.kind,
        name=view.name,
        spec_json=dump_json(view.spec),
        shipped=view.shipped,
        updated_at=timestamp(view.updated_at),
        updated_by=view.updated_by,
    )


def applied_message(applied: Applied) -> fleet_pb2.ApplyResult:
    """What apply did, for the wire."""
    return fleet_pb2.ApplyResult(
        kind=applied.kind,
        name=applied.name,
        change=applied.change.value,
        diff=applied.diff,
        notes=applied.notes,
    )

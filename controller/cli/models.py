"""``fleetctl model``: push a version, list and show. Reads files, never opens a model."""

import json
from pathlib import Path
from typing import Any

import click
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from controller.cli import units
from controller.cli.model_spec import read_spec, spec_lines
from controller.cli.problem import CliError
from controller.cli.session import Session, common, parse_ref
from lighterman.v1 import common_pb2, fleet_pb2

MAX_LABELS_BYTES = 4 * 1024 * 1024  # of one message to the controller
FORMAT_WORDS = {
    "torch_export": "torch.export",
    "onnx": "ONNX",
    "torchscript": "TorchScript",
    "python": "weights and a function",
}


@click.group()
def model() -> None:
    """Model versions: push, list, show."""


def tensor_text(tensor: common_pb2.TensorSpec) -> str:
    """``image[batch,3,224,224] FP32``."""
    return f"{tensor.name}[{','.join(tensor.shape)}] {tensor.dtype}"


def upload_all(session: Session, files: dict[str, Path]) -> dict[str, str]:
    """Upload each file with a progress bar on a terminal; returns digests by the same keys."""
    for path in files.values():
        if not path.is_file():
            raise CliError(f"{path} is no file\nnothing was pushed")
    _ = session.stub
    total = sum(path.stat().st_size for path in files.values())
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    hidden = session.quiet or session.machine or not session.err.is_terminal
    with Progress(*columns, console=session.err, transient=True, disable=hidden) as progress:
        task = progress.add_task("sending", total=total)
        return {
            key: session.connection.upload(path, lambda sent: progress.advance(task, sent))
            for key, path in files.items()
        }


def _read_labels(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        with path.open("rb") as file:  # a device or a pipe has no length to look at first
            data = file.read(MAX_LABELS_BYTES + 1)
    except OSError as error:
        raise CliError(f"labels file {path} cannot be read: {error.strerror}") from None
    if len(data) > MAX_LABELS_BYTES:
        most = units.size(MAX_LABELS_BYTES)
        raise CliError(f"labels file {path} is longer than {most}\none label a line, nothing else")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CliError(
            f"labels file {path} is no UTF-8 text: byte 0x{data[error.start]:02x} at {error.start}"
            "\nsave it as UTF-8, one label a line"
        ) from None
    # Only the line break ends a line: other signs that could are refused as part of a label.
    labels = [line.strip(" \t\r") for line in text.split("\n") if line.strip()]
    if not labels:
        raise CliError(
            f"labels file {path} holds no label; one label a line, in the order of the outputs"
        )
    return labels


def _value(text: str) -> Any:
    """A number or true and false where it is one, else the text itself."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float) else text


def _variants(pairs: tuple[tuple[str, str], ...]) -> dict[str, Path]:
    names = [name for name, _ in pairs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise click.UsageError(f"variant {twice[0]} is given twice")
    return {name: Path(file) for name, file in pairs}


@model.command("push")
@click.argument("ref", metavar="NAME:VERSION")
@click.option(
    "--variant",
    "variants",
    type=units.KEY_VALUE,
    multiple=True,
    required=True,
    metavar="NAME=FILE",
    help="A .pt2 (torch.export), .onnx, TorchScript or, with a function in --spec, .safetensors"
    " file; heaviest first, repeat for lighter ones.",
)
@click.option(
    "--labels", type=click.Path(path_type=Path), help="Text file, one label a line.", metavar="FILE"
)
@click.option(
    "--task",
    type=click.Choice(["classification", "detection", "other"]),
    default=None,
    help="What it answers: a class of the input (the default), boxes, or something else.",
)
@click.option("--post", default="", help="Post-processing: softmax, top_k, boxes, yolo or db.")
@click.option(
    "--param",
    "params",
    type=units.KEY_VALUE,
    multiple=True,
    metavar="NAME=VALUE",
    help="A number of the post-processing, or of your application; repeat for more.",
)
@click.option("--metric", default="", help="A metric that build workers have installed.")
@click.option(
    "--spec",
    "spec_file",
    type=click.Path(path_type=Path),
    help="YAML: what files do not say, and what goes around their graphs (docs/builds.md).",
    metavar="FILE",
)
@click.option("--licence", default="", help="Licence of the weights, kept with the version.")
@common
def push(
    session: Session,
    ref: str,
    variants: tuple[tuple[str, str], ...],
    labels: Path | None,
    task: str | None,
    post: str,
    params: tuple[tuple[str, str], ...],
    metric: str,
    spec_file: Path | None,
    licence: str,
) -> None:
    """Push an immutable version with one or more variants."""
    name, version = parse_ref(ref)
    files = _variants(variants)
    label_list = _read_labels(labels)
    spec = read_spec(spec_file)
    digests = upload_all(session, files)
    request = fleet_pb2.PushModelRequest(
        model=name,
        version=version,
        variants=[
            fleet_pb2.VariantUpload(variant=key, digest=digests[key], file_name=path.name)
            for key, path in files.items()
        ],
        labels=label_list,
        licence=licence,
        params_json=json.dumps({key: _value(text) for key, text in params}) if params else "",
        task_json=json.dumps({"kind": task or "", "post": post, "metric": metric}),
        spec_json=json.dumps(spec) if spec else "",
    )
    response = session.stub.PushModel(request, timeout=300)

    def render() -> None:
        _show_variants(session, response.version, first_in_full=True)
        done = "was pushed before, with the same content" if response.existed else ""
        session.say(f"{name}:{version} {done}" if done else f"pushed {name}:{version}")

    session.show("model_version", response.version, f"{name}:{version}", render)


def _show_variants(session: Session, version: fleet_pb2.ModelVersion, first_in_full: bool) -> None:
    inputs = ", ".join(tensor_text(tensor) for tensor in version.signature.inputs)
    names = max((len(variant.variant) for variant in version.variants), default=0)
    files = max((len(variant.file_name) for variant in version.variants), default=0)
    for index, variant in enumerate(version.variants):
        kind = FORMAT_WORDS.get(variant.format, variant.format)
        first = f", input {inputs}" if first_in_full else ""
        signature = first if index == 0 else ", same signature"
        session.say(
            f"{variant.variant:<{names}}  {variant.file_name:<{files}} "
            f" {units.size(variant.length):>9}  {kind}{signature}"
        )


@model.command("list")
@click.argument("name", metavar="[NAME]", default="")
@common
def list_models(session: Session, name: str) -> None:
    """List versions, newest first."""
    response = session.stub.ListModels(fleet_pb2.ListModelsRequest(model=name), timeout=30)
    versions = list(response.versions)

    def render() -> None:
        session.table(
            ["model", "version", "variants", ">size", ">devices", "pushed", "by"],
            [
                [
                    version.model,
                    version.version,
                    ", ".join(variant.variant for variant in version.variants),
                    units.size(sum(variant.length for variant in version.variants)),
                    str(version.device_count),
                    units.local(version.created_at),
                    version.created_by,
                ]
                for version in versions
            ],
        )

    session.show_list(
        "model_version",
        versions,
        lambda version: f"{version.model}:{version.version}",
        render,
        "no model yet; push one: fleetctl model push NAME:VERSION --variant heavy=FILE",
    )


@model.command("show")
@click.argument("ref", metavar="NAME[:VERSION]")
@common
def show(session: Session, ref: str) -> None:
    """Show one version: variants, signature, labels, devices."""
    name, version = parse_ref(ref, need_version=False)
    found = session.stub.GetModel(
        fleet_pb2.GetModelRequest(model=name, version=version), timeout=30
    )

    def render() -> None:
        session.say(
            f"{found.model}:{found.version}   on {units.count_of(found.device_count, 'device')}"
        )
        _show_variants(session, found, first_in_full=False)
        for title, tensors in (
            ("input", found.signature.inputs),
            ("output", found.signature.outputs),
        ):
            for tensor in tensors:
                session.say(f"{title:<9}{tensor_text(tensor)}")
        session.say(f"task     {json.loads(found.task_json or '{}').get('text', units.UNKNOWN)}")
        for key, value in sorted(json.loads(found.params_json or "{}").items()):
            session.say(f"param    {key} {value}")
        for line in spec_lines(found.spec_json):
            session.say(f"spec     {line}")
        session.say(f"labels   {found.labels_count or units.UNKNOWN}")
        session.say(f"licence  {found.licence or units.UNKNOWN}")
        session.say(f"pushed   {units.local(found.created_at)} by {found.created_by}")

    session.show("model_version", found, f"{found.model}:{found.version}", render)

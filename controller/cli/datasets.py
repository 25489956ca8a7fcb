"""``fleetctl admin dataset``: push, list and show rows for calibration and evaluation."""

from pathlib import Path

import click

from controller.cli import units
from controller.cli.models import upload_all
from controller.cli.session import Session, common
from lighterman.v1 import fleet_pb2

DIGEST_CHARS = len("sha256:") + 6


@click.group("dataset")
def dataset() -> None:
    """Datasets for calibration and evaluation."""


def _truth(item: fleet_pb2.Dataset) -> str:
    if item.HasField("boxes"):
        return f"{item.boxes:,} boxes"
    return f"{item.classes:,} classes" if item.classes else "no labels"


def _dataset_line(item: fleet_pb2.Dataset) -> str:
    labelled = _truth(item)
    shape = ",".join(str(side) for side in item.shape)
    return (
        f"{item.name}  {item.digest[:DIGEST_CHARS]}…  {item.rows:,} rows [{shape}] {item.dtype},"
        f" {labelled}:"
        f" {item.calibration_rows:,} to calibrate, {item.evaluation_rows:,} to evaluate, from"
        f" {item.sources:,} sources"
    )


@dataset.command("push")
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path))
@common
def push_dataset(session: Session, name: str, file: Path) -> None:
    """Push an .npz file with x and what is true of each row; it is split by source."""
    digest = upload_all(session, {"dataset": file})["dataset"]
    request = fleet_pb2.PushDatasetRequest(name=name, digest=digest, file_name=str(file))
    item = session.stub.PushDataset(request, timeout=300)

    def render() -> None:
        session.say(("was pushed before: " if item.existed else "pushed ") + _dataset_line(item))
        if item.HasField("replaced"):
            old = item.replaced
            session.say(
                f"replaces {old.digest[:DIGEST_CHARS]}…, {units.count_of(old.rows, 'row')}, pushed"
                f" {units.local(old.created_at)} by {old.created_by}; builds of it keep its digest"
            )

    session.show("dataset", item, name, render)


@dataset.command("list")
@common
def list_datasets(session: Session) -> None:
    """List datasets."""
    items = list(session.stub.ListDatasets(fleet_pb2.ListDatasetsRequest(), timeout=30).datasets)

    def render() -> None:
        columns = ["dataset", ">rows", "shape", "type", ">classes", ">calibrate", ">evaluate"]
        rows = [
            [
                item.name,
                f"{item.rows:,}",
                "×".join(str(side) for side in item.shape) or units.UNKNOWN,
                item.dtype,
                _truth(item).removesuffix(" classes"),
                f"{item.calibration_rows:,}",
                f"{item.evaluation_rows:,}",
                f"{item.sources:,}",
                units.local(item.created_at),
            ]
            for item in items
        ]
        session.table([*columns, ">sources", "pushed"], rows)

    session.show_list("dataset", items, lambda item: str(item.name), render, "no dataset")


@dataset.command("show")
@click.argument("name")
@common
def show_dataset(session: Session, name: str) -> None:
    """Show one dataset."""
    item = session.stub.GetDataset(fleet_pb2.GetDatasetRequest(name=name), timeout=30)

    def render() -> None:
        session.say(_dataset_line(item))
        session.say(f"pushed {units.local(item.created_at)} by {item.created_by}, {item.digest}")

    session.show("dataset", item, name, render)

"""Whether a dataset can say anything of a version: its rows, and the truth beside them.

Refuses before a job is queued. Reads facts that were kept when both were pushed, no file.
"""

from controller.domain.model import Signature
from controller.domain.task import TaskKind, parse_task
from controller.errors import RefusedError
from controller.intake.models import class_outputs
from controller.store.datasets import DatasetRow
from controller.store.models import VersionRow


def check_fits(version: VersionRow, dataset: DatasetRow) -> None:
    """Refuse rows that could not be fed to the model; only one input can be fed by ``x``.

    And labels that its scores cannot speak of: they would count as wrong answers of the model.
    """
    signature = Signature.from_json(version.signature)
    inputs = signature.inputs
    shape = tuple(dataset.facts["shape"])
    wanted = inputs[0].shape[1:]
    bounds = {one.name: range(one.least, one.most + 1) for one in signature.axes}

    def takes(axis: int | str, size: int) -> bool:
        return size in bounds.get(axis, (size,)) if isinstance(axis, str) else axis == size

    fits = len(inputs) == 1 and len(wanted) == len(shape)
    fits = fits and all(takes(a, b) for a, b in zip(wanted, shape, strict=True))
    # Rounded to whole numbers, pictures of 0 to 1 would be black.
    fits = fits and not (dataset.facts["dtype"].startswith("FP") and "INT" in inputs[0].dtype)
    if not fits:
        raise RefusedError(
            f"dataset {dataset.name} does not fit {version.model}:{version.version}",
            f"its rows are {list(shape)} {dataset.facts['dtype']}, the model takes "
            + ", ".join(spec.text() for spec in inputs),
            *(f"{one.name} is {one.least} to {one.most}" for one in signature.axes),
        )
    _check_truth(version, dataset, signature)


def _check_truth(version: VersionRow, dataset: DatasetRow, signature: Signature) -> None:
    """Refuse what is true of rows where it says nothing of what the version answers."""
    facts = dataset.facts
    unfit = f"dataset {dataset.name} does not fit {version.model}:{version.version}"
    kind = parse_task(version.task, version.params).kind
    labels, boxed = int(facts["classes"]), bool(facts.get("boxed"))
    if kind is TaskKind.DETECTION and labels:
        raise RefusedError(
            unfit, "its rows have labels, the version finds boxes: give it boxes and box_count"
        )
    if kind is TaskKind.CLASSIFICATION and boxed:
        raise RefusedError(
            unfit,
            "its rows have boxes, the version's task is classification",
            "a detector says so when it is pushed: --task detection --post NAME",
        )
    named, classes = len(version.labels), int(facts.get("box_classes", 0))
    if kind is TaskKind.DETECTION and named and classes > named:
        raise RefusedError(unfit, f"its boxes have classes up to {classes - 1}, labels {named}")
    scores = class_outputs(signature)
    most = max((count for _, count in scores), default=labels)
    if kind is TaskKind.CLASSIFICATION and labels > most:
        raise RefusedError(
            unfit,
            f"its labels go up to {labels - 1}, the model's output {scores[0][0].text()} has the"
            f" classes 0 to {scores[0][1] - 1}",
        )

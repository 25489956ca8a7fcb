"""Reads what selectors look at: devices with labels, profile, committed versions, and groups.

Refuses names that nothing here has: a slip in `!=` would widen a selection without a word. The
number of statements does not grow with the devices.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from controller.domain.device import DeviceState
from controller.domain.group import named_groups, parse_groups, resolve
from controller.domain.selection import OWN_MODEL, Selector, Subject, matches
from controller.domain.selector import parse_filter
from controller.domain.words import count_of
from controller.errors import InvalidError, NotFoundError
from controller.services.selections import nobody_matches, slips
from controller.services.suggestions import suggest_names
from controller.store import devices, labels
from controller.store.committed import committed_versions
from controller.store.devices import DeviceRow
from controller.store.models import list_model_names
from controller.store.objects import list_objects
from controller.store.session import Connection


def load_groups(conn: Connection, project: str) -> dict[str, Selector]:
    """The selectors of all groups by name, as they are written."""
    rows = list_objects(conn, project, "Group")
    return parse_groups({row.name: str(row.spec["selector"]) for row in rows})


def read_selector(conn: Connection, project: str, text: str, model: str = "") -> Selector:
    """The selector of a person, empty meaning all, with its groups looked up.

    `model` is the one that `model.version` means. InvalidError where it cannot be read,
    NotFoundError where it names a group that does not exist.
    """
    selector = parse_filter(text)
    groups = load_groups(conn, project) if named_groups(selector) else {}
    check_groups(selector, groups)
    return resolve(selector, groups, model)


def check_groups(selector: Selector, groups: Mapping[str, Selector]) -> None:
    """NotFoundError with what was meant where a group that it names does not exist."""
    for name in named_groups(selector):
        if name not in groups:
            raise NotFoundError(
                f"no group {name}",
                *suggest_names(name, sorted(groups), "no group is stored: kind Group, by apply"),
            )


@dataclass(slots=True)
class Census:
    """Counts what selectors pick; the devices are read once, however many are counted."""

    conn: Connection
    project: str
    groups: Mapping[str, Selector]
    _read: dict[frozenset[str], list[Subject]] = field(default_factory=dict)

    def count(self, written: Selector, model: str = "") -> tuple[str, ...]:
        """What an object with this selector holds now, in lines for people.

        `model` is what `model.version` means; where that is `*` it depends, and nothing is counted.
        """
        selector = resolve(written, self.groups, model)
        if "*" in selector.models:
            return ()
        subjects = self._subjects(selector.models)
        try:
            check_models(self.conn, self.project, selector, subjects)
        except NotFoundError as error:  # it may be pushed later; until then nobody can use it
            return (error.message, *error.lines)
        picked = sum(matches(selector, one) for one in subjects)
        if not picked and subjects:
            why = nobody_matches(selector, subjects, str(written)).lines
            return ("it holds no device now", *why)
        return (f"it holds {count_of(picked, 'device')} now", *slips(selector, subjects))

    def _subjects(self, models: frozenset[str]) -> list[Subject]:
        if models not in self._read:
            rows = devices.list_devices(self.conn, self.project, with_status=False)
            told = devices.capabilities_of(self.conn)
            self._read[models] = load_subjects(self.conn, rows, told, models)
        return self._read[models]


def load_subjects(
    conn: Connection,
    rows: Sequence[DeviceRow],
    reported: Mapping[str, Mapping[str, Any]],
    models: frozenset[str] = frozenset(),
    device_ids: Sequence[str] | None = None,
) -> list[Subject]:
    """What selectors look at on these devices; versions of the named models alone.

    `reported` are their capabilities; `device_ids` is given where the rows are some of many, so
    that labels of the others are not read.
    """
    named = labels.labels_of(conn, device_ids)
    versions = committed_versions(conn, models, device_ids) if models else {}
    return [
        Subject(
            device_id=row.device_id,
            profile=row.profile or "",
            arch=str(reported.get(row.device_id, {}).get("arch", "")),
            labels=named.get(row.device_id, {}),
            quarantined=row.state == DeviceState.QUARANTINED,
            versions=versions.get(row.device_id, {}),
        )
        for row in rows
    ]


def check_models(
    conn: Connection, project: str, selector: Selector, subjects: Sequence[Subject]
) -> None:
    """NotFoundError where it asks for the version of what is neither a model nor a label."""
    labelled = {name for one in subjects for name in one.labels}
    asked = {t.version_of: t for t in selector.walk() if t.version_of and t.name not in labelled}
    if not asked:
        return
    known = list_model_names(conn, project)
    for model, term in asked.items():
        if model in known:
            continue
        if model == OWN_MODEL:
            raise InvalidError(
                f"{term} names no model",
                "model.version is the rollout's own model, in rollout plan and start alone",
                "write the model's name, for example detector.version<1.3",
            )
        raise NotFoundError(
            f"no model {model}, asked for by {term}",
            *suggest_names(model, known, "no model was pushed yet"),
        )

"""Documented objects: apply, list, show. Stores no spec that the domain does not understand."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, assert_never

from controller.domain.build import parse_recipe
from controller.domain.device import Profile, parse_profile
from controller.domain.group import parse_group, resolve
from controller.domain.ladder import parse_policy
from controller.domain.model import parse_name
from controller.domain.selection import Selector
from controller.errors import InvalidError, LightermanError, NotFoundError
from controller.services.context import Ctx, Deps
from controller.services.shipped import shipped_objects
from controller.services.subjects import Census, check_groups, load_groups
from controller.services.suggestions import suggest_names
from controller.store import events
from controller.store.objects import ObjectRow, find_object, list_objects, put_object
from controller.store.projects import ensure_project


class ObjectKind(StrEnum):
    """What can be applied, in the order in which it is."""

    RECIPE = "Recipe"
    PROFILE = "Profile"
    GROUP = "Group"
    POLICY = "Policy"


class Change(StrEnum):
    """What apply did, or would do."""

    CREATED = "created"
    CHANGED = "changed"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class NewObject:
    """An object as a person wrote it."""

    kind: str
    name: str
    spec: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ObjectView:
    """An object as it is stored; ``shipped`` until a person changes it."""

    kind: str
    name: str
    spec: Mapping[str, Any]
    shipped: bool
    updated_at: datetime
    updated_by: str


@dataclass(frozen=True, slots=True)
class Applied:
    """What apply did to one object."""

    kind: str
    name: str
    change: Change
    diff: tuple[str, ...]
    notes: tuple[str, ...]


def apply_objects(
    deps: Deps, ctx: Ctx, objects: Sequence[NewObject], *, dry_run: bool = False
) -> list[Applied]:
    """Store all objects or none; the same ones again change nothing.

    Raises InvalidError that names the object and key. With ``dry_run`` nothing is written.
    """
    if not objects:
        raise InvalidError("nothing to apply", "a document has kind, name and spec")
    checked = [(parse_kind(one.kind), one) for one in objects]
    twice = {(kind, one.name) for kind, one in checked}
    if len(twice) != len(checked):
        raise InvalidError("the same object stands twice in what is applied")
    order = list(ObjectKind)
    checked.sort(key=lambda pair: order.index(pair[0]))
    with deps.store.read() if dry_run else deps.store.write() as conn:
        recipes = {row.name for row in list_objects(conn, ctx.project, ObjectKind.RECIPE)}
        recipes |= {one.name for kind, one in checked if kind is ObjectKind.RECIPE}
        groups = load_groups(conn, ctx.project)
        groups |= {
            one.name: parse_group(one.name, one.spec).selector
            for kind, one in checked
            if kind is ObjectKind.GROUP
        }
        results = []
        for kind, one in checked:
            _check(kind, one, recipes, groups)
            stored = find_object(conn, ctx.project, kind, one.name)
            applied = _compare(kind, one, stored)
            results.append(applied)
            if dry_run or applied.change is Change.UNCHANGED:
                continue
            row = ObjectRow(kind, one.name, dict(one.spec), False, ctx.now, ctx.actor)
            put_object(conn, ctx.project, row)
            events.append(
                conn,
                ctx.project,
                ctx.now,
                "object_applied",
                ctx.actor,
                reason=f"{kind} {one.name} {applied.change}",
                details={"kind": kind, "name": one.name, "diff": "; ".join(applied.diff)},
            )
    with deps.store.read() as conn:  # a large fleet is not counted while others wait to write
        census = Census(conn, ctx.project, groups)
        return [_counted(census, *pair, done) for pair, done in zip(checked, results, strict=True)]


def list_kind(deps: Deps, ctx: Ctx, kind: str) -> list[ObjectView]:
    """All objects of a kind by name."""
    with deps.store.read() as conn:
        return [_view(row) for row in list_objects(conn, ctx.project, parse_kind(kind))]


def get_object(deps: Deps, ctx: Ctx, kind: str, name: str) -> ObjectView:
    """One object; NotFoundError suggests a name."""
    wanted = parse_kind(kind)
    with deps.store.read() as conn:
        row = find_object(conn, ctx.project, wanted, name)
        if row is not None:
            return _view(row)
        known = [one.name for one in list_objects(conn, ctx.project, wanted)]
    raise NotFoundError(
        f"{wanted.lower()} {name} does not exist",
        *suggest_names(name, known, f"no {wanted.lower()} is stored"),
    )


def load_shipped(deps: Deps, ctx: Ctx) -> int:
    """Bring shipped objects up to this release; what a person changed stays.

    Creates the project where it is missing; returns how many objects changed.

    Raises InvalidError when a shipped object is wrong.
    """
    changed = 0
    objects = [NewObject(kind, name, spec) for kind, name, spec in shipped_objects()]
    recipes = {one.name for one in objects if one.kind == ObjectKind.RECIPE}
    with deps.store.write() as conn:
        ensure_project(conn, ctx.project, ctx.now)
        for one in objects:
            kind = parse_kind(one.kind)
            _check(kind, one, recipes, {})
            stored = find_object(conn, ctx.project, kind, one.name)
            if stored is not None and (not stored.shipped or stored.spec == one.spec):
                continue
            row = ObjectRow(kind, one.name, dict(one.spec), True, ctx.now, ctx.actor)
            put_object(conn, ctx.project, row)
            changed += 1
    return changed


def parse_kind(text: str) -> ObjectKind:
    """The kind, or InvalidError that lists the known ones."""
    for kind in ObjectKind:
        if kind.lower() == text.lower():
            return kind
    raise InvalidError(f"kind {text!r} is unknown", f"known are {', '.join(ObjectKind)}")


def _check(
    kind: ObjectKind, one: NewObject, recipes: set[str], groups: Mapping[str, Selector]
) -> None:
    parse_name(one.name, kind.lower())
    match kind:
        case ObjectKind.RECIPE:
            parse_recipe(one.name, one.spec)
        case ObjectKind.PROFILE:
            _check_profile(parse_profile(one.name, one.spec), recipes)
        case ObjectKind.GROUP:
            _check_groups(f"Group {one.name}", groups[one.name], groups)
        case ObjectKind.POLICY:
            _check_groups(f"Policy {one.name}", parse_policy(one.name, one.spec).selector, groups)
        case _:
            assert_never(kind)


def _check_profile(profile: Profile, recipes: set[str]) -> None:
    for recipe in profile.recipes:
        if recipe not in recipes:
            raise InvalidError(
                f"Profile {profile.name}: recipe {recipe} does not exist",
                *suggest_names(recipe, sorted(recipes)),
            )


def _check_groups(where: str, selector: Selector, groups: Mapping[str, Selector]) -> None:
    """All groups are looked at: a changed one may close a circle of those that name it."""
    try:
        check_groups(selector, groups)
        for one in (selector, *groups.values()):
            resolve(one, groups)
    except LightermanError as error:
        raise InvalidError(f"{where}: {error.message}", *error.lines) from None


def _counted(census: Census, kind: ObjectKind, one: NewObject, done: Applied) -> Applied:
    """With how many devices its selector picks now, where it has one and that is news."""
    if done.change is Change.UNCHANGED:
        return done
    notes: tuple[str, ...] = ()
    if kind is ObjectKind.GROUP:
        notes = census.count(census.groups[one.name])
    elif kind is ObjectKind.POLICY and one.spec.get("selector"):
        policy = parse_policy(one.name, one.spec)
        notes = census.count(policy.selector, policy.model)
    return replace(done, notes=(*done.notes, *notes))


def _compare(kind: ObjectKind, one: NewObject, stored: ObjectRow | None) -> Applied:
    have = {} if stored is None else dict(_leaves(stored.spec, "spec"))
    want = dict(_leaves(one.spec, "spec"))
    diff = tuple(
        f"{path}: {have.get(path, '–')} -> {want.get(path, '–')}"
        for path in sorted(have.keys() | want.keys())
        if have.get(path) != want.get(path)
    )
    if stored is None:
        return Applied(kind, one.name, Change.CREATED, diff, ())
    if not diff:
        return Applied(kind, one.name, Change.UNCHANGED, (), ())
    notes = [_note(kind)]
    if stored.shipped:
        notes.append("shipped until now; it no longer follows new releases")
    return Applied(kind, one.name, Change.CHANGED, diff, tuple(notes))


def _note(kind: ObjectKind) -> str:
    match kind:
        case ObjectKind.RECIPE:
            return "builds made by it stay; the next build run compiles by the new one"
        case ObjectKind.PROFILE:
            return "devices are matched when they connect, builds are gated by the next build run"
        case ObjectKind.GROUP:
            return "rollouts that began keep their devices; the next one asks the group anew"
        case ObjectKind.POLICY:
            return "takes effect with the next rollout; devices keep what they were given"
        case _:
            assert_never(kind)


def _leaves(value: object, path: str) -> Iterator[tuple[str, str]]:
    """Every plain value with its path, as text."""
    if isinstance(value, Mapping) and value:
        for key in value:
            yield from _leaves(value[key], f"{path}.{key}")
    elif isinstance(value, list | tuple) and any(isinstance(one, Mapping) for one in value):
        for number, one in enumerate(value):
            yield from _leaves(one, f"{path}[{number}]")
    elif isinstance(value, list | tuple):
        yield path, "[" + ", ".join(_text(one) for one in value) + "]"
    else:
        yield path, _text(value)


def _text(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value)


def _view(row: ObjectRow) -> ObjectView:
    return ObjectView(row.kind, row.name, row.spec, row.shipped, row.updated_at, row.updated_by)

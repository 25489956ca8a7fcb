"""What a person has to know, and to overrule by name, before a version goes out.

Two things that a rollout would else do in silence: bring a version that applications cannot talk
to, and bring it without a rung that it names. Reads only; who asks decides what becomes of it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from controller.domain.compatibility import SideChange, signature_changes
from controller.domain.model import Signature
from controller.domain.rollout import RolloutSpec
from controller.domain.words import count_of
from controller.errors import RefusedError
from controller.services.builds import state_of
from controller.services.desired import Composer, Member
from controller.store.builds import SeenRow, list_seen

Json = Mapping[str, Any]
SIGNATURE, MISSING_RUNG = "signature", "missing-rung"


@dataclass(frozen=True, slots=True)
class VersionChange:
    """One half of the signature that differs from what so many devices run."""

    from_version: str
    devices: int
    change: SideChange
    text: str


@dataclass(frozen=True, slots=True)
class MissingRung:
    """A rung that the version names and no build of the profile fills."""

    profile: str
    rung: str
    devices: int
    reason: str
    command: str


@dataclass(slots=True)
class RungCauses:
    """Why rungs are missing; what became of the builds is read once a profile."""

    composer: Composer
    _seen: dict[str, list[SeenRow]] = field(default_factory=dict)

    def reason(self, member: Member, rung: str) -> str:
        """What became of every build of the variant for the device's profile."""
        profile = member.subject.profile
        mine = self._of(profile, rung)
        if not mine:
            return f"{rung} was not built for {profile}"
        passed = [one for one in mine if one.gate.verdict in ("PASSED", "OVERRIDDEN")]
        if passed:  # and yet not in the ladder: the device cannot run it
            runtimes = {one.build.runtime for one in passed if one.build is not None}
            return (
                f"{rung} needs the runtime {' or '.join(sorted(runtimes))},"
                " which the device does not report"
            )
        told = "; ".join(_told(one) for one in mine)
        return f"{rung} has no passed build for {profile}: {told}"

    def command(self, profile: str, rung: str) -> str:
        """What shows the cause, or makes the build that nobody asked for."""
        version = self.composer.version
        ref = f"{version.model}:{version.version}"
        if not self._of(profile, rung):
            return f"fleetctl build run {ref} --profile {profile}"
        return f"fleetctl build explain {ref} --profile {profile} --variant {rung}"

    def all_reasons(self, member: Member, rungs: Iterable[str]) -> str:
        """The reasons of several rungs as one."""
        return "; ".join(self.reason(member, rung) for rung in rungs)

    def _of(self, profile: str, rung: str) -> list[SeenRow]:
        if profile not in self._seen:
            version = self.composer.version
            self._seen[profile] = list_seen(
                self.composer.conn, self.composer.project, version.model, version.version, profile
            )
        return [one for one in self._seen[profile] if one.gate.key.variant == rung]


def find_missing(
    causes: RungCauses, lacking: Sequence[tuple[Member, tuple[str, ...]]]
) -> tuple[MissingRung, ...]:
    """The rungs that devices lack, by profile and reason."""
    counts = Counter(
        (member.subject.profile, rung, causes.reason(member, rung))
        for member, rungs in lacking
        for rung in rungs
    )
    return tuple(
        MissingRung(profile, rung, count, reason, causes.command(profile, rung))
        for (profile, rung, reason), count in sorted(counts.items())
    )


def find_changes(
    version: str, after: Json, running: Mapping[str, int], signatures: Mapping[str, Json]
) -> tuple[VersionChange, ...]:
    """What differs from each version that devices run. ``running``: devices by version."""
    new = Signature.from_json(after)
    return tuple(
        VersionChange(before, count, change, change.sentence(version, before, count))
        for before, count in sorted(running.items())
        for change in signature_changes(Signature.from_json(signatures[before]), new)
    )


def needed_overrides(spec: RolloutSpec, changes: Sequence[VersionChange]) -> tuple[str, ...]:
    """Overrides without which a start is refused."""
    return (SIGNATURE,) if changes and not spec.override_signature_reason else ()


def refuse_changes(spec: RolloutSpec, changes: Sequence[VersionChange]) -> None:
    """RefusedError where the signature changes and nobody said that applications are ready."""
    if needed_overrides(spec, changes):
        raise RefusedError(
            f"{spec.model}:{spec.version} takes or answers otherwise than what runs",
            *(one.text for one in changes),
            "once they are: --override signature --reason TEXT; it is recorded",
        )


def differs(previous: Json | None, composer: Composer) -> str:
    """Why a device that runs ``previous`` would answer otherwise; empty where it would not."""
    if previous is None:
        return ""
    after = Signature.from_json(composer.version.signature)
    changes = signature_changes(Signature.from_json(previous["signature"]), after)
    return "; ".join(
        one.sentence(composer.version.version, str(previous["version"]), 1) for one in changes
    )


def change_notes(spec: RolloutSpec, changes: Sequence[VersionChange]) -> list[str]:
    """For the plan: what changes, and what that takes."""
    if not changes:
        return []
    done = (
        f"it goes out all the same: {spec.override_signature_reason}"
        if spec.override_signature_reason
        else "start refuses this without --override signature --reason TEXT"
    )
    return [*(one.text for one in changes), done]


def missing_notes(spec: RolloutSpec, missing: Sequence[MissingRung]) -> list[str]:
    """For the plan: which rungs are missing, why, and what becomes of the devices."""
    without = bool(spec.override_missing_rung_reason)
    return [
        f"{one.reason}; {count_of(one.devices, 'device')}"
        + (
            f" {'gets' if one.devices == 1 else 'get'} it without that rung:"
            f" {spec.override_missing_rung_reason}"
            if without
            else f" left out; why: {one.command}; to go without: --override missing-rung"
            " --reason TEXT"
        )
        for one in missing
    ]


def _told(one: SeenRow) -> str:
    reason = one.gate.reason.replace("\n", "; ")
    return f"{one.gate.key.recipe} {state_of(one)}" + (f" ({reason})" if reason else "")

"""Takes in what devices measured. Only what was asked of that device counts, each build once.

Never raises for what a device says: its event is stored in any case, its figures only when they can
be figures.
"""

from collections.abc import Mapping

from controller.domain.tournament import Measured
from controller.errors import InvalidError
from controller.services.context import Ctx
from controller.store import events, tunings
from controller.store.session import Connection
from controller.store.tunings import MeasurementRow

MEASURED, WAITS = "build_measured", "tuning_waits"
KINDS = frozenset({MEASURED, WAITS})
_WHOLE = ("n", "rss_bytes")
_FIGURES = (
    "p50_ms", "p95_ms", "first_p50_ms", "temperature_start_c", "temperature_max_c", "energy_mj",
)  # fmt: skip
_TEXTS = ("energy_source", "os", "runtime", "runtime_version")
NOTE_MAX = 300


def take_word(
    conn: Connection, ctx: Ctx, device_id: str, kind: str, reason: str, told: Mapping[str, str]
) -> None:
    """One event of a device about its measuring."""
    asked = tunings.running_of_device(conn, device_id)
    found = next((one for one in asked if one[1].tuning_id == told.get("tuning")), None)
    if found is None:
        return
    project, row, share = found
    if kind == WAITS:
        tunings.set_share(conn, share, ctx.now, note=reason[:NOTE_MAX])
        return
    build_id = told.get("build", "")
    if build_id not in share.build_ids:
        return
    measured = _read(told, reason)
    tunings.put_measurement(
        conn,
        project,
        MeasurementRow(build_id, device_id, row.tuning_id, measured.to_json(), ctx.now),
    )
    left = [one for one in share.build_ids if one != build_id]
    tunings.set_share(conn, share, ctx.now, build_ids=left, note="")
    if not left and not any(one.build_ids for one in tunings.shares_of(conn, row.tuning_id)):
        tunings.end_tuning(conn, row.tuning_id, "DONE", ctx.now)
        events.append(
            conn,
            project,
            ctx.now,
            "tuning_finished",
            "controller",
            model=row.model,
            version=row.version,
            details={"tuning": row.tuning_id, "profile": row.profile},
        )


def _read(told: Mapping[str, str], reason: str) -> Measured:
    """The figures; where they cannot be any, a measurement that failed for that reason."""
    try:
        return Measured.from_json(
            {
                "reason": reason[:NOTE_MAX] if told.get("ok") != "true" else "",
                **{name: int(told[name]) for name in _WHOLE if told.get(name)},
                **{name: float(told[name]) for name in _FIGURES if told.get(name)},
                **{name: told.get(name, "")[:NOTE_MAX] for name in _TEXTS},
            }
        )
    except (InvalidError, ValueError) as error:
        return Measured(reason=f"its figures cannot be read: {error}"[:NOTE_MAX])

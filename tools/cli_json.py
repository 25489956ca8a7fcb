"""Writes docs/reference/cli-json.md from the messages that fleetctl prints. Runs no command."""

from google.protobuf.descriptor import Descriptor

from controller.cli import records
from lighterman.v1 import fleet_pb2

# Kind in the document -> message. A listing is `<kind>_list` with `items`.
KINDS: dict[str, str] = {
    "status": "GetStatusResponse",
    "model_version": "ModelVersion",
    "dataset": "Dataset",
    "profile": "Object",
    "policy": "Object",
    "group": "Object",
    "apply_result": "ApplyResult",
    "build": "Build",
    "build_report": "Build",
    "build_explanation": "BuildExplanation",
    "tuning": "Tuning",
    "engine": "SharedEngine",
    "device": "Device",
    "device_explanation": "DeviceExplanation",
    "token": "Token",
    "token_created": "CreateTokenResponse",
    "rollout": "Rollout",
    "rollout_plan": "RolloutPlan",
    "rollout_explanation": "RolloutExplanation",
    "event": "Event",
}

INTRODUCTION = f"""Every command of fleetctl takes `--output json` (or `yaml`: the same document).

- A document has `schema_version` (now {records.SCHEMA_VERSION}) and `kind`. A listing has the kind
  `…_list` and its objects in `items`.
- Within a schema version fields are added, never renamed or taken away.
- Times are ISO 8601 in UTC, durations (`_s`) seconds, sizes (`_bytes`, `length`) bytes, shares
  (`_pct`) 0 to 100. What is unknown is `null`, never 0.
- The items of a `build_report_list` have `on_front` beside what a Build has: whether no other
  usable build of the profile beats it in accuracy (or agreement), p95 and size.
- `fleetctl event tail` and `fleetctl admin telemetry tail` print one document a line.
"""


def cli_json_page(note: str) -> str:
    """The page as it should be."""
    parts = ["# JSON of fleetctl\n", note, INTRODUCTION, "## Documents\n"]
    parts += ["| kind | object |", "|---|---|"]
    parts += [f"| `{kind}` | {name} |" for kind, name in KINDS.items()]
    parts.append("\n## Objects\n")
    described: dict[str, Descriptor] = {}
    for name in KINDS.values():
        _collect(fleet_pb2.DESCRIPTOR.message_types_by_name[name], described)
    for name in sorted(described):
        parts += [f"### {name}\n", "| field | type |", "|---|---|"]
        parts += [f"| `{field}` | {kind} |" for field, kind in records.describe(described[name])]
        parts.append("")
    return "\n".join(parts)


def _collect(descriptor: Descriptor, found: dict[str, Descriptor]) -> None:
    if descriptor.name in found or descriptor.name == "Timestamp":
        return
    if not descriptor.GetOptions().map_entry:
        found[descriptor.name] = descriptor
    for field in descriptor.fields:
        if field.message_type is not None:
            _collect(field.message_type, found)

"""Wire messages as the documented JSON: snake_case, ISO times, a schema_version.

The shape follows the message descriptors, so that docs/reference/cli-json.md can be generated and
held against the code. Unset optional fields are null, enum values lose their prefix, ``*_json``
fields are parsed.
"""

import json
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from controller.cli.units import instant

SCHEMA_VERSION = 1

Record = dict[str, Any]


def document(kind: str, message: Message) -> Record:
    """One object as a JSON document."""
    return {"schema_version": SCHEMA_VERSION, "kind": kind, **record(message)}


def listing(kind: str, messages: list[Any]) -> Record:
    """Several objects as a JSON document."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": f"{kind}_list",
        "items": [record(message) for message in messages],
    }


def record(message: Message) -> Record:
    """A message as a plain dictionary with every documented field."""
    out: Record = {}
    for field in message.DESCRIPTOR.fields:
        name, value = _named(field, message)
        out[name] = value
    return out


def json_name(field: FieldDescriptor) -> str:
    """The documented name of a field."""
    return field.name.removesuffix("_json")


def _named(field: Any, message: Message) -> tuple[str, Any]:
    value = getattr(message, field.name)
    name = json_name(field)
    if field.name.endswith("_json"):
        return name, json.loads(value) if value else None
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return name, {key: value[key] for key in sorted(value)}
    if field.is_repeated:
        return name, [_scalar(field, item) for item in value]
    if field.has_presence and not message.HasField(field.name):
        return name, None
    return name, _scalar(field, value)


def _scalar(field: FieldDescriptor, value: Any) -> Any:
    if isinstance(value, Timestamp):
        when = instant(value)
        return when.isoformat().replace("+00:00", "Z") if when else None
    if isinstance(value, Message):
        return record(value)
    if field.enum_type is not None:
        return enum_name(field.enum_type, value)
    return value.hex() if isinstance(value, bytes) else value


def enum_name(enum: EnumDescriptor, number: int) -> str:
    """``ROLLOUT_PHASE_PAUSED`` as ``PAUSED``."""
    prefix = "".join("_" + c if c.isupper() else c.upper() for c in enum.name).lstrip("_") + "_"
    found = enum.values_by_number.get(number)
    return found.name.removeprefix(prefix) if found else f"UNKNOWN_{number}"


def describe(descriptor: Descriptor) -> list[tuple[str, str]]:
    """Documented fields of a message: name and type, in wire order."""
    return [(json_name(field), _type(field)) for field in descriptor.fields]


_NUMBERS = {
    FieldDescriptor.TYPE_DOUBLE: "number",
    FieldDescriptor.TYPE_FLOAT: "number",
    FieldDescriptor.TYPE_BOOL: "true or false",
    FieldDescriptor.TYPE_STRING: "text",
    FieldDescriptor.TYPE_BYTES: "hex text",
}


def _type(field: FieldDescriptor) -> str:
    if field.name.endswith("_json"):
        return "object"
    if field.message_type is not None:
        if field.message_type.GetOptions().map_entry:
            value = field.message_type.fields_by_name["value"]
            return f"object of {_type(value)} by name"
        base = "time" if field.message_type.name == "Timestamp" else field.message_type.name
        optional = " or null"
    elif field.enum_type is not None:
        base = " / ".join(enum_name(field.enum_type, v.number) for v in field.enum_type.values[1:])
        optional = ""
    else:
        base = _NUMBERS.get(field.type, "whole number")
        optional = " or null" if field.has_presence else ""
    return f"list of {base}" if field.is_repeated else base + optional

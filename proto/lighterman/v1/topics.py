"""MQTT topic names: part of the wire contract, used by both sides and by nobody else's guess.

Every device topic carries one ``Envelope`` (or, downwards, ``Doorbell`` and ``Ack``); feed topics
carry JSON for consumers. Nothing here publishes or subscribes.
"""

import re
from dataclasses import dataclass

PREFIX = "lighterman/v1"
DEVICE_ID = re.compile(r"[a-z0-9-]{1,63}")

UP_PRESENCE = "up/presence"
UP_REPORT = "up/report"
UP_TELEMETRY = "up/telemetry"
UP_EVENT = "up/event"
DOWN_DESIRED = "down/desired"
DOWN_ACK = "down/ack"

ALL_UP = f"{PREFIX}/device/+/up/#"
ALL_FEED = f"{PREFIX}/feed/#"


@dataclass(frozen=True, slots=True)
class DeviceTopic:
    """A parsed device topic: the device id and what stands behind it (``up/report`` ...)."""

    device_id: str
    suffix: str


def device(device_id: str, suffix: str) -> str:
    """Topic of one device, e.g. ``device("rpi5-1", UP_REPORT)``."""
    return f"{PREFIX}/device/{device_id}/{suffix}"


def device_down(device_id: str) -> str:
    """Filter with which a device subscribes to all that is meant for it."""
    return f"{PREFIX}/device/{device_id}/down/#"


def feed_health(project: str, device_id: str) -> str:
    """Retained JSON health document of a device, for consumers."""
    return f"{PREFIX}/feed/{project}/device/{device_id}/health"


def feed_rollout(project: str, rollout_id: str) -> str:
    """Retained JSON state of a rollout, for consumers."""
    return f"{PREFIX}/feed/{project}/rollout/{rollout_id}"


def parse_device_topic(topic: str) -> DeviceTopic | None:
    """The device and suffix of an upward topic, or None where it is not one of ours."""
    parts = topic.split("/")
    if len(parts) != 6 or "/".join(parts[:2]) != PREFIX or parts[2] != "device":
        return None
    device_id, suffix = parts[3], "/".join(parts[4:])
    if not DEVICE_ID.fullmatch(device_id):
        return None
    if suffix not in (UP_PRESENCE, UP_REPORT, UP_TELEMETRY, UP_EVENT):
        return None
    return DeviceTopic(device_id, suffix)

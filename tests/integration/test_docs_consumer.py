"""The consumer of docs/telemetry-mqtt.md runs as it stands there, against the real broker."""

import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from controller.app_database import issue_beside
from controller.services.telemetry import ModelStatus, Telemetry, health_document
from lighterman.v1 import device_pb2, fleet_pb2, topics
from tests.support.gateway import Mqtt, client_context, running
from tests.support.sources import ROOT
from tests.support.wait import wait_for

PAGE = (ROOT / "docs" / "telemetry-mqtt.md").read_text(encoding="utf-8")


def block(language: str, number: int = 0) -> str:
    return str(re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)[number])


def test_the_quoted_health_document_has_the_fields_of_today() -> None:
    quoted = json.loads(block("json"))
    telemetry = Telemetry(models=(ModelStatus("m", "1", "heavy", "COMMITTED", ""),))
    at = datetime(2026, 11, 24, tzinfo=UTC)
    given = health_document("d", "p", at, True, telemetry)
    assert set(given) == set(quoted)
    assert set(given["models"][0]) == set(quoted["models"][0])


def test_the_example_prints_what_a_device_says(tmp_path: Path) -> None:
    program = tmp_path / "consumer.py"
    program.write_text(block("python"), encoding="utf-8")
    with running(tmp_path / "home") as home:
        token = home.fleet().CreateToken(fleet_pb2.CreateTokenRequest(), timeout=10).token
        device = home.enrol("pi-1", token)
        hello = device_pb2.HelloRequest(protocol_min=1, protocol_max=1, boot_id="1-a")
        device.api().Hello(hello, timeout=10)
        issue_beside(home.controller.settings, "dashboard", "consumer", tmp_path / "dash")
        host, _, port = home.listening.mqtt.rpartition(":")
        said = tmp_path / "said"
        with said.open("w") as out:
            consumer = subprocess.Popen(
                [sys.executable, "-u", str(program), host, port, str(tmp_path / "dash")],
                stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip
        speaker = Mqtt(client_context(tmp_path, device.context), version=5)
        try:
            assert speaker.open(int(port))
            envelope = device_pb2.Envelope(protocol=1, boot_id="1-a")
            envelope.telemetry.models.add(
                model="digits", version="1.0.0", rung="heavy", phase="COMMITTED"
            )

            def told() -> bool:
                speaker.publish(
                    topics.device("pi-1", topics.UP_TELEMETRY), envelope.SerializeToString()
                )
                return "pi-1 digits 1.0.0 heavy" in said.read_text()

            wait_for(told, 30, "the example's line")
        finally:
            speaker.close()
            consumer.kill()
            consumer.wait()

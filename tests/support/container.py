"""A small Debian that systemd boots: made once by debootstrap, copied per run, entered by nsenter.

Shares the network of this machine, so that the controller is on loopback for both. Root only.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from examples.fleet.ports import free_port
from tests.support.sources import ROOT
from tests.support.wait import wait_for

SUITE = "bookworm"
CACHE = ROOT / ".cache" / "systemd"
TOOLS = ("debootstrap", "systemd-nspawn", "nsenter")
PACKAGES = "systemd,systemd-sysv,dbus,python3,python3-venv,ca-certificates"
UNIT = "lighterman-agent"
USER = "lighterman-agent"
AGENT = "/opt/lighterman/bin/lighterman-agent"
STATE = "/var/lib/lighterman-agent"


def missing() -> str:
    """Why no container can be booted here; empty when one can."""
    if os.geteuid() != 0:
        return "only root can boot a container"
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""


def run(*command: str, timeout_s: float = 300) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


def base() -> Path:
    """The bare system, made once per machine: some minutes."""
    target = CACHE / f"root-{SUITE}"
    if not target.exists():
        partial = CACHE / f"making-{os.getpid()}"
        CACHE.mkdir(parents=True, exist_ok=True)
        try:
            run(
                *("debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE),
                str(partial),
                timeout_s=1800,
            )
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target


def wheels(folder: Path) -> None:
    """The wheel of this checkout and all it needs there, by the index that pip is set up for."""
    pip = (sys.executable, "-m", "pip")
    run(*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), str(ROOT))
    (wheel,) = folder.glob("lighterman-*.whl")
    python = run("chroot", str(base()), "python3", "-c",
                 "import sys; print('%d.%d' % sys.version_info[:2])").strip()  # fmt: skip
    run(
        *(*pip, "download", "-q", "--only-binary=:all:", "--python-version", python),
        *("-c", str(ROOT / "constraints" / "constraints.txt"), "-d", str(folder)),
        f"{wheel}[agent,onnxruntime]",
    )


def documented_lines(wheel: str) -> list[str]:
    """What docs/install.md has root type on a device before systemd is asked for anything."""
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    _, _, rest = page.partition("\n    python3 -m venv /opt/lighterman\n")
    lines = ["python3 -m venv /opt/lighterman"]
    lines += [line.strip() for line in rest.partition("\n    systemctl ")[0].splitlines()]
    assert any(f"./{wheel}[agent,onnxruntime]" in line for line in lines), lines
    assert all(line.startswith(("python3 ", "/opt/lighterman/", "useradd ")) for line in lines)
    return lines


class Container:
    """One system with the agent installed as the documentation says."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.log = folder / "console.log"
        self.serves = f"127.0.0.1:{free_port()}"
        self._process: subprocess.Popen[bytes] | None = None
        run("cp", "-a", "--reflink=auto", str(base()), str(self.root))

    def install(self, folder: Path) -> None:
        """docs/install.md, typed inside; the wheels come from a folder instead of an index."""
        shutil.copytree(folder, self.root / "wheels")
        (wheel,) = folder.glob("lighterman-*.whl")
        script = [
            "set -e",
            "export PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels PIP_QUIET=1",
            "cd /wheels",
        ]
        script += documented_lines(wheel.name)
        run("chroot", str(self.root), "sh", "-c", "\n".join(script))
        (self.root / "etc/lighterman").mkdir(exist_ok=True)
        settings = f'serve.grpc = "{self.serves}"\nhang_s = 3\n'
        (self.root / "etc/lighterman/agent.toml").write_text(settings)
        # As the unit, only sooner: thirty seconds of waiting prove no more than five.
        self.drop_in("test", "[Service]\nWatchdogSec=5\nRestartSec=500ms\n")
        (self.root / "etc/hostname").write_text("lighterman-test\n")

    def drop_in(self, name: str, text: str) -> None:
        """Change the unit as an operator does."""
        folder = self.root / f"etc/systemd/system/{UNIT}.service.d"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.conf").write_text(text)

    # -- the machine -------------------------------------------------------------------------------

    def boot(self) -> None:
        """Power on; returns when systemd says that it runs."""
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                [
                    *("systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit"),
                    *(f"--machine=lighterman-{os.getpid()}", f"--directory={self.root}"),
                    "--console=passive",
                ],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        wait_for(self._runs, 60, "the container to boot")

    def _runs(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text(errors="replace")
        return self.ask("systemctl", "is-system-running").stdout.strip() in ("running", "degraded")

    def power_off(self) -> None:
        """Shut down in order."""
        assert self._process is not None
        self.ask("systemctl", "poweroff")
        self._process.wait(60)

    def destroy(self) -> None:
        """End it however it stands, and forget it."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(30)
        shutil.rmtree(self.root, ignore_errors=True)

    # -- inside ------------------------------------------------------------------------------------

    def ask(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run a command inside, as root."""
        assert self._process is not None
        pid = self._process.pid
        inside = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if not inside:
            return subprocess.CompletedProcess(command, 1, "", "it has not started")
        return subprocess.run(
            ["nsenter", "--target", inside[0], "--all", "--", *command],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def do(self, *command: str) -> str:
        """Run a command inside that must succeed."""
        done = self.ask(*command)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
        return done.stdout

    def unit(self, name: str) -> str:
        """One property of the service."""
        return self.do("systemctl", "show", UNIT, f"--property={name}", "--value").strip()

    def restarts(self) -> int:
        """How often systemd started it again by itself."""
        return int(self.unit("NRestarts"))

    def journal(self) -> str:
        """What it said since the machine was booted."""
        return self.do("journalctl", "--boot", "--no-pager", f"--unit={UNIT}")

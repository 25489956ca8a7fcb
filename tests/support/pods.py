"""Starts the pods of a rendered chart as processes here: command, environment, files, user.

A folder stands for the machine. Where a pod has a mount, its path is a link below the pod's own
folder, and the same path in arguments, variables and configuration is rewritten to that. As root
the process becomes the pod's user without any capability, in a mount namespace whose root is
read-only. Isolates nothing beyond that and pulls no image.
"""

import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tests.support.containerfile import image_environment, last, read_containerfile
from tests.support.sources import ROOT
from tests.support.wait import wait_for
from tools.check_helm import NAMESPACE, Manifest

IMAGE_ROOT = "/opt/lighterman/bin"
MOUNTS = re.compile(r"(?<![\w./-])(/var/lib/lighterman|/etc/lighterman|/tmp)(?=[/\"',\s]|$)")
PROBE_S = 90.0

# In a mount namespace of its own: the node's folder stays writable, all else becomes read-only.
# Python may be installed in a folder that is closed to other users (root's home): an empty one is
# laid over it that shows the needed paths alone. Then the command, as the pod's user.
PREPARE = """
node=$1 closed=$2; shift 2
mount --bind "$node" "$node"
paths= n=0
while [ "$1" != -- ]; do
    n=$((n + 1)); mkdir -p "$node/.path$n"; mount --bind "$1" "$node/.path$n"
    paths="$paths $1"; shift
done
shift
if [ -n "$closed" ]; then
    mount -t tmpfs -o mode=0755 closed "$closed"
    n=0
    for path in $paths; do
        n=$((n + 1)); mkdir -p "$path"; mount --move "$node/.path$n" "$path"
    done
    mount -o remount,ro "$closed"
fi
mount -o remount,bind,ro /
exec "$@"
"""


class PodEndedError(Exception):
    """A container ended by itself; with what it wrote."""


@dataclass(slots=True)
class Node:
    """One machine with volumes, and what the API server holds: the release and the Secrets."""

    root: Path
    release: list[Manifest]
    secrets: Mapping[str, Mapping[str, bytes]]
    pods: list["Pod"] = field(default_factory=list)

    def start(self, kind: str, name: str) -> "Pod":
        """Start the only container of a Deployment or Job."""
        workload = next(
            one for one in self.release if (one["kind"], one["metadata"]["name"]) == (kind, name)
        )
        pod = Pod(self, name, workload["spec"]["template"]["spec"])
        pod.start()
        self.pods.append(pod)
        return pod

    def claim(self, name: str) -> Path:
        """The folder of a PersistentVolumeClaim."""
        return self.root / "claims" / name


class Pod:
    """One pod with one container. `process` runs after `start`."""

    def __init__(self, node: Node, name: str, spec: dict[str, Any]) -> None:
        self.node = node
        self.name = name
        self.spec = spec
        (self.container,) = spec["containers"]
        security = spec["securityContext"]
        self.uid, self.gid = int(security["runAsUser"]), int(security["fsGroup"])
        self.folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=node.root))
        self.folder.chmod(0o755)
        self.fs = self.folder / "fs"
        self.log = self.folder / "log"
        self.process: subprocess.Popen[bytes]

    def start(self) -> None:
        """Mount what is to be mounted and start the container."""
        volumes = {one["name"]: one for one in self.spec["volumes"]}
        for mount in sorted(self.container["volumeMounts"], key=lambda one: str(one["mountPath"])):
            self._mount(mount, volumes[mount["name"]])
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.as_its_user([*self._entry(), *self.container["args"]]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=self._environment(),
                start_new_session=True,
            )

    def run(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """`kubectl exec`: a command of the image in this pod."""
        return subprocess.run(
            self.as_its_user(command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd="/",
            env=self._environment(),
            timeout=60,
            check=False,
        )

    def place(self, text: str) -> str:
        """`text` with the pod's paths as they are on this machine."""
        own = MOUNTS.sub(lambda found: f"{self.fs}{found[1]}", text)
        return re.sub(rf"[\w-]+\.{NAMESPACE}\.svc:", "127.0.0.1:", own)

    def probe(self, name: str) -> tuple[int, str]:
        """Status and body of a probe, asked as the kubelet asks: no verification. 0: no answer."""
        get = self.container[name]["httpGet"]
        assert get["scheme"] == "HTTPS"
        ports = {one["name"]: one["containerPort"] for one in self.container["ports"]}
        address = f"https://127.0.0.1:{ports[get['port']]}{get['path']}"
        timeout_s = float(self.container[name]["timeoutSeconds"])
        context = ssl._create_unverified_context()
        try:
            with urllib.request.urlopen(address, context=context, timeout=timeout_s) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def wait_ready(self) -> None:
        """Startup, then readiness, then liveness, as the kubelet goes on."""
        for name in ("startupProbe", "readinessProbe", "livenessProbe"):

            def answered(name: str = name) -> bool:
                if self.process.poll() is not None:
                    raise PodEndedError(f"{self.name} ended:\n{self.text()}")
                return self.probe(name)[0] == 200

            wait_for(answered, PROBE_S, f"{name} of {self.name}: {self.text()}")

    def end(self) -> tuple[int, float]:
        """SIGTERM, and the exit code within the grace period; also how long it took, in s."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        grace_s = float(self.spec["terminationGracePeriodSeconds"])
        try:
            code = self.process.wait(grace_s)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"{self.name} runs after {grace_s} s:\n{self.text()}") from error
        return code, time.monotonic() - began

    def text(self) -> str:
        """What the container wrote."""
        return self.log.read_text(errors="replace")

    def _entry(self) -> list[str]:
        """The command, or our image's entry point; without tini where this machine has none."""
        if "command" in self.container:
            return [str(word) for word in self.container["command"]]
        words = last(read_containerfile("Containerfile.controller"), "ENTRYPOINT").words()
        if shutil.which(words[0]) is None:
            words = words[words.index("--") + 1 :]
        return words

    def as_its_user(self, command: Sequence[str]) -> list[str]:
        """The command with the paths of this machine, and what makes it run as the pod's user."""
        placed = [self.place(word) for word in command]
        program = Path(sys.executable).parent / placed[0]
        if program.exists():
            placed[0] = str(program)
        if os.geteuid() != 0:
            return placed
        return as_user(self.node.root, self.uid, self.gid, placed)

    def _environment(self) -> dict[str, str]:
        """Exactly the image's and the container's variables."""
        found = image_environment(read_containerfile("Containerfile.controller"))
        found["PATH"] = found["PATH"].replace(IMAGE_ROOT, str(Path(sys.executable).parent))
        for one in self.container.get("env", []):
            if "valueFrom" in one:
                key = one["valueFrom"]["secretKeyRef"]
                found[one["name"]] = self.node.secrets[key["name"]][key["key"]].decode()
            else:
                found[one["name"]] = one["value"]
        placed = {name: self.place(value) for name, value in found.items() if name != "PATH"}
        return {**placed, "PATH": found["PATH"], "TMPDIR": f"{self.fs}/tmp"}

    def _mount(self, mount: dict[str, Any], volume: dict[str, Any]) -> None:
        source = self._volume(volume)
        target = self.fs / mount["mountPath"].lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_symlink():
            target.unlink()
        target.symlink_to(source / mount["subPath"] if "subPath" in mount else source)

    def _volume(self, volume: dict[str, Any]) -> Path:
        """The folder of a volume, owned and readable as Kubernetes makes it."""
        folder: Path
        if "persistentVolumeClaim" in volume:
            folder = self.node.claim(volume["persistentVolumeClaim"]["claimName"])
            if not folder.exists():
                folder.mkdir(parents=True)
                self._give(folder, 0o2770)
            return folder
        folder = self.folder / "volumes" / volume["name"]
        folder.mkdir(parents=True)
        if "emptyDir" in volume:
            self._give(folder, 0o2777)
            return folder
        files, mode = self._files(volume)
        for name, content in files.items():
            (folder / name).write_bytes(content)
            self._give(folder / name, mode)
        return folder

    def _files(self, volume: dict[str, Any]) -> tuple[dict[str, bytes], int]:
        if "secret" in volume:
            secret = volume["secret"]
            held = self.node.secrets[secret["secretName"]]
            items = secret.get("items") or [{"key": name, "path": name} for name in held]
            return {one["path"]: held[one["key"]] for one in items}, secret["defaultMode"]
        name = volume["configMap"]["name"]
        data = next(
            one["data"]
            for one in self.node.release
            if one["kind"] == "ConfigMap" and one["metadata"]["name"] == name
        )
        return {key: self.place(text).encode() for key, text in data.items()}, 0o644

    def _give(self, path: Path, mode: int) -> None:
        if os.geteuid() == 0:
            os.chown(path, 0, self.gid)
        elif path.is_file():
            mode |= 0o400
        path.chmod(mode)


@contextmanager
def running_node(
    release: list[Manifest], secrets: Mapping[str, Mapping[str, bytes]]
) -> Iterator[Node]:
    """A machine that is gone at the end, with all processes of its pods."""
    # Not pytest's tmp_path: its parents are closed to the pod's user.
    root = Path(tempfile.mkdtemp(prefix="lm-node-"))
    root.chmod(0o755)
    node = Node(root, release, secrets)
    try:
        yield node
    finally:
        for pod in node.pods:
            if pod.process.poll() is None:
                pod.process.kill()
            pod.process.wait(20)
        wait_for(lambda: not processes_in(root), 20, f"the end of all processes in {root}")
        shutil.rmtree(root, ignore_errors=True)


def processes_in(folder: Path) -> list[int]:
    """Processes that work in or for this folder, without zombies."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            command = (entry / "cmdline").read_text()
            where = os.readlink(entry / "cwd")
        except OSError:
            continue
        if state != "Z" and (str(folder) in command or where.startswith(str(folder))):
            found.append(int(entry.name))
    return found


def as_user(node: Path, uid: int, gid: int, command: Sequence[str]) -> list[str]:
    """`command` as root starts it for another user, with nothing writable but `node`."""
    needed = list(dict.fromkeys((os.path.realpath(sys.base_prefix), sys.prefix, str(ROOT))))
    above = [folder for path in needed for folder in reversed(Path(path).parents)]
    closed = next((f"{folder}" for folder in above if not folder.stat().st_mode & 0o001), "")
    shown = [path for path in needed if closed and Path(path).is_relative_to(closed)]
    return [
        *("unshare", "--mount", "sh", "-ec", PREPARE, "sh", str(node), closed, *shown, "--"),
        *("setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"),
        *(f"--reuid={uid}", f"--regid={gid}", f"--groups={gid}", *command),
    ]


@cache
def node_can_run() -> str:
    """Empty, or why pods cannot be started as processes here."""
    if os.geteuid() != 0:
        return ""
    if shutil.which("setpriv") is None or shutil.which("unshare") is None:
        return "setpriv and unshare (util-linux) are not installed"
    with tempfile.TemporaryDirectory(prefix="lm-node-") as folder:
        command = (sys.executable, "-c", "import controller")
        probe = subprocess.run(
            as_user(Path(folder), 10001, 10001, command),
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
        )
    return f"no pod's user here: {probe.stderr.strip()[-200:]}" if probe.returncode else ""

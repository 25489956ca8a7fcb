"""The chart: what renders is safe, fits itself and fits the controller; bad values are refused."""

import ast
import copy
import json
import re
import shutil
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools import check_helm
from tools.check_helm import CHART, ROOT, Manifest, render, value_sets

pytest.importorskip("helm_python", reason="helm-python-sdk is not installed")
pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")

SETS = sorted(value_sets())
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "privileged": False,
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "capabilities": {"drop": ["ALL"]},
}
# Volumes that the pod security standard "restricted" allows, of those that a chart may use.
VOLUMES = {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}


@pytest.fixture(params=SETS)
def release(request: pytest.FixtureRequest) -> list[Manifest]:
    return render(CHART, value_sets()[request.param])


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A copy of the chart to damage."""
    return Path(shutil.copytree(CHART, tmp_path / "lighterman"))


def pods(release: list[Manifest]) -> Iterator[tuple[str, dict[str, Any]]]:
    for one in release:
        if one["kind"] in ("Deployment", "Job"):
            yield one["metadata"]["name"], one["spec"]["template"]


def named(release: list[Manifest], kind: str, name: str | None = None) -> Manifest:
    return next(
        one for one in release if one["kind"] == kind and name in (None, one["metadata"]["name"])
    )


def security_problems(template: dict[str, Any]) -> list[str]:
    """What the pod security standard "restricted" would refuse, and what we ask for beyond it."""
    spec, found = template["spec"], []
    pod = spec.get("securityContext", {})
    if pod.get("seccompProfile") != {"type": "RuntimeDefault"}:
        found.append("seccomp")
    if not pod.get("runAsNonRoot") or pod.get("runAsUser", 0) == 0:
        found.append("root")
    if spec.get("automountServiceAccountToken") is not False:
        found.append("token")
    if any(spec.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")):
        found.append("host")
    for container in (*spec["containers"], *spec.get("initContainers", [])):
        if container.get("securityContext") != RESTRICTED:
            found.append(f"container {container['name']}")
        if "memory" not in container.get("resources", {}).get("limits", {}):
            found.append(f"memory of {container['name']}")
        if any("hostPort" in port for port in container.get("ports", [])):
            found.append("host port")
    for volume in spec.get("volumes", []):
        if not (set(volume) - {"name"}) <= VOLUMES:
            found.append(f"volume {volume['name']}")
    return found


def test_there_are_at_least_four_value_sets_and_they_are_good() -> None:
    assert len(SETS) >= 4
    assert check_helm.problems() == []


def test_every_pod_is_restricted(release: list[Manifest]) -> None:
    assert {name: security_problems(one) for name, one in pods(release)} == {
        name: [] for name, _ in pods(release)
    }


def test_what_is_not_restricted_is_seen() -> None:
    """Negative control of the test above."""
    _, template = next(pods(render(CHART, {})))
    for path, value, said in (
        (("securityContext", "seccompProfile"), {"type": "Unconfined"}, "seccomp"),
        (("securityContext", "runAsUser"), 0, "root"),
        (("automountServiceAccountToken",), True, "token"),
        (("hostNetwork",), True, "host"),
    ):
        worse = copy.deepcopy(template)
        inner = worse["spec"]
        for name in path[:-1]:
            inner = inner[name]
        inner[path[-1]] = value
        assert security_problems(worse) == [said]
    worse = copy.deepcopy(template)
    worse["spec"]["containers"][0]["securityContext"]["readOnlyRootFilesystem"] = False
    worse["spec"]["volumes"].append({"name": "node", "hostPath": {"path": "/"}})
    assert security_problems(worse) == ["container controller", "volume node"]


def test_everything_writable_is_a_volume_and_every_mount_has_one(release: list[Manifest]) -> None:
    for _, template in pods(release):
        volumes = {one["name"]: one for one in template["spec"]["volumes"]}
        for container in template["spec"]["containers"]:
            mounted = {one["name"] for one in container["volumeMounts"]}
            assert mounted == set(volumes)
            for mount in container["volumeMounts"]:
                volume = volumes[mount["name"]]
                writable = "emptyDir" in volume or "persistentVolumeClaim" in volume
                assert mount.get("readOnly", False) is not writable, mount


def test_no_secret_is_made_and_no_password_is_written(release: list[Manifest]) -> None:
    assert not [one for one in release if one["kind"] == "Secret"]
    for _, template in pods(release):
        for container in template["spec"]["containers"]:
            for one in container.get("env", []):
                assert "valueFrom" in one or one["name"] == "HOME", one
    assert "postgresql://" not in yaml.safe_dump_all(release)


def test_services_policies_and_budgets_find_their_pods(release: list[Manifest]) -> None:
    labels = {name: template["metadata"]["labels"] for name, template in pods(release)}
    for one in release:
        spec = one.get("spec", {})
        selector = {
            "Service": spec.get("selector"),
            "NetworkPolicy": spec.get("podSelector", {}).get("matchLabels"),
            "PodDisruptionBudget": spec.get("selector", {}).get("matchLabels"),
            "Deployment": spec.get("selector", {}).get("matchLabels"),
        }.get(one["kind"])
        if selector is None:
            continue
        found = [name for name, has in labels.items() if selector.items() <= has.items()]
        assert len(found) == 1, (one["kind"], one["metadata"]["name"], found)
    for one in release:
        if one["kind"] == "ServiceMonitor":
            wanted = one["spec"]["selector"]["matchLabels"].items()
            services = [
                other["metadata"]["name"]
                for other in release
                if other["kind"] == "Service" and wanted <= other["metadata"]["labels"].items()
            ]
            assert len(services) == 1


def test_services_and_policies_name_ports_that_the_pod_has(release: list[Manifest]) -> None:
    controller = named(release, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    ports = {one["name"]: one["containerPort"] for one in controller["ports"]}
    served: dict[str, int] = {}
    for one in release:
        if one["kind"] == "Service":
            served |= {port["targetPort"]: port["port"] for port in one["spec"]["ports"]}
        if one["kind"] == "NetworkPolicy":
            rules = one["spec"].get("ingress", [])
            assert {port["port"] for rule in rules for port in rule["ports"]} <= set(ports)
    assert served == ports
    probes = {controller[name]["httpGet"]["port"] for name in controller if "Probe" in name}
    assert probes == {"web"}


def test_the_configuration_is_what_the_controller_reads(
    release: list[Manifest], tmp_path: Path
) -> None:
    from controller.settings import load_settings

    file = tmp_path / "controller.toml"
    file.write_text(named(release, "ConfigMap")["data"]["controller.toml"])
    settings = load_settings(file, {}, {})
    controller = named(release, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    mounts = {one["mountPath"]: one["name"] for one in controller["volumeMounts"]}
    assert mounts[str(settings.data_dir)] == "data"
    assert settings.listen_host == "0.0.0.0"
    service = next(one for one in release if one["kind"] == "Service")
    assert f"{service['metadata']['name']}.edge.svc" in settings.names()
    ports = {one["name"]: one["containerPort"] for one in controller["ports"]}
    assert (settings.listen_grpc, settings.listen_enroll) == (ports["grpc"], ports["enroll"])
    assert ("mqtt" in ports) is not bool(settings.broker_address)
    if settings.trust_dir:
        assert mounts[settings.trust_dir] == "trust"
    if settings.metrics_token_file:
        assert mounts[str(Path(settings.metrics_token_file).parent)] == "metrics"


def test_every_command_line_can_be_read(release: list[Manifest]) -> None:
    from controller.__main__ import build_parser

    commands = [
        build_parser().parse_args(container["args"]).command
        for _, template in pods(release)
        for container in template["spec"]["containers"]
    ]
    assert "serve" in commands


def test_the_migration_job_is_a_hook_that_needs_nothing_of_the_release() -> None:
    job = named(render(CHART, value_sets()["postgres-external-broker"]), "Job")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    spec = job["spec"]["template"]["spec"]
    assert spec["serviceAccountName"] == "default"
    assert [set(volume) for volume in spec["volumes"]] == [{"name", "emptyDir"}]
    assert [one["kind"] for one in render(CHART, {}) if one["kind"] == "Job"] == []


def test_the_migration_runs_where_the_controller_may_and_reaches_the_database() -> None:
    """On nodes of the image's kind only, and in a namespace that denies what no policy opens."""
    placed = {
        "nodeSelector": {"kubernetes.io/arch": "amd64"},
        "tolerations": [{"key": "fleet", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
    }
    values = {**value_sets()["hardened"], **placed}
    release = render(CHART, values)
    for kind in ("Job", "Deployment"):
        spec = named(release, kind)["spec"]["template"]["spec"]
        assert {name: spec[name] for name in placed} == placed
    policy = named(release, "NetworkPolicy", "fleet-migrate")
    job = named(release, "Job", "fleet-migrate")
    weights = [int(one["metadata"]["annotations"]["helm.sh/hook-weight"]) for one in (policy, job)]
    assert weights[0] < weights[1]
    assert policy["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    ports = {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]}
    assert ports == {53, 5432}
    open_ = render(CHART, {**values, "networkPolicy": {"enabled": False}})
    assert "NetworkPolicy" not in {one["kind"] for one in open_}


def test_one_pod_at_a_time_owns_the_volume_and_the_volume_outlives_the_release() -> None:
    release = render(CHART, {})
    spec = named(release, "Deployment")["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    claim = named(release, "PersistentVolumeClaim")
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def test_another_configuration_starts_another_pod() -> None:
    def stamp(values: dict[str, Any]) -> str:
        template = named(render(CHART, values), "Deployment")["spec"]["template"]
        return str(template["metadata"]["annotations"]["checksum/config"])

    assert stamp({}) == stamp({"replicas": 1})
    assert stamp({}) != stamp({"settings": {"poll_s": 60}})


def test_numbers_and_texts_survive_the_way_through_helm(tmp_path: Path) -> None:
    settings = {
        "job_memory_bytes": 6442450944,
        "sample_flush_s": 0.25,
        "device_certificate_s": 2592000,
        "log_level": "debug",
    }
    broker = {"address": "b.example:1", "reload": "sh -c 'a <b> & \"c\" \\ é'"}
    release = render(
        CHART, {"settings": settings, "broker": {"mode": "external", "external": broker}}
    )
    read = tomllib.loads(named(release, "ConfigMap")["data"]["controller.toml"])
    assert {name: read[name] for name in settings} == settings
    assert read["broker"]["reload"] == broker["reload"]


def test_alert_rules_and_dashboard_are_those_of_the_controller() -> None:
    release = render(CHART, value_sets()["postgres-external-broker"])
    shipped = ROOT / "controller" / "shipped"
    rules = yaml.safe_load((shipped / "prometheus" / "lighterman.rules.yml").read_text())
    assert named(release, "PrometheusRule")["spec"] == rules
    board = named(release, "ConfigMap", "fleet-lighterman-dashboard")
    text = (shipped / "grafana" / "lighterman.json").read_text()
    assert board["data"] == {"lighterman.json": text}
    assert {one["kind"] for one in render(CHART, {})}.isdisjoint(
        {"PrometheusRule", "ServiceMonitor"}
    )


def test_a_package_holds_all_it_needs(tmp_path: Path) -> None:
    from helm_python import Chart
    from helm_python.chart import package

    archive = package(CHART, destination=tmp_path)
    values = value_sets()["postgres-external-broker"]
    with Chart.load(archive) as packed, Chart.load(CHART) as chart:
        assert packed.render(values, name="a") == chart.render(values, name="a")
        assert not [one["name"] for one in packed.files if one["name"].startswith("ci/")]
        assert packed.schema == chart.schema


def test_notes_tell_what_is_missing() -> None:
    from helm_python import Chart

    with Chart.load(CHART) as chart:
        told = {
            name: next(
                text
                for path, text in chart.render(values, name="fleet", namespace="edge").items()
                if path.endswith("NOTES.txt")
            )
            for name, values in value_sets().items()
        }
    assert "Set `advertise`" in told["embedded"]
    assert "fleet.example:7443" in told["postgres-external-broker"]
    assert "/var/lib/lighterman/broker" in told["postgres-external-broker"]
    assert "--role worker" in told["workers"]
    assert "Back up" not in told["hardened"]


def test_the_guide_names_values_that_exist() -> None:
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    texts = [(ROOT / "docs" / "install-helm.md").read_text(), (CHART / "README.md").read_text()]
    top = "|".join(name for name in defaults)
    named = {
        found
        for text in texts
        for found in re.findall(rf"(?:--set '?|`)((?:{top})(?:\.\w+)*)(?=[=`:])", text)
    }
    assert len(named) > 20
    for name in sorted(named):
        inner = defaults
        for part in name.split("."):
            assert part in inner, name
            inner = inner[part]


def shown_values(text: str) -> Iterator[dict[str, Any]]:
    """Every piece of a values file that a page shows: indented, or between backticks."""
    top = set(yaml.safe_load((CHART / "values.yaml").read_text()))
    blocks = re.findall(r"(?:^ {4}.*\n)+", text, re.MULTILINE)
    inner = [found for block in blocks for found in re.findall(r"<<EOF\n(.*?) +EOF", block, re.S)]
    for one in (*blocks, *inner, *re.findall(r"`([a-z]+: \{[^`]*\})`", text)):
        try:
            read = yaml.safe_load(textwrap.dedent(one))
        except yaml.YAMLError:
            continue
        if isinstance(read, dict) and set(read) <= top:
            yield read


def test_the_values_that_the_guide_shows_are_taken_and_make_what_it_names() -> None:
    text = (ROOT / "docs" / "install-helm.md").read_text()
    shown = list(shown_values(text))
    assert {key for one in shown for key in one} >= {
        *("advertise", "broker", "database", "image", "service", "trust", "workers"),
    }
    names = {
        (one["kind"], one["metadata"]["name"]) for values in shown for one in render(CHART, values)
    }
    kinds = {"deploy": "Deployment", "svc": "Service", "pvc": "PersistentVolumeClaim"}
    asked = re.findall(r"\b(deploy|svc|pvc)[/ ](fleet[\w-]*)", text)
    assert len(asked) >= 5
    assert {(kinds[kind], name) for kind, name in asked} <= names
    assert list(shown_values("    trust: {secret: x}\n")) == [{"trust": {"secret": "x"}}]
    with pytest.raises(Exception, match="secret"):
        render(CHART, {"trust": {"secret": "x"}})


# Value sets whose pods no test starts, each with the reason. Keep it empty.
NEVER_STARTED: dict[str, str] = {}


def started(source: str) -> set[str]:
    """The value sets whose pods the tests of a module start."""
    tests = [
        one
        for one in ast.parse(source).body
        if isinstance(one, ast.FunctionDef) and one.name.startswith("test_")
    ]
    return {
        call.args[0].value
        for test in tests
        if "wait_ready" in ast.unparse(test)
        for call in ast.walk(test)
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "values_here"
        if isinstance(call.args[0], ast.Constant) and isinstance(call.args[0].value, str)
    }


def test_the_pods_of_every_value_set_are_started() -> None:
    source = (ROOT / "tests" / "integration" / "test_helm_pods.py").read_text()
    assert started(source) == set(SETS) - set(NEVER_STARTED)
    assert started("def test_a():\n    render(values_here('embedded'))") == set()


# ---- negative controls of the check itself ----------------------------------------------------


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("templates/controller.yaml", "revisionHistoryLimit", "revisionHistory", "revisionHistory"),
        ("templates/service.yaml", "protocol: TCP", "protocol: 7", "protocol"),
        ("templates/pvc.yaml", "{{- end }}", "{{- end", "does not render"),
        ("templates/configmap.yaml", "kind: ConfigMap", "kind: Config", "find schema for kind"),
        ("templates/workers.yaml", "kind: PodDisruptionBudget", "kind: Budget", "schema for kind"),
        ("Chart.yaml", 'appVersion: "0.1.0"', 'appVersion: "9.9"', "appVersion is 9.9"),
        ("Chart.yaml", "version: 0.1.0", "version: one", "version"),
        ("values.schema.json", '"poll_s"', '"pole_s"', "settings.pole_s is no setting"),
        ("values.schema.json", '"maximum": 1,', '"maximum": 9,', "two controllers on one volume"),
        ("files/lighterman.json", "{", "{ ", "files/lighterman.json is not controller/"),
        ("values.yaml", "replicas: 1", "replicas: one", "replicas"),
    ],
)
def test_the_check_finds(broken: Path, file: str, old: str, new: str, said: str) -> None:
    replace(broken / file, old, new)
    found = check_helm.problems(broken)
    assert any(said in line for line in found), found


def test_an_open_schema_is_found(broken: Path) -> None:
    file = broken / "values.schema.json"
    schema = json.loads(file.read_text())
    del schema["additionalProperties"]
    file.write_text(json.dumps(schema))
    assert any("an unknown key:" in line for line in check_helm.problems(broken))


def test_every_object_of_the_schema_is_closed() -> None:
    """Maps of free names say what their values are; all others name every key."""

    def walk(schema: Any, path: str) -> Iterator[str]:
        if isinstance(schema, dict):
            if "properties" in schema and path.rpartition(".")[2] not in ("if", "then"):
                conditional = ".if." in path or ".then." in path
                if not conditional and schema.get("additionalProperties") is not False:
                    yield path
            for name, inner in schema.items():
                yield from walk(inner, f"{path}.{name}")

    assert list(walk(json.loads((CHART / "values.schema.json").read_text()), "")) == []


def test_the_defaults_name_every_value() -> None:
    """What the schema takes stands in values.yaml, except settings, which have defaults."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())

    def missing(schema: dict[str, Any], values: Any, path: str) -> Iterator[str]:
        for name, inner in schema.get("properties", {}).items():
            if name not in values:
                yield path + name
            elif inner.get("type") == "object" and name != "settings":
                yield from missing(inner, values[name], f"{path}{name}.")

    assert list(missing(schema, defaults, "")) == ["global"]

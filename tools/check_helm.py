"""Holds the chart: lint, rendering of every value set, Kubernetes schemas, refusals.

Talks to no cluster. Helm's own code does the work, in this process.
"""

import argparse
import functools
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "helm" / "lighterman"
VALUE_SETS = "ci/*-values.yaml"
REFUSED = "ci/refused.yaml"
EXAMPLES = ROOT / "examples" / "kubernetes"
RELEASE, NAMESPACE = "fleet", "edge"
# The oldest that the chart admits, one between, and the newest that there are schemas for.
KUBERNETES = ("1.25.0", "1.31.0", "1.37.0")
WARNING = 2
# Objects of operators that a cluster may have; Kubernetes itself publishes no schema of them.
FOREIGN = frozenset({"monitoring.coreos.com/v1"})

# Helm reads no file outside a chart: these are copies.
COPIES = {
    "files/lighterman.rules.yml": "controller/shipped/prometheus/lighterman.rules.yml",
    "files/lighterman.json": "controller/shipped/grafana/lighterman.json",
}

Manifest = dict[str, Any]


def value_sets(chart: Path = CHART) -> dict[str, dict[str, Any]]:
    """Name to values, for each file of the chart's ci folder."""
    return {
        path.name.removesuffix("-values.yaml"): yaml.safe_load(path.read_text()) or {}
        for path in sorted(chart.glob(VALUE_SETS))
    }


def render(chart: Path, values: dict[str, Any]) -> list[Manifest]:
    """The objects of a release, as Helm would send them. Raises HelmError."""
    from helm_python import Chart

    with Chart.load(chart) as loaded:
        texts = loaded.render(values, name=RELEASE, namespace=NAMESPACE)
    found = []
    for path, text in texts.items():
        if not path.endswith("NOTES.txt"):
            found += [one for one in yaml.safe_load_all(text) if one]
    return found


def lint_problems(chart: Path, values: dict[str, Any]) -> Iterator[str]:
    """What Helm's linter says, warnings too."""
    from helm_python import lint

    report = lint(chart, values, strict=True)
    for message in report["messages"]:
        if message["severity"] >= WARNING:
            yield f"lint {message['path']}: {message['error']}"
    yield from (f"lint: {error}" for error in report["errors"])


def schema_problems(manifests: list[Manifest]) -> Iterator[str]:
    """What the strict schemas of each Kubernetes version refuse."""
    from kubernetes_validate import utils

    # It reads the definitions, some megabytes, anew for every object.
    if not hasattr(utils.schema_contents, "cache_info"):
        utils.schema_contents = functools.cache(utils.schema_contents)
    for manifest in manifests:
        if manifest["apiVersion"] in FOREIGN:
            continue
        what = f"{manifest['kind']} {manifest['metadata']['name']}"
        for version in KUBERNETES:
            try:
                utils.validate(manifest, version, strict=True)
            except utils.ValidationError as error:
                path = ".".join(str(part) for part in error.path)
                yield f"{what}, Kubernetes {version}: {path}: {error.message}"
            except utils.SchemaNotFoundError as error:
                yield f"{what}: {error.message}"


def refusal_problems(chart: Path) -> Iterator[str]:
    """Values that are taken though they must not be, or refused without naming the key."""
    from helm_python import Chart, HelmValuesError

    with Chart.load(chart) as loaded:
        for case in yaml.safe_load((chart / REFUSED).read_text()):
            values = loaded.merge_values(case["values"])
            try:
                loaded.validate_schema(values)
            except HelmValuesError as error:
                if case["told"] not in str(error):
                    yield f"{case['because']}: the refusal does not name {case['told']}: {error}"
            else:
                yield f"{case['because']}: {case['values']} is taken"


def settings_problems(chart: Path) -> Iterator[str]:
    """Settings of the controller that the schema lacks, or that do not exist."""
    from controller.settings import SETTINGS

    derived = {"data_dir", "database", "trust_dir", "advertise", "workers", "metrics_token_file"}
    dotted = ("listen.", "broker.")
    wanted = {
        row.name for row in SETTINGS if row.name not in derived and not row.name.startswith(dotted)
    }
    schema = json.loads((chart / "values.schema.json").read_text())
    have = set(setting_names(schema["properties"]["settings"]))
    yield from (f"values.schema.json: settings.{name} is missing" for name in wanted - have)
    yield from (f"values.schema.json: settings.{name} is no setting" for name in have - wanted)


def setting_names(schema: dict[str, Any], before: str = "") -> Iterator[str]:
    """Dotted names of what a schema of settings takes."""
    for name, inner in schema["properties"].items():
        if inner.get("type") == "object":
            yield from setting_names(inner, f"{before}{name}.")
        else:
            yield before + name


def version_problems(chart: Path) -> Iterator[str]:
    """A chart that would take another image than this source's."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    told = yaml.safe_load((chart / "Chart.yaml").read_text())["appVersion"]
    if told != project["version"]:
        yield f"Chart.yaml: appVersion is {told}, pyproject.toml says {project['version']}"


def copy_problems(chart: Path) -> Iterator[str]:
    """Copies that are not what they are copies of."""
    for name, source in COPIES.items():
        copy = chart / name
        if not copy.exists() or copy.read_bytes() != (ROOT / source).read_bytes():
            yield f"{name} is not {source}; run make docs"


def problems(chart: Path = CHART) -> list[str]:
    """Everything that is wrong with the chart, one line each."""
    from helm_python import HelmError

    found = [*copy_problems(chart), *settings_problems(chart), *version_problems(chart)]
    try:
        found += refusal_problems(chart)
    except HelmError as error:
        return [*found, f"the chart cannot be read: {error}"]
    for name, values in value_sets(chart).items():
        try:
            said = [*lint_problems(chart, values), *schema_problems(render(chart, values))]
        except (HelmError, yaml.YAMLError) as error:
            said = [f"does not render: {error}"]
        found += [f"{name}: {line}" for line in said]
    for path in sorted(EXAMPLES.glob("*.yaml")):
        manifests = list(yaml.safe_load_all(path.read_text()))
        found += [f"{path.relative_to(ROOT)}: {line}" for line in schema_problems(manifests)]
    return found


def main() -> int:
    """Check, or copy with `--write`; 1 with one line for each problem."""
    parser = argparse.ArgumentParser(prog="tools.check_helm", description=__doc__)
    parser.add_argument("--write", action="store_true", help="copy what the chart has copies of")
    if parser.parse_args().write:
        for name, source in COPIES.items():
            (CHART / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(ROOT / source, CHART / name)
        return 0
    found = problems()
    if found:
        print(f"helm/lighterman: {len(found)} problems", *found, sep="\n")
        return 1
    cases = len(yaml.safe_load((CHART / REFUSED).read_text()))
    versions = ", ".join(version.rpartition(".")[0] for version in KUBERNETES)
    print(f"{len(value_sets())} value sets, Kubernetes {versions}, {cases} refusals")
    return 0


if __name__ == "__main__":
    sys.exit(main())

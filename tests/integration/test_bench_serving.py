"""Who asks in `bench.serving`: counts what was answered, and what was not as failed."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from bench.serving import __main__ as bench
from bench.serving import asker, asker_grpc
from tests.support.http_api import HttpApi
from tests.support.serving import scaled


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpApi]:
    made = HttpApi(tmp_path_factory.mktemp("bench"))
    made.bench.serve("1.0.0", {"heavy": scaled(2.0)})
    yield made
    made.close()


def asker_of(api: HttpApi, road: str, model: str, in_flight: int) -> Any:
    if road == "http":
        return asker.Asker(api.address, model, "tiny", in_flight)
    return asker_grpc.Asker(api.grpc_address, model, road, in_flight)


@pytest.mark.parametrize("road", ["http", "ModelInfer", "ModelStreamInfer"])
def test_what_is_counted_was_answered(api: HttpApi, road: str) -> None:
    before = api.grpc.requests().get(("photo", "ok"), 0)
    with closing(asker_of(api, road, "photo", 8)) as asking:
        found = [asking.work(0.1) for _ in range(2)]
    done = sum(one["done"] for one in found)
    assert [one["failed"] for one in found] == [0, 0]
    assert done >= 16
    # All that were begun were waited for: the agent counts before it answers.
    assert api.grpc.requests()["photo", "ok"] - before == done
    assert 0 < found[0]["p50_ms"] <= found[0]["p99_ms"]


@pytest.mark.parametrize("road", ["http", "ModelInfer", "ModelStreamInfer"])
def test_what_is_refused_counts_as_failed(api: HttpApi, road: str) -> None:
    with closing(asker_of(api, road, "other", 4)) as asking:
        found = asking.work(0.05)
    assert found["done"] == 0
    assert found["failed"] >= 4


def a_round(share: float, ratio: float, cpu_ratio: float) -> dict[str, float]:
    names = ("served_per_s", "raw_per_s", "cpu_ms", "raw_cpu_ms", "p99_ms", "failed")
    return {
        "share": share, "ratio_http": ratio, "cpu_ratio_http": cpu_ratio,
        **{f"{name}_http": 0.0 for name in names},
    }  # fmt: skip


@pytest.mark.parametrize(("quiet", "ratio"), [(3, 0.96), (2, 0.85)])
def test_rates_count_only_where_the_machine_was_quiet(quiet: int, ratio: float) -> None:
    rounds = [a_round(0.99, 0.96, 0.85)] * quiet + [a_round(0.3, 3.0, 0.85)] * 4
    figures = bench._ratio(rounds)
    assert figures["lite0_http_ratio"] == ratio
    assert (figures["lite0_http_ratio_by"] == "rate") is (quiet == 3)

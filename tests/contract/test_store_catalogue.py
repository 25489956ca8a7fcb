"""Models, datasets, objects, artifacts, builds, gates and jobs: all comes back as it was."""

from dataclasses import replace

from controller.store import objects
from controller.store.artifacts import artifact_length, record_artifact
from controller.store.builds import (
    GateKey,
    add_build,
    builds_of_job,
    enrolled_profiles,
    find_build,
    find_gate,
    gates_of_build,
    list_seen,
    new_build_id,
    passed_builds,
    put_gate,
    queue_builds,
    set_compiled,
    set_failed,
    set_job_state,
)
from controller.store.datasets import (
    DatasetRow,
    find_dataset,
    find_dataset_content,
    list_datasets,
    put_dataset,
)
from controller.store.devices import put_capabilities, reports_runtime, update_device
from controller.store.jobs import (
    add_job,
    end_job,
    find_job,
    lease_job,
    new_job_id,
    oldest_queued,
    renew_lease,
    running_jobs,
)
from controller.store.models import (
    count_running,
    find_version,
    list_model_names,
    list_versions,
)
from controller.store.objects import ObjectRow
from controller.store.session import Connection, Store
from tests.support.stores import (
    NOW,
    PROJECT,
    after,
    build_row,
    digest,
    gate_row,
    seed_device,
    seed_version,
)


def test_artifacts_are_recorded_once(store: Store) -> None:
    with store.write() as conn:
        assert record_artifact(conn, PROJECT, digest("a"), 5, NOW)
        assert not record_artifact(conn, PROJECT, digest("a"), 5, NOW)
        assert artifact_length(conn, PROJECT, digest("a")) == 5
        assert artifact_length(conn, "other", digest("a")) is None


def test_versions_come_back_newest_first_and_whole(store: Store) -> None:
    with store.write() as conn:
        first = seed_version(conn, "digits", "1.0.0", NOW)
        second = seed_version(conn, "digits", "1.1.0", after(5))
        other = seed_version(conn, "photo", "0.1", after(1))
    with store.read() as conn:
        assert list_versions(conn, PROJECT) == [second, first, other]
        assert find_version(conn, PROJECT, "digits", "1.0.0") == first
        assert find_version(conn, PROJECT, "digits", "9") is None
        assert find_version(conn, "other", "digits", "1.0.0") is None
        assert list_model_names(conn, PROJECT) == ["digits", "photo"]


def test_running_devices_are_counted_from_their_telemetry(store: Store) -> None:
    runs = {"models": [{"model": "digits", "version": "1.0.0"}]}
    with store.write() as conn:
        for name, state in (("a", "ACTIVE"), ("b", "ACTIVE"), ("c", "RETIRED"), ("d", "ACTIVE")):
            seed_device(conn, name, state)
            if name != "d":
                update_device(conn, name, status=runs)
        assert count_running(conn, PROJECT) == {("digits", "1.0.0"): 2}


def _dataset(name: str, content: str, at: float) -> DatasetRow:
    halves = digest(f"{content}-c"), digest(f"{content}-e")
    return DatasetRow(name, digest(content), *halves, {"rows": 10}, after(at), "ana")


def _put(conn: Connection, row: DatasetRow) -> None:
    for one in (row.calibration_digest, row.evaluation_digest):
        record_artifact(conn, PROJECT, one, 1, NOW)
    put_dataset(conn, PROJECT, row)


def test_the_newest_content_of_a_dataset_counts(store: Store) -> None:
    old, new, back = _dataset("d", "old", 0), _dataset("d", "new", 1), _dataset("d", "old", 2)
    with store.write() as conn:
        _put(conn, old)
        _put(conn, _dataset("e", "else", 0))
        assert find_dataset(conn, PROJECT, "d") == old
        _put(conn, new)
        assert find_dataset(conn, PROJECT, "d") == new
        assert [row.name for row in list_datasets(conn, PROJECT)] == ["d", "e"]
        _put(conn, back)
        assert find_dataset(conn, PROJECT, "d") == back
        assert find_dataset_content(conn, PROJECT, "d", new.digest) == new
        assert find_dataset_content(conn, PROJECT, "d", digest("none")) is None
        assert find_dataset(conn, PROJECT, "f") is None


def test_objects_of_every_kind(store: Store) -> None:
    with store.write() as conn:
        for kind in objects.TABLES:
            row = ObjectRow(kind, "b", {"x": [1, {"y": None}]}, True, NOW, "ana")
            objects.put_object(conn, PROJECT, row)
            objects.put_object(conn, PROJECT, replace(row, name="a"))
            changed = replace(row, spec={"x": 2.5}, shipped=False, updated_by="bo")
            objects.put_object(conn, PROJECT, changed)
            assert objects.find_object(conn, PROJECT, kind, "b") == changed
            assert [one.name for one in objects.list_objects(conn, PROJECT, kind)] == ["a", "b"]
            assert objects.find_object(conn, PROJECT, kind, "c") is None


def _built(conn: Connection) -> tuple[str, str]:
    """A version whose heavy variant has two builds; one of them in job j-1."""
    source = seed_version(conn).variants[0].digest
    add_build(conn, PROJECT, build_row("b-1", source), NOW)
    add_build(conn, PROJECT, build_row("b-2", source, "onnxruntime-int8"), NOW)
    queue_builds(conn, ["b-1"], "j-1", NOW)
    return "b-1", "b-2"


def test_builds_are_found_by_target_and_job(store: Store) -> None:
    with store.write() as conn:
        first, second = _built(conn)
        assert [row.build_id for row in builds_of_job(conn, "j-1")] == [first]
        target = build_row(second, seed_source := digest("digits1.0.0heavy"), "onnxruntime-int8")
        found = find_build(conn, PROJECT, target.target_key)
        assert found is not None
        assert (found.build_id, found.source_digest) == (second, seed_source)
        assert find_build(conn, PROJECT, digest("none")) is None
        drawn = iter([first, second, "b-3"])
        assert new_build_id(conn, lambda: next(drawn)) == "b-3"


def test_the_state_of_a_job_reaches_its_unfinished_builds(store: Store) -> None:
    with store.write() as conn:
        _built(conn)
        queue_builds(conn, ["b-1", "b-2"], "j-2", NOW)
        set_compiled(
            conn,
            "b-1",
            digest=digest("out"),
            length=7,
            media_type="application/onnx",
            evidence={"p50_ms": 1.5},
            now=NOW,
        )
        set_job_state(conn, "j-2", "RUNNING", NOW)
        states = {row.build_id: row.state for row in builds_of_job(conn, "j-2")}
        assert states == {"b-1": "COMPILED", "b-2": "RUNNING"}
        set_failed(conn, "b-2", "out of memory", NOW)
        set_job_state(conn, "j-2", "QUEUED", NOW)
        assert [row.reason for row in builds_of_job(conn, "j-2")] == ["", "out of memory"]
        assert builds_of_job(conn, "j-2")[1].state == "FAILED"


def test_gates_are_written_over_and_opened_again(store: Store) -> None:
    with store.write() as conn:
        _built(conn)
        put_gate(conn, PROJECT, gate_row("b-1", verdict="FAILED"))
        put_gate(conn, PROJECT, replace(gate_row("b-1", verdict="FAILED"), reason="died"))
        put_gate(conn, PROJECT, gate_row("b-1", verdict="PASSED", profile="n100"))
        found = gates_of_build(conn, "b-1")
        assert sorted((one.key.profile, one.verdict) for _, one in found) == [
            ("n100", "PASSED"),
            ("pi", "FAILED"),
        ]
        queue_builds(conn, ["b-1"], "j-3", NOW)
        assert find_gate(conn, PROJECT, gate_row("b-1").key) == gate_row("b-1")
        passed = find_gate(conn, PROJECT, gate_row("b-1", profile="n100").key)
        assert passed is not None
        assert passed.verdict == "PASSED"
        unknown = GateKey("digits", "1.0.0", "heavy", "onnxruntime-fp32", "none")
        assert find_gate(conn, PROJECT, unknown) is None


def test_builds_are_seen_with_their_job_heavy_to_light(store: Store) -> None:
    with store.write() as conn:
        _built(conn)
        add_job(conn, PROJECT, "j-1", {"job": {}, "inputs": []}, NOW)
        put_gate(conn, PROJECT, gate_row(None, "light", "REFUSED"))
        put_gate(conn, PROJECT, gate_row("b-1"))
        put_gate(conn, PROJECT, gate_row(None, "heavy", "REFUSED", "n100"))
        seen = list_seen(conn, PROJECT, "digits", "1.0.0")
        assert [(one.gate.key.profile, one.gate.key.variant) for one in seen] == [
            ("n100", "heavy"),
            ("pi", "heavy"),
            ("pi", "light"),
        ]
        assert [one.job_id for one in seen] == [None, "j-1", None]
        assert seen[0].build is None
        assert seen[1].source_length == 1000
        assert len(list_seen(conn, PROJECT, profile="pi")) == 2
        assert list_seen(conn, PROJECT, "photo") == []


def test_only_passed_and_overridden_builds_may_be_released(store: Store) -> None:
    with store.write() as conn:
        row = seed_version(conn)
        for position, (name, verdict) in enumerate((("light", "OVERRIDDEN"), ("heavy", "PASSED"))):
            build_id = f"b-{name}"
            add_build(conn, PROJECT, build_row(build_id, row.variants[1 - position].digest), NOW)
            set_compiled(
                conn,
                build_id,
                digest=digest(name),
                length=7,
                media_type="application/onnx",
                evidence={"p50_ms": 1.5, "peak_rss_bytes": 99},
                now=NOW,
            )
            gate = replace(gate_row(build_id, name, verdict), override_reason="seen in the lab")
            put_gate(conn, PROJECT, gate)
            put_gate(conn, PROJECT, gate_row(build_id, name, "REFUSED", "n100"))
        found = passed_builds(conn, PROJECT, "digits", "1.0.0", "pi")
        assert [(one.variant, one.overridden) for one in found] == [
            ("heavy", False),
            ("light", True),
        ]
        assert (found[0].digest, found[0].length) == (digest("heavy"), 7)
        assert (found[0].p50_ms, found[0].peak_rss_bytes) == (1.5, 99)
        assert passed_builds(conn, PROJECT, "digits", "1.0.0", "n100") == []


def test_profiles_of_enrolled_devices(store: Store) -> None:
    with store.write() as conn:
        for name, state, profile in (
            ("a", "ACTIVE", "pi"),
            ("b", "PENDING", "n100"),
            ("c", "RETIRED", "nano"),
            ("d", "ACTIVE", None),
        ):
            seed_device(conn, name, state)
            update_device(conn, name, profile=profile)
        assert enrolled_profiles(conn, PROJECT) == ["n100", "pi"]


def test_which_runtimes_a_profile_s_devices_report(store: Store) -> None:
    with store.write() as conn:
        for device_id, runtimes, state in (
            ("a", {"onnxruntime": "1.32.0"}, "ACTIVE"),
            ("b", {"onnxruntime": "1.32.0", "openvino": "2026.4"}, "RETIRED"),
            ("c", {"it's": "odd", "openvino.x": "1"}, "PENDING"),
        ):
            seed_device(conn, device_id, state)
            update_device(conn, device_id, profile="pi")
            put_capabilities(conn, device_id, {"runtimes": runtimes}, NOW)
        seed_device(conn, "d", "ACTIVE")  # said nothing of itself yet
        update_device(conn, "d", profile="pi")
        assert reports_runtime(conn, PROJECT, "pi", "onnxruntime")
        assert not reports_runtime(conn, PROJECT, "pi", "openvino")
        assert not reports_runtime(conn, PROJECT, "n100", "onnxruntime")
        assert reports_runtime(conn, PROJECT, "pi", "it's")


def test_jobs_are_leased_in_the_order_they_came(store: Store) -> None:
    spec = {"job": {"model": "digits"}, "inputs": []}
    with store.write() as conn:
        add_job(conn, PROJECT, "j-2", spec, after(1))
        add_job(conn, PROJECT, "j-1", spec, NOW)
        first = oldest_queued(conn)
        assert first is not None
        assert (first.job_id, first.state, first.attempt, first.spec) == ("j-1", "QUEUED", 0, spec)
        lease_job(
            conn,
            "j-1",
            worker="w",
            lease="l-1",
            spec=spec | {"host": {}},
            lease_until=after(30),
            attempt=1,
            now=NOW,
        )
        renew_lease(
            conn, "j-1", lease_until=after(60), progress_pct=40.0, step="exporting", now=after(30)
        )
        held = running_jobs(conn, "w")
        assert [(job.job_id, job.lease, job.lease_until) for job in held] == [
            ("j-1", "l-1", after(60))
        ]
        assert (held[0].progress_pct, held[0].step) == (40.0, "exporting")
        assert running_jobs(conn, "other") == []
        second = oldest_queued(conn)
        assert second is not None
        assert second.job_id == "j-2"
        end_job(conn, "j-1", "QUEUED", after(61), error="silent", last_lines=("a", "b"))
        again = find_job(conn, "j-1")
        assert again is not None
        assert (again.lease, again.lease_until, again.attempt) == (None, None, 1)
        assert (again.error, again.last_lines) == ("silent", ("a", "b"))
        end_job(conn, "j-1", "DONE", after(62))
        done = find_job(conn, "j-1")
        assert done is not None
        assert done.progress_pct == 100.0
        assert find_job(conn, "j-9") is None
        drawn = iter(["j-1", "j-9"])
        assert new_job_id(conn, lambda: next(drawn)) == "j-9"

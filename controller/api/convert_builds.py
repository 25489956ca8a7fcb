"""Wire and values of builds and build jobs. Decides nothing."""

from controller.api.convert_catalogue import dump_json, timestamp
from controller.api.convert_device import time_to_wire
from controller.api.convert_rollouts import fact_messages
from controller.domain.build import Evidence
from controller.domain.device import Capabilities
from controller.domain.interval import Interval
from controller.services.build_explanations import BuildExplanation
from controller.services.builds import BuildView
from controller.services.jobs import ClaimedJob
from controller.services.tuning_words import Word
from lighterman.v1 import build_pb2, common_pb2, fleet_pb2


def build_message(view: BuildView) -> fleet_pb2.Build:
    """A build for the wire; figures are unset where nothing was measured."""
    return fleet_pb2.Build(
        build_id=view.build_id,
        model=view.model,
        version=view.version,
        variant=view.variant,
        recipe=view.recipe,
        profile=view.profile,
        state=view.state,
        progress_pct=view.progress_pct,
        step=view.step,
        reason=view.reason,
        digest=view.digest,
        size_bytes=view.size_bytes,
        source_size_bytes=view.source_size_bytes,
        figures=_figures(view.evidence, view.measured_on_class) if view.evidence else None,
        dataset=view.dataset,
        override_reason=view.override_reason,
        override_by=view.override_by,
        cached=view.cached,
        job_id=view.job_id,
        last_lines=view.last_lines,
        updated_at=timestamp(view.updated_at),
        findings=[fleet_pb2.GateFinding(ok=one.ok, text=one.text) for one in view.findings],
        override_at=time_to_wire(view.override_at),
        source_digest=view.source_digest,
        dataset_digest=view.dataset_digest,
        runtime=view.runtime,
        target_key=view.target_key,
        recipe_spec_json="" if view.recipe_spec is None else dump_json(view.recipe_spec),
        tool_versions=dict(view.evidence.tool_versions) if view.evidence else {},
        asked_at=time_to_wire(view.asked_at),
        built_at=time_to_wire(view.built_at),
        attempts=view.attempts,
        worker=view.worker,
        measured=[word_message(one) for one in view.measured],
        rung=view.rung,
    )


def explanation_message(found: BuildExplanation) -> fleet_pb2.BuildExplanation:
    """Why a build is as it is, for the wire."""
    return fleet_pb2.BuildExplanation(
        build=build_message(found.build), facts=fact_messages(found.facts)
    )


def word_message(word: Word) -> fleet_pb2.DeviceFigures:
    """What a device says of a build, for the wire."""
    found = word.measured
    return fleet_pb2.DeviceFigures(
        device_id=word.device_id,
        ok=found.ok,
        reason=found.reason,
        p50_ms=found.p50_ms,
        p95_ms=found.p95_ms,
        n=found.n,
        first_p50_ms=found.first_p50_ms,
        rss_bytes=found.rss_bytes,
        temperature_start_c=found.temperature_start_c,
        temperature_max_c=found.temperature_max_c,
        energy_mj=found.energy_mj,
        energy_source=found.energy_source,
        os=found.os,
        runtime=f"{found.runtime} {found.runtime_version}".strip(),
        measured_at=timestamp(word.measured_at),
        stale=word.stale,
    )


def names_from_wire(request: fleet_pb2.ListBuildsRequest) -> dict[str, str]:
    """Which builds are asked for; empty names mean all."""
    return {
        "model": request.model,
        "version": request.version,
        "profile": request.profile,
        "variant": request.variant,
        "recipe": request.recipe,
    }


def _figures(evidence: Evidence, on_class: bool) -> fleet_pb2.BuildFigures:
    own = not evidence.stand_in
    return fleet_pb2.BuildFigures(
        accuracy_pct=_interval(evidence.accuracy),
        accuracy_delta_pts=_interval(evidence.accuracy_delta_pts),
        agreement_pct=_interval(evidence.agreement),
        # Times of another runtime, which answered for the build's, are none of the build.
        p50_ms=evidence.p50_ms * own,
        p95_ms=evidence.p95_ms * own,
        latency_n=evidence.latency_n * own,
        fp32_p50_ms=(evidence.fp32_p50_ms or 0.0) * own,
        eager_p50_ms=evidence.eager_p50_ms or 0.0,
        measured_on=evidence.measured_on,
        measured_on_class=on_class,
        dataset_digest=evidence.dataset_digest,
        rows_checked=evidence.rows_checked,
        rows_not_finite=evidence.rows_not_finite,
        peak_rss_bytes=evidence.peak_rss_bytes or 0,
        p50_interval_ms=_interval(evidence.p50_interval_ms if own else None),
        p95_interval_ms=_interval(evidence.p95_interval_ms if own else None),
        fp32_p50_interval_ms=_interval(evidence.fp32_p50_interval_ms if own else None),
        eager_p50_interval_ms=_interval(evidence.eager_p50_interval_ms),
        source_accuracy_pct=_interval(evidence.source_accuracy),
        task=evidence.task,
        metrics=[
            fleet_pb2.MetricFigure(
                name=one.name,
                value_pct=_interval(one.value),
                source_pct=_interval(one.source),
                delta_pts=_interval(one.delta_pts),
            )
            for one in evidence.metrics
        ],
        classes=[
            fleet_pb2.ClassChange(
                label=one.label,
                value_pct=one.value,
                source_pct=one.source,
                delta_pts=_interval(one.delta_pts),
                loses=one.loses,
            )
            for one in evidence.classes
        ],
        classes_judged=evidence.classes_judged,
    )


def _interval(value: Interval | None) -> fleet_pb2.Interval | None:
    if value is None:
        return None
    return fleet_pb2.Interval(value=value.value, low=value.low, high=value.high, n=value.n)


def host_of(message: common_pb2.Capabilities) -> Capabilities:
    """What a worker says of its machine."""
    return Capabilities(
        arch=message.arch,
        os=message.os,
        cpu_model=message.cpu_model,
        device_model=message.device_model,
        accelerators=tuple(message.accelerators),
        runtimes=dict(message.runtimes),
        memory_bytes=message.memory_bytes,
        disk_bytes=message.disk_bytes,
        agent_version=message.agent_version,
        python=message.python,
        host_simulated=message.host_simulated,
    )


def job_message(job: ClaimedJob) -> build_pb2.BuildJob:
    """A claimed job for the wire."""
    return build_pb2.BuildJob(
        job_id=job.job_id,
        lease=job.lease,
        lease_s=job.lease_s,
        spec_json=dump_json(job.spec),
        inputs=[
            build_pb2.JobInput(role=one.role, digest=one.digest, length=one.length)
            for one in job.inputs
        ],
    )

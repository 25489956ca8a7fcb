"""FleetService: measuring builds on devices, ladders, shared engines. Converts, decides nothing."""

import grpc

from controller.api.base import ApiBase
from controller.api.convert_catalogue import dump_json, timestamp
from controller.api.convert_device import time_to_wire
from controller.services.context import Ctx
from controller.services.engines import list_shared
from controller.services.tuning_views import Standing, TuningView
from controller.services.tunings import (
    Wish,
    apply_ladder,
    cancel_tuning,
    get_tuning,
    start_tuning,
)
from lighterman.v1 import fleet_pb2


class TuningsApi(ApiBase):
    """Mixin of the FleetService servicer."""

    def TuneBuild(
        self, request: fleet_pb2.TuneBuildRequest, context: grpc.ServicerContext
    ) -> fleet_pb2.Tuning:
        """Have builds measured."""
        wish = Wish(
            model=request.model,
            version=request.version,
            profile=request.profile,
            selector=request.selector,
            devices=int(request.devices),
            soak_s=request.soak_s,
            measure_s=request.measure_s,
            again=request.again,
            expires_s=request.expires_s,
        )
        return _message(start_tuning(self.deps, self.ctx(context), wish))

    def GetTuning(
        self, request: fleet_pb2.TuningRequest, context: grpc.ServicerContext
    ) -> fleet_pb2.Tuning:
        """How it stands."""
        return _message(get_tuning(self.deps, *self._names(request, context)))

    def CancelTuning(
        self, request: fleet_pb2.TuningRequest, context: grpc.ServicerContext
    ) -> fleet_pb2.Tuning:
        """End it."""
        return _message(cancel_tuning(self.deps, *self._names(request, context)))

    def ApplyLadder(
        self, request: fleet_pb2.ApplyLadderRequest, context: grpc.ServicerContext
    ) -> fleet_pb2.Tuning:
        """Make the proposal the ladder, or go back to none."""
        view = apply_ladder(
            self.deps,
            self.ctx(context),
            model=request.model,
            version=request.version,
            profile=request.profile,
            build_ids=list(request.build_ids),
            reset=request.reset,
        )
        return _message(view)

    def ListEngines(
        self, request: fleet_pb2.ListEnginesRequest, context: grpc.ServicerContext
    ) -> fleet_pb2.ListEnginesResponse:
        """What builders compiled for others."""
        return fleet_pb2.ListEnginesResponse(
            engines=[
                fleet_pb2.SharedEngine(
                    key_digest=row.key_digest,
                    key_json=dump_json(row.key),
                    build_digest=row.build_digest,
                    digest=row.digest,
                    length=row.length,
                    device_id=row.device_id,
                    published_at=timestamp(row.published_at),
                )
                for row in list_shared(self.deps, self.ctx(context))
            ]
        )

    def _names(
        self, request: fleet_pb2.TuningRequest, context: grpc.ServicerContext
    ) -> tuple[Ctx, str, str, str]:
        return self.ctx(context), request.model, request.version, request.profile


def _message(view: TuningView) -> fleet_pb2.Tuning:
    row = view.row
    model, version, profile = view.names
    return fleet_pb2.Tuning(
        tuning_id=row.tuning_id if row else "",
        model=model,
        version=version,
        profile=profile,
        selector=row.selector if row else "",
        state=view.state,
        measured_on=view.measured_on,
        on_device=view.on_device,
        devices=[
            fleet_pb2.TuningDevice(
                device_id=one.device_id,
                state="done" if not one.build_ids else "waiting" if one.note else "measuring",
                note=one.note,
                done=one.total - len(one.build_ids),
                of=one.total,
            )
            for one in view.shares
        ],
        candidates=[_candidate(one) for one in view.standings],
        applied=view.applied,
        notes=view.notes,
        created_at=time_to_wire(row.created_at if row else None),
        created_by=row.created_by if row else "",
        expires_at=time_to_wire(row.expires_at if row else None),
        ladder=view.recipes,
    )


def _candidate(one: Standing) -> fleet_pb2.TuningCandidate:
    key, build, figures = one.seen.gate.key, one.seen.build, one.figures
    return fleet_pb2.TuningCandidate(
        build_id=build.build_id if build else "",
        variant=key.variant,
        recipe=key.recipe,
        rung=one.rung,
        reason=one.reason,
        quality_pct=one.quality,
        p95_ms=figures.p95_ms if figures else 0.0,
        p50_ms=figures.p50_ms if figures else 0.0,
        rss_bytes=figures.rss_bytes if figures else 0,
        size_bytes=(build.length or 0) if build else 0,
        energy_mj=figures.energy_mj if figures else None,
        devices=figures.devices if figures else 0,
    )

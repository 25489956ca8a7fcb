"""Events and telemetry for operators: lists and tails. A tail ends when its reader leaves."""

import json
import threading
from collections.abc import Iterator
from datetime import datetime

import grpc

from controller.api.base import ApiBase
from controller.api.convert_device import time_from_wire, time_to_wire
from controller.services import events, telemetry
from controller.services.events import EventFilter, EventView
from lighterman.v1 import fleet_pb2

POLL_S = 0.3


class EventsApi(ApiBase):
    """The event and telemetry methods of FleetService."""

    def ListEvents(
        self, request: fleet_pb2.ListEventsRequest, context: grpc.ServicerContext
    ) -> fleet_pb2.ListEventsResponse:
        """Events in ascending order."""
        found = events.list_events(
            self.deps,
            self.ctx(context),
            _filter(request),
            limit=int(request.limit),
            after=int(request.after),
        )
        return fleet_pb2.ListEventsResponse(events=[event_to_wire(view) for view in found])

    def TailEvents(
        self, request: fleet_pb2.ListEventsRequest, context: grpc.ServicerContext
    ) -> Iterator[fleet_pb2.Event]:
        """The newest `limit` events, then new ones as they are stored."""
        ctx, wanted = self.ctx(context), _filter(request)
        events.check_filter(self.deps, ctx, wanted)
        gone = threading.Event()
        context.add_callback(gone.set)
        after = int(request.after)
        if not after:
            after = events.last_number(self.deps)
            if request.limit > 0:
                for view in events.list_events(self.deps, ctx, wanted, limit=int(request.limit)):
                    after = max(after, view.number)
                    yield event_to_wire(view)
        while not gone.is_set():
            found = events.events_behind(self.deps, ctx, wanted, after)
            for view in found:
                after = view.number
                yield event_to_wire(view)
            if not found:
                gone.wait(POLL_S)

    def TailTelemetry(
        self, request: fleet_pb2.TailTelemetryRequest, context: grpc.ServicerContext
    ) -> Iterator[fleet_pb2.TelemetrySample]:
        """Health documents as they come, the same as on the feed."""
        tail = telemetry.tail_telemetry(self.deps, self.ctx(context), request.selector, 1.0)
        for entry in tail:
            if not context.is_active():
                return
            if entry is not None:
                device_id, document = entry
                yield fleet_pb2.TelemetrySample(
                    device_id=device_id,
                    at=time_to_wire(datetime.fromisoformat(document["at"])),
                    json=json.dumps(document, separators=(",", ":"), sort_keys=True),
                )


def _filter(request: fleet_pb2.ListEventsRequest) -> EventFilter:
    since = time_from_wire(request.since, "since") if request.HasField("since") else None
    return EventFilter(
        device_id=request.device_id,
        rollout_id=request.rollout_id,
        model=request.model,
        kinds=tuple(request.kinds),
        since=since,
    )


def event_to_wire(view: EventView) -> fleet_pb2.Event:
    """One event."""
    return fleet_pb2.Event(
        number=view.number,
        at=time_to_wire(view.at),
        kind=view.kind,
        device_id=view.device_id or "",
        model=view.model or "",
        version=view.version or "",
        rollout_id=view.rollout_id or "",
        actor=view.actor,
        reason=view.reason,
        details=view.details,
    )

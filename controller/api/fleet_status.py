"""Status for operators: is anything wrong, and what is running."""

from collections.abc import Callable

import grpc

from controller.api.base import ApiBase
from controller.api.convert_device import time_to_wire
from controller.api.convert_rollouts import rollout_message
from controller.services.status import ProcessFacts, get_status
from lighterman.v1 import fleet_pb2


class StatusApi(ApiBase):
    """The status method of FleetService. `process_facts` tells what only the process knows."""

    process_facts: Callable[[], ProcessFacts]

    def GetStatus(
        self, request: fleet_pb2.GetStatusRequest, context: grpc.ServicerContext
    ) -> fleet_pb2.GetStatusResponse:
        """The whole picture."""
        view = get_status(self.deps, self.ctx(context), self.process_facts())
        return fleet_pb2.GetStatusResponse(
            controller_version=view.process.version,
            started_at=time_to_wire(view.process.started_at),
            devices=dict(view.devices),
            running=[
                fleet_pb2.ModelInField(model=one.model, version=one.version, devices=one.devices)
                for one in view.running
            ],
            rollouts=[rollout_message(one) for one in view.rollouts],
            problems=list(view.problems),
            broker_ok=view.process.broker_ok,
            worker_count=view.process.workers,
            builds=dict(view.builds),
            recent_rollouts=[rollout_message(one) for one in view.recent],
        )

"""Rollouts for operators: plan, start, list, look, steer, explain."""

import grpc

from controller.api.base import ApiBase
from controller.api.convert_forecasts import forecast_message
from controller.api.convert_rollouts import (
    explanation_message,
    intent_from_wire,
    plan_message,
    rollout_message,
    spec_from_wire,
)
from controller.services import rollouts
from controller.services.forecasts import forecast_rollout
from controller.services.rollout_explanations import explain_rollout
from controller.services.rollout_plans import plan_rollout
from lighterman.v1 import fleet_pb2


class RolloutsApi(ApiBase):
    """The rollout methods of FleetService."""

    def PlanRollout(
        self, request: fleet_pb2.RolloutSpec, context: grpc.ServicerContext
    ) -> fleet_pb2.RolloutPlan:
        """What a rollout would do."""
        return plan_message(plan_rollout(self.deps, self.ctx(context), spec_from_wire(request)))

    def ForecastRollout(
        self, request: fleet_pb2.ForecastRequest, context: grpc.ServicerContext
    ) -> fleet_pb2.Forecast:
        """What a rollout would take, played over the fleet as it is recorded or described."""
        seed = int(request.seed) or 1
        view = forecast_rollout(
            self.deps,
            self.ctx(context),
            spec_from_wire(request.spec),
            fails_on_pct=request.fails_on_pct,
            seed=seed,
            fleet=request.fleet,
        )
        return forecast_message(view, seed)

    def StartRollout(
        self, request: fleet_pb2.StartRolloutRequest, context: grpc.ServicerContext
    ) -> fleet_pb2.Rollout:
        """Start it, where the confirmed count is still right."""
        spec = spec_from_wire(request.spec)
        view = rollouts.start_rollout(
            self.deps, self.ctx(context), spec, int(request.confirmed_devices)
        )
        return rollout_message(view)

    def ListRollouts(
        self, request: fleet_pb2.ListRolloutsRequest, context: grpc.ServicerContext
    ) -> fleet_pb2.ListRolloutsResponse:
        """Rollouts, newest first."""
        views = rollouts.list_rollouts(
            self.deps,
            self.ctx(context),
            active_only=request.active_only,
            limit=int(request.limit),
        )
        return fleet_pb2.ListRolloutsResponse(rollouts=[rollout_message(view) for view in views])

    def GetRollout(
        self, request: fleet_pb2.RolloutRequest, context: grpc.ServicerContext
    ) -> fleet_pb2.Rollout:
        """One rollout."""
        view = rollouts.get_rollout(self.deps, self.ctx(context), request.rollout_id)
        return rollout_message(view)

    def SetIntent(
        self, request: fleet_pb2.SetIntentRequest, context: grpc.ServicerContext
    ) -> fleet_pb2.Rollout:
        """Pause, resume, abort or roll back."""
        intent = intent_from_wire(request.intent)
        view = rollouts.set_intent(
            self.deps, self.ctx(context), request.rollout_id, intent, request.reason
        )
        return rollout_message(view)

    def ExplainRollout(
        self, request: fleet_pb2.RolloutRequest, context: grpc.ServicerContext
    ) -> fleet_pb2.RolloutExplanation:
        """Why it is where it is."""
        return explanation_message(
            explain_rollout(self.deps, self.ctx(context), request.rollout_id)
        )

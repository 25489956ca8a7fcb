"""FleetService: builds. Converts and calls, decides nothing."""

import grpc

from controller.api.base import ApiBase
from controller.api.convert_builds import build_message, explanation_message, names_from_wire
from controller.services.build_cancellations import cancel_builds
from controller.services.build_explanations import explain_builds
from controller.services.builds import list_builds, override_build, retry_build, start_build
from lighterman.v1 import fleet_pb2


class BuildsApi(ApiBase):
    """Mixin of the FleetService servicer."""

    def StartBuild(
        self, request: fleet_pb2.StartBuildRequest, context: grpc.ServicerContext
    ) -> fleet_pb2.StartBuildResponse:
        """Build a version."""
        views = start_build(
            self.deps,
            self.ctx(context),
            model=request.model,
            version=request.version,
            profiles=list(request.profiles),
            dataset=request.dataset,
            recipes=list(request.recipes),
        )
        return fleet_pb2.StartBuildResponse(builds=[build_message(view) for view in views])

    def ListBuilds(
        self, request: fleet_pb2.ListBuildsRequest, context: grpc.ServicerContext
    ) -> fleet_pb2.ListBuildsResponse:
        """Builds as profiles see them."""
        views = list_builds(self.deps, self.ctx(context), **names_from_wire(request))
        return fleet_pb2.ListBuildsResponse(builds=[build_message(view) for view in views])

    def ExplainBuilds(
        self, request: fleet_pb2.ListBuildsRequest, context: grpc.ServicerContext
    ) -> fleet_pb2.ExplainBuildsResponse:
        """Why builds are as they are, and what to do next."""
        found = explain_builds(self.deps, self.ctx(context), **names_from_wire(request))
        return fleet_pb2.ExplainBuildsResponse(builds=[explanation_message(one) for one in found])

    def OverrideBuild(
        self, request: fleet_pb2.OverrideBuildRequest, context: grpc.ServicerContext
    ) -> fleet_pb2.OverrideBuildResponse:
        """Let refused builds pass."""
        views = override_build(
            self.deps,
            self.ctx(context),
            model=request.model,
            version=request.version,
            profile=request.profile,
            reason=request.reason,
            variant=request.variant,
            recipe=request.recipe,
        )
        return fleet_pb2.OverrideBuildResponse(builds=[build_message(view) for view in views])

    def CancelBuild(
        self, request: fleet_pb2.CancelBuildRequest, context: grpc.ServicerContext
    ) -> fleet_pb2.CancelBuildResponse:
        """End builds that wait or run."""
        views = cancel_builds(
            self.deps,
            self.ctx(context),
            model=request.model,
            version=request.version,
            job_id=request.job_id,
            reason=request.reason,
        )
        return fleet_pb2.CancelBuildResponse(builds=[build_message(view) for view in views])

    def RetryBuild(
        self, request: fleet_pb2.RetryBuildRequest, context: grpc.ServicerContext
    ) -> fleet_pb2.StartBuildResponse:
        """Queue again what failed."""
        views = retry_build(
            self.deps, self.ctx(context), model=request.model, version=request.version
        )
        return fleet_pb2.StartBuildResponse(builds=[build_message(view) for view in views])

"""FleetService: one servicer, joined from a mixin per noun. Adds no method of its own."""

from collections.abc import Callable

from controller.api.builds import BuildsApi
from controller.api.catalogue import CatalogueApi
from controller.api.fleet_devices import DevicesApi
from controller.api.fleet_events import EventsApi
from controller.api.fleet_status import StatusApi
from controller.api.fleet_tokens import TokensApi
from controller.api.rollouts import RolloutsApi
from controller.api.tunings import TuningsApi
from controller.services.context import Ctx, Deps
from controller.services.status import ProcessFacts
from lighterman.v1 import fleet_pb2_grpc


class FleetServicer(
    CatalogueApi,
    BuildsApi,
    TuningsApi,
    RolloutsApi,
    DevicesApi,
    EventsApi,
    StatusApi,
    TokensApi,
    fleet_pb2_grpc.FleetServiceServicer,
):
    """What operators ask."""

    def __init__(
        self,
        deps: Deps,
        new_ctx: Callable[[str], Ctx],
        process_facts: Callable[[], ProcessFacts],
    ) -> None:
        super().__init__(deps, new_ctx)
        self.process_facts = process_facts

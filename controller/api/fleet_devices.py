"""Devices for operators: list, show, label, accept, retire."""

import grpc

from controller.api.base import ApiBase
from controller.api.convert_device import capabilities_to_wire, time_to_wire
from controller.api.convert_rollouts import fact_messages
from controller.services import devices
from controller.services.devices import DeviceView
from controller.services.engines import set_role
from controller.services.explain import explain_device
from lighterman.v1 import fleet_pb2


class DevicesApi(ApiBase):
    """The device methods of FleetService."""

    def ListDevices(
        self, request: fleet_pb2.ListDevicesRequest, context: grpc.ServicerContext
    ) -> fleet_pb2.ListDevicesResponse:
        """Devices that a selector picks."""
        found = devices.find_devices(
            self.deps, self.ctx(context), request.selector, int(request.limit)
        )
        return fleet_pb2.ListDevicesResponse(
            devices=[device_to_wire(view) for view in found.devices],
            matched=found.matched,
            notes=found.notes,
        )

    def GetDevice(
        self, request: fleet_pb2.GetDeviceRequest, context: grpc.ServicerContext
    ) -> fleet_pb2.Device:
        """One device."""
        return device_to_wire(devices.get_device(self.deps, self.ctx(context), request.device_id))

    def LabelDevices(
        self, request: fleet_pb2.LabelDevicesRequest, context: grpc.ServicerContext
    ) -> fleet_pb2.LabelDevicesResponse:
        """Set and remove labels."""
        count = devices.label_devices(
            self.deps,
            self.ctx(context),
            selector=request.selector,
            device_ids=list(request.device_ids),
            values=dict(request.set),
            remove=list(request.remove),
        )
        return fleet_pb2.LabelDevicesResponse(devices=count)

    def AcceptDevice(
        self, request: fleet_pb2.DeviceRequest, context: grpc.ServicerContext
    ) -> fleet_pb2.Device:
        """Let a pending or quarantined device in."""
        view = devices.accept_device(self.deps, self.ctx(context), request.device_id)
        return device_to_wire(view)

    def RetireDevice(
        self, request: fleet_pb2.DeviceRequest, context: grpc.ServicerContext
    ) -> fleet_pb2.Device:
        """Revoke a device's certificates."""
        view = devices.retire_device(self.deps, self.ctx(context), request.device_id)
        return device_to_wire(view)

    def SetDeviceRole(
        self, request: fleet_pb2.SetDeviceRoleRequest, context: grpc.ServicerContext
    ) -> fleet_pb2.Device:
        """Grant a device a role, or take it."""
        ctx = self.ctx(context)
        devices.get_device(self.deps, ctx, request.device_id)
        set_role(self.deps, ctx, request.device_id, request.role, request.granted)
        return device_to_wire(devices.get_device(self.deps, ctx, request.device_id))

    def ExplainDevice(
        self, request: fleet_pb2.DeviceRequest, context: grpc.ServicerContext
    ) -> fleet_pb2.DeviceExplanation:
        """Why a device is as it is, with evidence."""
        ctx = self.ctx(context)
        view = devices.get_device(self.deps, ctx, request.device_id)
        facts = explain_device(self.deps, ctx, request.device_id)
        return fleet_pb2.DeviceExplanation(device=device_to_wire(view), facts=fact_messages(facts))


def device_to_wire(view: DeviceView) -> fleet_pb2.Device:
    """One device as operators see it; unknown figures stay unset."""
    return fleet_pb2.Device(
        device_id=view.device_id,
        profile=view.profile or "",
        state=view.state.lower(),
        online=view.online,
        last_seen_at=time_to_wire(view.last_seen_at),
        labels=dict(view.labels),
        capabilities=capabilities_to_wire(view.capabilities),
        models=[
            fleet_pb2.DeviceModel(
                model=one.model,
                version=one.version,
                rung=one.rung,
                rung_reason=one.rung_reason,
                phase=one.phase,
                previous_version=one.previous_version,
            )
            for one in view.models
        ],
        desired_generation=view.desired_generation,
        applied_generation=view.applied_generation,
        temperature_c=view.temperature_c,
        memory_used_pct=view.memory_used_pct,
        cpu_used_pct=view.cpu_used_pct,
        enrolled_at=time_to_wire(view.enrolled_at),
        certificate_expires_at=time_to_wire(view.certificate_expires_at),
        retired_at=time_to_wire(view.retired_at),
        retired_by=view.retired_by,
        roles=view.roles,
    )

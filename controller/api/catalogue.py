"""FleetService: uploads, models, datasets, objects. Converts and calls, decides nothing."""

from collections.abc import Iterator

import grpc

from controller.api.base import ApiBase
from controller.api.convert_catalogue import (
    applied_message,
    dataset_message,
    new_object,
    new_version,
    object_message,
    version_message,
)
from controller.api.upload import split_upload
from controller.services.artifacts import store_artifact
from controller.services.datasets import get_dataset, list_all_datasets, push_dataset
from controller.services.models import get_model, list_models, push_model
from controller.services.objects import apply_objects, get_object, list_kind
from lighterman.v1 import fleet_pb2


class CatalogueApi(ApiBase):
    """Mixin of the FleetService servicer."""

    def Upload(
        self, request: Iterator[fleet_pb2.UploadRequest], context: grpc.ServicerContext
    ) -> fleet_pb2.UploadResponse:
        """Store an artifact."""
        first, chunks = split_upload(request)
        header = first.header
        stored = store_artifact(
            self.deps,
            self.ctx(context),
            digest=header.digest,
            length=header.length,
            name=header.name,
            chunks=chunks,
        )
        return fleet_pb2.UploadResponse(digest=stored.digest, existed=stored.existed)

    def PushModel(
        self, request: fleet_pb2.PushModelRequest, context: grpc.ServicerContext
    ) -> fleet_pb2.PushModelResponse:
        """Make a version of uploaded files."""
        pushed = push_model(self.deps, self.ctx(context), new_version(request))
        return fleet_pb2.PushModelResponse(
            version=version_message(pushed.version), existed=pushed.existed
        )

    def ListModels(
        self, request: fleet_pb2.ListModelsRequest, context: grpc.ServicerContext
    ) -> fleet_pb2.ListModelsResponse:
        """Versions of all models or one."""
        views = list_models(self.deps, self.ctx(context), request.model)
        return fleet_pb2.ListModelsResponse(
            versions=[version_message(view, with_labels=False) for view in views]
        )

    def GetModel(
        self, request: fleet_pb2.GetModelRequest, context: grpc.ServicerContext
    ) -> fleet_pb2.ModelVersion:
        """One version."""
        view = get_model(self.deps, self.ctx(context), request.model, request.version)
        return version_message(view)

    def PushDataset(
        self, request: fleet_pb2.PushDatasetRequest, context: grpc.ServicerContext
    ) -> fleet_pb2.Dataset:
        """Make a dataset of an uploaded file."""
        view = push_dataset(
            self.deps,
            self.ctx(context),
            name=request.name,
            digest=request.digest,
            file_name=request.file_name,
        )
        return dataset_message(view)

    def ListDatasets(
        self, request: fleet_pb2.ListDatasetsRequest, context: grpc.ServicerContext
    ) -> fleet_pb2.ListDatasetsResponse:
        """All datasets."""
        views = list_all_datasets(self.deps, self.ctx(context))
        return fleet_pb2.ListDatasetsResponse(datasets=[dataset_message(view) for view in views])

    def GetDataset(
        self, request: fleet_pb2.GetDatasetRequest, context: grpc.ServicerContext
    ) -> fleet_pb2.Dataset:
        """One dataset."""
        return dataset_message(get_dataset(self.deps, self.ctx(context), request.name))

    def Apply(
        self, request: fleet_pb2.ApplyRequest, context: grpc.ServicerContext
    ) -> fleet_pb2.ApplyResponse:
        """Apply documented objects."""
        results = apply_objects(
            self.deps,
            self.ctx(context),
            [new_object(message) for message in request.objects],
            dry_run=request.dry_run,
        )
        return fleet_pb2.ApplyResponse(results=[applied_message(one) for one in results])

    def ListObjects(
        self, request: fleet_pb2.ListObjectsRequest, context: grpc.ServicerContext
    ) -> fleet_pb2.ListObjectsResponse:
        """All objects of a kind."""
        views = list_kind(self.deps, self.ctx(context), request.kind)
        return fleet_pb2.ListObjectsResponse(objects=[object_message(view) for view in views])

    def GetObject(
        self, request: fleet_pb2.GetObjectRequest, context: grpc.ServicerContext
    ) -> fleet_pb2.Object:
        """One object."""
        view = get_object(self.deps, self.ctx(context), request.kind, request.name)
        return object_message(view)

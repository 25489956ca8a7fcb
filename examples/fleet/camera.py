"""A camera: sends pictures to a device's Open Inference endpoint and notes each answer.

Speaks the public protocol alone; version and rung stand in the response's parameters.
"""

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import grpc

from examples.fleet.clock import monotonic
from lighterman.oip import inference_pb2, inference_pb2_grpc

CALL_S = 10.0
READY_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class Answer:
    """One request: when it was sent (monotonic seconds), how long it took, who answered."""

    sent_at: float
    took_s: float
    version: str
    rung: str
    error: str

    @property
    def ok(self) -> bool:
        """Whether it was answered."""
        return not self.error


@dataclass(frozen=True, slots=True)
class Picture:
    """Raw bytes of one input tensor with its name, type and shape."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes


class Camera:
    """Sends pictures at a steady rate (requests per second) from when the model is ready.

    Cameras ``in_step`` of one rate fire at the same moments, as by one trigger.
    """

    def __init__(
        self,
        endpoint: str,
        model: str,
        pictures: Sequence[Picture],
        rate: float,
        *,
        in_step: bool = False,
    ) -> None:
        self.endpoint = endpoint
        self._model = model
        self._pictures = pictures
        self._period_s = 1.0 / rate
        self._in_step = in_step
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._answers: list[Answer] = []
        self._channel = grpc.insecure_channel(
            endpoint, options=[("grpc.max_send_message_length", 64 * 1024 * 1024)]
        )
        self._stub = inference_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._thread = threading.Thread(target=self._run, name=f"camera {endpoint}", daemon=True)

    def start(self) -> "Camera":
        """Begin to send."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """End after the request in flight."""
        self._stop.set()
        self._thread.join(CALL_S + 5)
        self._channel.close()

    def answers(self, since: float = 0.0) -> list[Answer]:
        """What was answered to requests sent at or after ``since``."""
        with self._lock:
            return [answer for answer in self._answers if answer.sent_at >= since]

    def last(self) -> Answer | None:
        """The newest answer."""
        with self._lock:
            return self._answers[-1] if self._answers else None

    def _wait_for_model(self) -> None:
        """An application asks whether its model is there before it sends pictures."""
        request = inference_pb2.ModelReadyRequest(name=self._model)
        while not self._stop.is_set():
            try:
                if self._stub.ModelReady(request, timeout=CALL_S).ready:
                    return
            except grpc.RpcError:
                pass  # not served yet, or the agent is still starting: ask again
            self._stop.wait(READY_EVERY_S)

    def _run(self) -> None:
        self._wait_for_model()
        index, next_at = 0, monotonic()
        while not self._stop.is_set():
            if self._in_step:
                next_at = self._period_s * math.ceil(monotonic() / self._period_s)
                self._stop.wait(max(0.0, next_at - monotonic()))
            self._ask(self._pictures[index % len(self._pictures)])
            index += 1
            if not self._in_step:
                next_at = max(next_at + self._period_s, monotonic() - self._period_s)
                self._stop.wait(max(0.0, next_at - monotonic()))

    def _ask(self, picture: Picture) -> None:
        request = inference_pb2.ModelInferRequest(
            model_name=self._model,
            inputs=[
                inference_pb2.ModelInferRequest.InferInputTensor(
                    name=picture.name, datatype=picture.datatype, shape=picture.shape
                )
            ],
            raw_input_contents=[picture.data],
        )
        sent_at = monotonic()
        version = rung = error = ""
        try:
            response = self._stub.ModelInfer(request, timeout=CALL_S)
            version = response.parameters["lighterman_version"].string_param
            rung = response.parameters["lighterman_rung"].string_param
            if not response.raw_output_contents:
                error = "an answer without output"
        except grpc.RpcError as failure:
            error = f"{failure.code().name}: {failure.details()}"
        answer = Answer(sent_at, monotonic() - sent_at, version, rung, error)
        with self._lock:
            self._answers.append(answer)

"""Remote rungs: another Open Inference Protocol endpoint over gRPC, and the look at its link.

Refuses the answer of any other version than its own, to decide whether a link is good (the ladder
does) and to retry: who calls has a local rung.

    RemoteModel(endpoint, model, version)        # endpoint: see `agent.domain.remote`
    open_remote(remote, deadline_s, signature) -> Backend
    LinkProber(clock, interval_s=0.5)            # satisfies `agent.domain.ports.LinkProbe`
        .start() .watch(frozenset({remote}))
        .read(remote) -> LinkReading | None .stop()
"""

import threading
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Generic, TypeVar

import grpc

from agent.domain.ports import Clock, LinkReading, RemoteModel
from agent.domain.remote import RemoteAddress, parse_remote, why_not
from agent.domain.tensor import Signature, Tensor, parse_dtype
from agent.errors import InferenceError
from lighterman.oip import inference_pb2 as pb
from lighterman.oip import inference_pb2_grpc as pb_grpc

T = TypeVar("T")

# Nothing came back from the server itself.
_NO_ANSWER = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
)
_PROBES_KEPT = 10
_RTTS_KEPT = 5
# A cut link has to be found good again within a second, not after gRPC's two minutes.
_CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
)


def open_remote(remote: RemoteModel, deadline_s: float, signature: Signature) -> "Remote":
    """A rung that infers there; connects at its first use. LoadError: no such address."""
    address = parse_remote(remote.endpoint)
    return Remote(_channel(address), address, remote, deadline_s, signature)


class Remote:
    """One version of one model at one endpoint. Every call ends within `deadline_s`."""

    def __init__(
        self,
        channel: grpc.Channel,
        address: RemoteAddress,
        remote: RemoteModel,
        deadline_s: float,
        signature: Signature,
    ) -> None:
        self._channel = channel
        self._stub = pb_grpc.GRPCInferenceServiceStub(channel)
        self._where = address.address
        self._model = remote.model
        self._version = address.name_of(remote.version)
        self._deadline_s = deadline_s
        self._signature = signature

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Infer there; InferenceError when no answer came in time, or another version's did."""
        request = pb.ModelInferRequest(model_name=self._model, model_version=self._version)
        for tensor in inputs.values():
            request.inputs.add(name=tensor.name, datatype=tensor.dtype, shape=tensor.shape)
            request.raw_input_contents.append(bytes(tensor.data))
        for spec in self._signature.outputs:
            request.outputs.add(name=spec.name)
        try:
            response = self._stub.ModelInfer(request, timeout=self._deadline_s)
        except grpc.RpcError as error:
            raise InferenceError(f"{self._where} did not answer: {_tell(error)}") from error
        self._check_version(response)
        if len(response.raw_output_contents) != len(response.outputs):
            raise InferenceError(f"{self._where} answered without raw contents")
        return {
            out.name: Tensor(out.name, parse_dtype(out.datatype), tuple(out.shape), data)
            for out, data in zip(response.outputs, response.raw_output_contents, strict=True)
        }

    def _check_version(self, response: pb.ModelInferResponse) -> None:
        # An answer without a version proves nothing: it counts only where none was asked for.
        if response.model_version == self._version and response.model_name in ("", self._model):
            return
        named = f"{response.model_name or self._model}:{response.model_version or 'no version'}"
        raise InferenceError(
            f"{self._where} answered as {named}, asked was"
            f" {self._model}:{self._version or 'no version'}"
        )

    def signature(self) -> None:
        """Not asked for: a remote rung must not need its link to be loaded."""

    def call_off(self, thread: int) -> None:
        """Every call has its own deadline, which is shorter."""

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


class LinkProber:
    """Asks every watched endpoint whether it can answer for the version, also while not in use.

    A server that lives without that version is no link: its answers would be another version's.
    """

    def __init__(self, clock: Clock, interval_s: float = 0.5, timeout_s: float = 0.5) -> None:
        self._clock = clock
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._wanted: frozenset[RemoteModel] = frozenset()
        self._links: dict[RemoteModel, _Link] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="link-probe", daemon=True)

    def start(self) -> None:
        """Begin to probe."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, which closes its channels."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def watch(self, remotes: frozenset[RemoteModel]) -> None:
        """Look at exactly these from now on; LoadError when one is no address."""
        for remote in remotes:
            parse_remote(remote.endpoint)
        with self._lock:
            self._wanted = remotes

    def read(self, remote: RemoteModel) -> LinkReading | None:
        """Median round trip of the last answers, loss over the last probes."""
        with self._lock:
            link = self._links.get(remote)
            return None if link is None else link.reading()

    def _work(self) -> None:
        while not self._stop.is_set():
            self._open_and_close()
            # All at once: one dead endpoint must not delay the looks at the others.
            asked = [(link, self._ask(link.ready())) for link in self._links.values()]
            refusing = [link for link, call in asked if not self._heard(link, call)]
            named = [(link, self._ask(link.metadata())) for link in refusing]
            for link, call in named:
                self._told(link, call)
            self._stop.wait(self._interval_s)
        self.watch(frozenset())
        self._open_and_close()

    def _open_and_close(self) -> None:
        # Channels live in this thread alone: none is closed under a probe.
        with self._lock:
            for remote in self._wanted - self._links.keys():
                self._links[remote] = _Link(remote, self._timeout_s)
            gone = [self._links.pop(e) for e in self._links.keys() - self._wanted]
        for link in gone:
            link.channel.close()

    def _ask(self, future: "grpc.Future[T]") -> "_Call[T]":
        call = _Call(self._clock, future)
        future.add_done_callback(call.ended)
        return call

    def _heard(self, link: "_Link", call: "_Call[pb.ModelReadyResponse]") -> bool:
        """Note an answer or its loss; False when the server lives but says no."""
        ready = self._answer(call)
        if ready is None:
            with self._lock:
                link.note(None)
        elif isinstance(ready, pb.ModelReadyResponse) and ready.ready:
            with self._lock:
                link.note(call.ended_s - call.began_s)
        else:
            return False
        return True

    def _told(self, link: "_Link", call: "_Call[pb.ModelMetadataResponse]") -> None:
        """Note why the server says no: it tells which versions it has."""
        answer = self._answer(call)
        if answer is None:
            with self._lock:
                link.note(None)
            return
        served: tuple[str, ...] | None = ()
        if isinstance(answer, pb.ModelMetadataResponse):
            served = tuple(answer.versions)
        elif answer is grpc.StatusCode.NOT_FOUND:
            served = None
        with self._lock:
            link.refuse(served)

    def _answer(self, call: "_Call[T]") -> "T | grpc.StatusCode | None":
        """What came back: an answer, the server's own refusal, or None for nothing in time."""
        call.done.wait(self._timeout_s * 2)
        future = call.future
        if not call.done.is_set() or future.cancelled():
            return None
        error = future.exception()
        if error is None:
            return future.result()
        code = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
        return None if code in _NO_ANSWER else code


class _Call(Generic[T]):
    """One probe under way: when it ended is noted in gRPC's thread, not when we look."""

    def __init__(self, clock: Clock, future: "grpc.Future[T]") -> None:
        self._clock = clock
        self.began_s = self.ended_s = clock.monotonic()
        self.done = threading.Event()
        self.future = future

    def ended(self, _: object) -> None:
        self.ended_s = self._clock.monotonic()
        self.done.set()


class _Link:
    def __init__(self, remote: RemoteModel, timeout_s: float) -> None:
        self._remote = remote
        self._address = parse_remote(remote.endpoint)
        self._timeout_s = timeout_s
        self.channel = _channel(self._address)
        self._stub = pb_grpc.GRPCInferenceServiceStub(self.channel)
        self._answered: deque[bool] = deque(maxlen=_PROBES_KEPT)
        self._rtts_s: deque[float] = deque(maxlen=_RTTS_KEPT)
        self._why = ""

    def ready(self) -> "grpc.Future[pb.ModelReadyResponse]":
        version = self._address.name_of(self._remote.version)
        request = pb.ModelReadyRequest(name=self._remote.model, version=version)
        return self._stub.ModelReady.future(request, timeout=self._timeout_s)

    def metadata(self) -> "grpc.Future[pb.ModelMetadataResponse]":
        request = pb.ModelMetadataRequest(name=self._remote.model)
        return self._stub.ModelMetadata.future(request, timeout=self._timeout_s)

    def note(self, rtt_s: float | None) -> None:
        self._why = ""
        self._answered.append(rtt_s is not None)
        if rtt_s is not None:
            self._rtts_s.append(rtt_s)

    def refuse(self, served: tuple[str, ...] | None) -> None:
        # What it answered before says nothing of the version it does not have.
        self._answered.clear()
        self._rtts_s.clear()
        self._why = why_not(self._address, self._remote.model, self._remote.version, served)

    def reading(self) -> LinkReading | None:
        if self._why:
            return LinkReading(None, 100.0, self._why)
        if not self._answered:
            return None
        lost = sum(1 for answered in self._answered if not answered)
        rtt = median(self._rtts_s) if self._rtts_s else None
        return LinkReading(rtt, 100.0 * lost / len(self._answered))


def _channel(address: RemoteAddress) -> grpc.Channel:
    return grpc.insecure_channel(address.address, options=list(_CHANNEL_OPTIONS))


def _tell(error: grpc.RpcError) -> str:
    if isinstance(error, grpc.Call):
        return f"{error.code().name} {error.details() or ''}".strip()
    return str(error)

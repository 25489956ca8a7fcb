"""Remote rungs: another Open Inference Protocol endpoint over gRPC, and the look at its link.

Refuses to decide whether a link is good (the ladder does) and to retry: who calls has a local rung.

    open_remote(endpoint, model, deadline_s, signature) -> Backend     # endpoint "grpc://HOST:PORT"
    LinkProber(clock, interval_s=0.5)            # satisfies `agent.domain.ports.LinkProbe`
        .start() .watch(frozenset({RemoteModel(endpoint, model)}))
        .read(remote) -> LinkReading | None .stop()
"""

import threading
from collections import deque
from collections.abc import Mapping
from statistics import median

import grpc

from agent.domain.ports import Clock, LinkReading, RemoteModel
from agent.domain.tensor import Signature, Tensor, parse_dtype
from agent.errors import InferenceError, LoadError
from lighterman.oip import inference_pb2 as pb
from lighterman.oip import inference_pb2_grpc as pb_grpc

SCHEME = "grpc://"
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


def open_remote(endpoint: str, model: str, deadline_s: float, signature: Signature) -> "Remote":
    """A rung that infers at `endpoint`; connects at its first use. LoadError: no such address."""
    return Remote(_channel(endpoint), endpoint, model, deadline_s, signature)


class Remote:
    """One model at one endpoint. Every call ends within `deadline_s`."""

    def __init__(
        self,
        channel: grpc.Channel,
        endpoint: str,
        model: str,
        deadline_s: float,
        signature: Signature,
    ) -> None:
        self._channel = channel
        self._stub = pb_grpc.GRPCInferenceServiceStub(channel)
        self._endpoint = endpoint
        self._model = model
        self._deadline_s = deadline_s
        self._signature = signature

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Infer there; InferenceError with the gRPC status when no answer came in time."""
        request = pb.ModelInferRequest(model_name=self._model)
        for tensor in inputs.values():
            request.inputs.add(name=tensor.name, datatype=tensor.dtype, shape=tensor.shape)
            request.raw_input_contents.append(bytes(tensor.data))
        for spec in self._signature.outputs:
            request.outputs.add(name=spec.name)
        try:
            response = self._stub.ModelInfer(request, timeout=self._deadline_s)
        except grpc.RpcError as error:
            raise InferenceError(f"{self._endpoint} did not answer: {_tell(error)}") from error
        if len(response.raw_output_contents) != len(response.outputs):
            raise InferenceError(f"{self._endpoint} answered without raw contents")
        return {
            out.name: Tensor(out.name, parse_dtype(out.datatype), tuple(out.shape), data)
            for out, data in zip(response.outputs, response.raw_output_contents, strict=True)
        }

    def signature(self) -> None:
        """Not asked for: a remote rung must not need its link to be loaded."""

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


class LinkProber:
    """Asks every watched endpoint whether it can answer for the model, also while not in use.

    A server that lives without the model is no link: requests sent there would fail.
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
            _address(remote.endpoint)
        with self._lock:
            self._wanted = remotes

    def read(self, remote: RemoteModel) -> LinkReading | None:
        """Median round trip of the last answers, loss over the last probes."""
        with self._lock:
            link = self._links.get(remote)
            if link is None or not link.answered:
                return None
            lost = sum(1 for answered in link.answered if not answered)
            rtt = median(link.rtts_s) if link.rtts_s else None
            return LinkReading(rtt, 100.0 * lost / len(link.answered))

    def _work(self) -> None:
        while not self._stop.is_set():
            self._open_and_close()
            # All at once: one dead endpoint must not delay the looks at the others.
            asked = [(link, self._ask(link, remote)) for remote, link in self._links.items()]
            for link, call in asked:
                rtt = self._answer(call)
                with self._lock:
                    link.note(rtt)
            self._stop.wait(self._interval_s)
        self.watch(frozenset())
        self._open_and_close()

    def _open_and_close(self) -> None:
        # Channels live in this thread alone: none is closed under a probe.
        with self._lock:
            for remote in self._wanted - self._links.keys():
                self._links[remote] = _Link(_channel(remote.endpoint))
            gone = [self._links.pop(e) for e in self._links.keys() - self._wanted]
        for link in gone:
            link.channel.close()

    def _ask(self, link: "_Link", remote: RemoteModel) -> "_Call":
        call = _Call(self._clock)
        request = pb.ModelReadyRequest(name=remote.model)
        call.future = link.stub.ModelReady.future(request, timeout=self._timeout_s)
        call.future.add_done_callback(call.ended)
        return call

    def _answer(self, call: "_Call") -> float | None:
        call.done.wait(self._timeout_s * 2)
        future = call.future
        if future is None or not call.done.is_set() or future.cancelled():
            return None
        if future.exception() is not None or not future.result().ready:
            return None
        return call.ended_s - call.began_s


class _Call:
    """One probe under way: when it ended is noted in gRPC's thread, not when we look."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.began_s = self.ended_s = clock.monotonic()
        self.done = threading.Event()
        self.future: grpc.Future[pb.ModelReadyResponse] | None = None

    def ended(self, _: object) -> None:
        self.ended_s = self._clock.monotonic()
        self.done.set()


class _Link:
    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self.stub = pb_grpc.GRPCInferenceServiceStub(channel)
        self.answered: deque[bool] = deque(maxlen=_PROBES_KEPT)
        self.rtts_s: deque[float] = deque(maxlen=_RTTS_KEPT)

    def note(self, rtt_s: float | None) -> None:
        self.answered.append(rtt_s is not None)
        if rtt_s is not None:
            self.rtts_s.append(rtt_s)


def _channel(endpoint: str) -> grpc.Channel:
    return grpc.insecure_channel(_address(endpoint), options=list(_CHANNEL_OPTIONS))


def _address(endpoint: str) -> str:
    address = endpoint.removeprefix(SCHEME)
    host, _, port = address.rpartition(":")
    if not endpoint.startswith(SCHEME) or not host or not port.isdigit():
        raise LoadError(
            f"remote rung endpoint {endpoint!r} is no address", f"write {SCHEME}HOST:PORT"
        )
    return address


def _tell(error: grpc.RpcError) -> str:
    if isinstance(error, grpc.Call):
        return f"{error.code().name} {error.details() or ''}".strip()
    return str(error)

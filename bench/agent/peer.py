"""`python -m bench.agent.peer`: one end of a round, in a process of its own, pinned to a core.

    raw FILE                     the runtime alone, in a loop: what the device could do at most
    ask HOST:PORT MODEL NUMBER   so many requests in flight at an agent's inference API
    send HOST:PORT NUMBER        so many pictures in flight at `bench.agent.plain`

Reads seconds, one number a line, works that long and answers with a line of JSON.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.agent.lite0 import INPUT, SHAPE
from bench.agent.plain import LENGTH

METHOD = "/inference.GRPCInferenceService/ModelInfer"
CALL_S = 30.0
PICTURES = 32

Work = Callable[[float], dict[str, Any]]


def raw(file: str) -> Work:
    """ONNX Runtime on one thread and otherwise as it comes, without anything around it.

    The pictures take turns: a device never sees the same one twice either.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session: Any = onnxruntime.InferenceSession(
        file, sess_options=options, providers=["CPUExecutionProvider"]
    )
    pictures = [{INPUT: picture_of(number)} for number in range(PICTURES)]

    def work(seconds: float) -> dict[str, Any]:
        done, began, cpu = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - began < seconds:
            session.run(None, pictures[done % PICTURES])
            done += 1
        took = time.perf_counter() - began
        return {"done": done, "took_s": took, "failed": 0, "cpu_s": time.process_time() - cpu}

    return work


def picture_of(number: int) -> Any:
    """A picture of noise, the same for the same number."""
    random = np.random.default_rng(number)
    return random.uniform(0, 255, SHAPE).astype(np.float32)


def ask(endpoint: str, model: str, number: str) -> Work:
    """Threads that ask and wait, each with a picture of its own, as cameras do.

    Requests are serialized once: asking is to cost little.
    """
    import grpc

    from lighterman.oip import inference_pb2 as pb

    def asked(of: int) -> bytes:
        request = pb.ModelInferRequest(model_name=model)
        request.inputs.add(name=INPUT, datatype="FP32", shape=SHAPE)
        request.raw_input_contents.append(picture_of(of).tobytes())
        whole: bytes = request.SerializeToString()
        return whole

    channel = grpc.insecure_channel(
        endpoint, [("grpc.max_send_message_length", -1), ("grpc.enable_http_proxy", 0)]
    )
    call: Any = channel.unary_unary(METHOD, request_serializer=bytes)
    call(asked(0), timeout=CALL_S, wait_for_ready=True)

    def asker(of: int) -> Callable[[], str]:
        data = asked(of)

        def once() -> str:
            try:
                call(data, timeout=CALL_S)
            except grpc.RpcError as error:
                return str(error.details() if isinstance(error, grpc.Call) else error)
            return ""

        return once

    return _in_flight([asker(of) for of in range(int(number))])


def send(endpoint: str, number: str) -> Work:
    """Connections that send a picture each, wait, and send it again."""
    host, _, port = endpoint.rpartition(":")
    picture = picture_of(0).tobytes()
    data = LENGTH.pack(len(picture)) + picture

    def talker() -> Callable[[], str]:
        line = socket.create_connection((host, int(port)), CALL_S)
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def once() -> str:
            line.sendall(data)
            (length,) = LENGTH.unpack(line.recv(LENGTH.size, socket.MSG_WAITALL))
            return "" if len(line.recv(length, socket.MSG_WAITALL)) == length else "cut off"

        return once

    return _in_flight([talker() for _ in range(int(number))])


def _in_flight(askers: list[Callable[[], str]]) -> Work:
    """A thread for each, which asks and waits; what an asker returns is why it failed."""

    def work(seconds: float) -> dict[str, Any]:
        took: list[float] = []
        failed: list[str] = []
        end = time.perf_counter() + seconds

        def loop(once: Callable[[], str]) -> None:
            while (began := time.perf_counter()) < end:
                failure = once()
                if failure:
                    failed.append(failure)
                took.append(time.perf_counter() - began)

        began = time.perf_counter()
        threads = [threading.Thread(target=loop, args=(once,)) for once in askers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took.sort()
        return {
            "done": len(took) - len(failed),
            "took_s": time.perf_counter() - began,
            "failed": len(failed),
            "errors": failed[:3],
            "p50_ms": 1000 * took[len(took) // 2],
            "p99_ms": 1000 * took[len(took) * 99 // 100],
        }

    return work


def main() -> int:
    """Serve rounds until the input ends."""
    kind, *words = sys.argv[1:]
    core = int(words.pop())
    os.sched_setaffinity(0, {core})
    kinds: dict[str, Callable[..., Work]] = {"raw": raw, "ask": ask, "send": send}
    work = kinds[kind](*words)
    print("{}", flush=True)
    for line in sys.stdin:
        print(json.dumps(work(float(line))), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

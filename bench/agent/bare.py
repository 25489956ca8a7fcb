"""`python -m bench.agent.bare FILE CORE`: the least that serves the same request over gRPC.

Generated messages, a pool of one thread, and ONNX Runtime called inline: no ladder, no rollback
rule, no versions, no queue of its own, nothing checked or counted. What it loses against the raw
loop is the price of gRPC in Python; no agent over it can be expected to lose less.
"""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np

from agent.process import tune_memory
from lighterman.oip import inference_pb2 as pb

SERVICE = "inference.GRPCInferenceService"


class Bare:
    """One method of the protocol."""

    def __init__(self, file: str) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session: Any = onnxruntime.InferenceSession(
            file, sess_options=options, providers=["CPUExecutionProvider"]
        )

    def infer(
        self, request: pb.ModelInferRequest, context: grpc.ServicerContext
    ) -> pb.ModelInferResponse:
        """Infer on the first input, which is float32, and give the first output back."""
        given = request.inputs[0]
        picture = np.frombuffer(request.raw_input_contents[0], "<f4").reshape(tuple(given.shape))
        scores = self._session.run(None, {given.name: picture})[0]
        answer = pb.ModelInferResponse(model_name=request.model_name)
        answer.outputs.add(name="scores", datatype="FP32", shape=scores.shape)
        answer.raw_output_contents.append(scores.tobytes())
        return answer


def main() -> int:
    """Serve until the input ends."""
    file, core = sys.argv[1:]
    os.sched_setaffinity(0, {int(core)})
    # The same allocator as the agent's: without it every picture costs mappings anew.
    tune_memory()
    # More threads than one only pass the interpreter's lock around.
    server = grpc.server(
        ThreadPoolExecutor(1), options=[("grpc.max_receive_message_length", 64 * 1024 * 1024)]
    )
    infer = grpc.unary_unary_rpc_method_handler(
        Bare(file).infer,
        request_deserializer=pb.ModelInferRequest.FromString,
        response_serializer=pb.ModelInferResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {"ModelInfer": infer}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(json.dumps({"address": f"127.0.0.1:{port}", "pid": os.getpid()}), flush=True)
    sys.stdin.read()
    server.stop(1.0).wait()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

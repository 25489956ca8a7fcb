"""A foreign client as its own program, over either road: knows Triton's client library and no more.

    python triton_roads.py http|grpc ADDRESS MODEL     # one of everything, as JSON

Everything that both of its clients can do, by the same words, so that both must find the same.
"""

import importlib
import json
import queue
import sys
from functools import partial
from typing import Any

import numpy as np
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

ARRAY = np.array([[1, 2, 3, 4]], np.float32)


class Asker:
    """One of the library's clients."""

    def __init__(self, road: str, address: str, model: str) -> None:
        self.road, self.model = road, model
        self.module: Any = importlib.import_module(f"tritonclient.{road}")
        self.client: Any = self.module.InferenceServerClient(address)

    def given(self, array: Any = ARRAY, **options: Any) -> Any:
        """The input `x`."""
        made = self.module.InferInput("x", array.shape, np_to_triton_dtype(array.dtype))
        made.set_data_from_numpy(array, **options)
        return made

    def infer(self, *inputs: Any, **options: Any) -> Any:
        """The output `y`."""
        return self.client.infer(self.model, list(inputs), **options).as_numpy("y").tolist()

    def refused(self, call: Any) -> str:
        """What is said of a call that must fail."""
        try:
            call()
        except InferenceServerException as error:
            return str(error.message())
        raise AssertionError("this should have been refused")


def told(asker: Asker) -> dict[str, Any]:
    """What the server tells of itself."""
    client, model = asker.client, asker.model
    as_json = {} if asker.road == "http" else {"as_json": True}
    (stats,) = client.get_inference_statistics(model, **as_json)["model_stats"]
    index = client.get_model_repository_index(**as_json)
    entries = index if asker.road == "http" else index["models"]
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready(model),
        "other_ready": client.is_model_ready("other"),
        "extensions": client.get_server_metadata(**as_json)["extensions"],
        "metadata": client.get_model_metadata(model, **as_json)["inputs"][0]["datatype"],
        "inferred": int(stats["inference_stats"]["success"]["count"]),
        "index": [[one["name"], one["version"], one["state"]] for one in entries],
        "load": asker.refused(lambda: client.load_model(model)),
        "unload": asker.refused(lambda: client.unload_model(model)),
        "unknown": asker.refused(lambda: client.infer("other", [asker.given()])),
        "wrong": asker.refused(lambda: asker.infer(asker.given(ARRAY[:, :3].copy()))),
    }


def over_http(asker: Asker) -> dict[str, Any]:
    """What only the library's HTTP client has: JSON or bytes, both ways, and compression."""
    found = {}
    for name, sent, wanted in (
        ("json", False, False), ("binary", True, True),
        ("json_binary", False, True), ("binary_json", True, False),
    ):  # fmt: skip
        outputs = [asker.module.InferRequestedOutput("y", binary_data=wanted)]
        found[name] = asker.infer(asker.given(binary_data=sent), outputs=outputs)
    for how in ("gzip", "deflate"):
        found[how] = asker.infer(asker.given(), request_compression_algorithm=how)
    asked = [asker.client.async_infer(asker.model, [asker.given()]) for _ in range(4)]
    found["async"] = asked[3].get_result().as_numpy("y").tolist()
    return found


def over_stream(asker: Asker) -> dict[str, Any]:
    """What only its gRPC client has: streams. Answers must come in order, errors in their place."""
    answers: queue.Queue[Any] = queue.Queue()
    asker.client.start_stream(lambda result, error: answers.put((result, error)))
    for i in range(50):
        array = ARRAY * i if i != 20 else ARRAY[:, :3].copy()
        asker.client.async_stream_infer(asker.model, [asker.given(array)], request_id=str(i))
    found = []
    for _ in range(50):
        result, error = answers.get(timeout=20)
        found.append(str(error.message()) if error else int(result.as_numpy("y")[0, 0]))
    asker.client.stop_stream()
    return {"stream": found}


def over_memory(asker: Asker, key: str) -> dict[str, Any]:
    """Inputs and outputs in system shared memory."""
    client, size = asker.client, ARRAY.nbytes
    handle = shm.create_shared_memory_region("both", key, 2 * size)
    try:
        shm.set_shared_memory_region(handle, [ARRAY])
        client.register_system_shared_memory("both", key, 2 * size)
        given = asker.module.InferInput("x", ARRAY.shape, "FP32")
        given.set_shared_memory("both", size)
        output = asker.module.InferRequestedOutput("y")
        output.set_shared_memory("both", size, offset=size)
        result = client.infer(asker.model, [given], outputs=[output])
        there = shm.get_contents_as_numpy(handle, np.float32, [1, 4], offset=size).tolist()
        again = partial(client.register_system_shared_memory, "both", key, 2 * size)
        too_large = partial(client.register_system_shared_memory, "large", key, 2 * size + 1)
        beyond = asker.module.InferInput("x", ARRAY.shape, "FP32")
        beyond.set_shared_memory("both", size, offset=size + 1)
        as_json = {} if asker.road == "http" else {"as_json": True}
        status = client.get_system_shared_memory_status(**as_json)
        regions = status if asker.road == "http" else list(status["regions"].values())
        found = {
            "there": there,
            "in_answer": "shared_memory_region" in str(result.get_output("y")),
            "from_memory": asker.infer(given),
            "regions": [[one["name"], one["key"], int(one["byte_size"])] for one in regions],
            "again": asker.refused(again),
            "too_large": asker.refused(too_large),
            "beyond": asker.refused(lambda: asker.infer(beyond)),
        }
        client.unregister_system_shared_memory("both")
        found["unregistered"] = asker.refused(lambda: asker.infer(given))
    finally:
        shm.destroy_shared_memory_region(handle)
    found["gone"] = asker.refused(partial(client.register_system_shared_memory, "b", key, size))
    return found


def main() -> None:
    """See the module."""
    road, address, model, key = sys.argv[1:]
    asker = Asker(road, address, model)
    found = {"y": asker.infer(asker.given()), **told(asker), **over_memory(asker, key)}
    found |= over_http(asker) if road == "http" else over_stream(asker)
    asker.client.close()
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()

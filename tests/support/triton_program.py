"""A foreign client as its own program: knows Triton's client library and nothing of this project.

    python triton_program.py ADDRESS MODEL check     # one of everything, as JSON
    python triton_program.py ADDRESS MODEL load N    # N askers until stdin ends, then JSON

It runs in a process of its own because the library registers the same protobuf package as our
stubs. Exits 1 with a traceback when anything is not as the library expects.
"""

import json
import sys
import threading
from collections import Counter
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype


def ask(client: Any, model: str, array: Any, **options: Any) -> Any:
    """One inference of the input `x`."""
    given = triton.InferInput("x", array.shape, np_to_triton_dtype(array.dtype))
    given.set_data_from_numpy(array)
    return client.infer(model, [given], **options)


def refused(client: Any, model: str, array: Any, **options: Any) -> list[str]:
    """Status and message of a request that must fail."""
    try:
        ask(client, model, array, **options)
    except InferenceServerException as error:
        return [str(error.status()), str(error.message())]
    raise AssertionError("this request should have been refused")


def check(client: Any, model: str) -> dict[str, Any]:
    """Call every method of the protocol."""
    array = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32)
    answer = ask(
        client,
        model,
        array,
        request_id="q-7",
        outputs=[triton.InferRequestedOutput("y")],
    )
    response = answer.get_response()
    meta = client.get_model_metadata(model)
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready(model),
        "other_ready": client.is_model_ready("other"),
        "server": client.get_server_metadata().name,
        "platform": meta.platform,
        "versions": list(meta.versions),
        "inputs": [[t.name, t.datatype, list(t.shape)] for t in meta.inputs],
        "y": answer.as_numpy("y").tolist(),
        "id": response.id,
        "version": response.model_version,
        "parameters": {k: v.string_param for k, v in response.parameters.items()},
        "unknown_model": refused(client, "other", array),
        "wrong_shape": refused(client, model, np.zeros((1, 5), np.float32)),
        "wrong_type": refused(client, model, array.astype(np.float64)),
        "wrong_version": refused(client, model, array, model_version="9"),
        "large": list(ask(client, model, np.ones((1_000_000, 4), np.float32)).as_numpy("y").shape),
    }


def load(address: str, model: str, clients: int) -> dict[str, Any]:
    """Ask without pause until the caller closes our stdin."""
    stop = threading.Event()
    lock = threading.Lock()
    answers: Counter[str] = Counter()
    errors: list[str] = []

    def work() -> None:
        client = triton.InferenceServerClient(address)
        array = np.ones((1, 4), np.float32)
        while not stop.is_set():
            try:
                answer = ask(client, model, array)
            except InferenceServerException as error:
                with lock:
                    errors.append(str(error))
                continue
            key = f"{answer.get_response().model_version} {answer.as_numpy('y')[0, 0]:g}"
            with lock:
                first = not answers
                answers[key] += 1
            if first:
                sys.stdout.write("first\n")
                sys.stdout.flush()
        client.close()

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()
    return {"answers": dict(answers), "errors": errors}


def main() -> None:
    """See the module."""
    address, model, what = sys.argv[1:4]
    if what == "load":
        result = load(address, model, int(sys.argv[4]))
    else:
        client = triton.InferenceServerClient(address)
        result = check(client, model)
        client.close()
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()

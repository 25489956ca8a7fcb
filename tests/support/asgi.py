"""Asks an ASGI application one question, without a socket."""

import asyncio
from collections.abc import Mapping, MutableMapping
from typing import Any

from starlette.applications import Starlette


def get(
    app: Starlette,
    path: str,
    headers: Mapping[str, str] | None = None,
    client: tuple[str, int] = ("127.0.0.1", 40000),
) -> tuple[int, dict[str, str], str]:
    """Status, headers (lower case) and text of the answer to a GET from `client`."""
    sent: list[MutableMapping[str, Any]] = []
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "https",
        "headers": [(k.lower().encode(), v.encode()) for k, v in (headers or {}).items()],
        "client": client,
        "server": ("127.0.0.1", 7080),
    }

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    begin = next(one for one in sent if one["type"] == "http.response.start")
    body = b"".join(one.get("body", b"") for one in sent if one["type"] == "http.response.body")
    named = {key.decode(): value.decode() for key, value in begin["headers"]}
    return int(begin["status"]), named, body.decode()

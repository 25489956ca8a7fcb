"""Takes and gives artifacts. Stores bytes under their digest; others give them a meaning."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from controller.errors import (
    ErrorKind,
    ExhaustedError,
    InvalidError,
    LightermanError,
    NotFoundError,
)
from controller.services.context import Ctx, Deps
from controller.services.suggestions import size_text
from controller.store.artifacts import (
    artifact_length,
    forget_artifact,
    is_used,
    record_artifact,
)

# Kinds of errors that are the answer to a push, and not an accident on the way.
_ANSWERS = (ErrorKind.INVALID, ErrorKind.CONFLICT, ErrorKind.REFUSED)


@dataclass(frozen=True, slots=True)
class StoredArtifact:
    """An artifact that is stored, whole and verified."""

    digest: str
    length: int
    existed: bool


def store_artifact(
    deps: Deps,
    ctx: Ctx,
    *,
    digest: str,
    length: int,
    name: str,
    chunks: Iterable[bytes],
    limit_bytes: int | None = None,
) -> StoredArtifact:
    """Store what ``chunks`` yields; it must have the announced digest and length.

    Nothing of it is kept otherwise. Raises InvalidError, or ExhaustedError when it is larger than
    ``limit_bytes`` (default: the limit of artifacts) or the disk is full. When the bytes are stored
    already the chunks are not read.
    """
    limit = deps.limits.artifact_bytes if limit_bytes is None else limit_bytes
    what = name or digest
    if length < 0:
        raise InvalidError(f"{what} announces {length} bytes")
    if length > limit:
        raise ExhaustedError(
            f"{what} is too large: {size_text(length)}",
            f"this controller takes at most {size_text(limit)} per file",
        )
    existed = deps.blobs.exists(digest)
    if existed:
        length = deps.blobs.length(digest)
    else:
        _receive(deps, digest, length, what, chunks)
    with deps.store.write() as conn:
        known = not record_artifact(conn, ctx.project, digest, length, ctx.now)
    return StoredArtifact(digest, length, existed and known)


def _receive(deps: Deps, digest: str, length: int, what: str, chunks: Iterable[bytes]) -> None:
    with deps.blobs.writer(length) as writer:
        for chunk in chunks:
            if writer.length + len(chunk) > length:
                raise InvalidError(f"{what} sends more than the {length} bytes it announced")
            writer.write(chunk)
        if writer.length != length:
            raise InvalidError(
                f"{what} ended after {writer.length} of {length} bytes", "send it again"
            )
        writer.commit(digest)


@contextmanager
def used_or_discarded(deps: Deps, ctx: Ctx, digests: list[str]) -> Iterator[None]:
    """Discard what nothing names at the end; `digests` may grow inside.

    Where the controller could not say yes or no (its database is away, say) all of it stays.
    """
    try:
        yield
    except LightermanError as error:
        if error.kind in _ANSWERS:
            _discard(deps, ctx, digests)
        raise
    _discard(deps, ctx, digests)


def require_stored(deps: Deps, digest: str) -> None:
    """Call where it is named for the first time: a push of the same file may have been refused."""
    if not deps.blobs.exists(digest):
        raise NotFoundError(f"{digest} is not stored any more", "push it again")


def _discard(deps: Deps, ctx: Ctx, digests: Iterable[str]) -> None:
    # The bytes go within the transaction: no other one may name them meanwhile.
    with deps.store.write() as conn:
        for digest in dict.fromkeys(digests):
            if not is_used(conn, digest) and forget_artifact(conn, ctx.project, digest):
                deps.blobs.remove(digest)


def read_artifact(
    deps: Deps, ctx: Ctx, digest: str, offset: int = 0
) -> tuple[int, Iterator[bytes]]:
    """Total length in bytes, and the bytes from ``offset`` on, at most 1 MiB at a time.

    Raises NotFoundError when this project has no such artifact, InvalidError for a bad offset.
    """
    with deps.store.read() as conn:
        length = artifact_length(conn, ctx.project, digest)
    if length is None:
        raise NotFoundError(f"artifact {digest} is not stored here")
    return length, deps.blobs.open_reader(digest, offset)

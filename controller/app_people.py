"""Contexts and identities for people and programs here. Keys go to private files only."""

import getpass
import os
import re
import sys
from pathlib import Path

from controller.app_identity import (
    CONTEXT_NAME,
    ContextFile,
    config_dir,
    read_context,
    register_context,
    still_good,
    write_file,
)
from controller.errors import ConflictError, DeniedError, InvalidError, UnauthenticatedError
from controller.services.certificates import check_certificate
from controller.services.context import Ctx, Deps
from controller.services.operators import IssuedIdentity, issue_identity
from controller.trust.authority import read_certificate
from controller.trust.names import Role

WORKER_NAME = "local-worker"
STDOUT = Path("-")


def write_contexts(
    deps: Deps, ctx: Ctx, data_dir: Path, controller: str, *, register: bool
) -> tuple[Path, str]:
    """Write ``operator.json`` and ``worker.json``; returns the worker's file, and what to tell.

    Certificates that are still good are kept. With `register` the operator's context becomes the
    current one of this user.
    """
    operator = _context(
        deps, ctx, data_dir / "operator.json", user_name(), Role.OPERATOR, controller
    )
    told = ""
    if register:
        name = register_context(config_dir(dict(os.environ)), operator)
        if name != operator.name:
            told = (
                f"the context {operator.name!r} is that of another controller that runs here;"
                f" this one is {name!r}: fleetctl --context {name}"
            )
    worker_file = data_dir / "worker.json"
    _context(deps, ctx, worker_file, WORKER_NAME, Role.WORKER, controller)
    return worker_file, told


def check_out(role: str, out: Path) -> None:
    """Before a certificate is issued: InvalidError when `out` cannot take it."""
    if role == Role.CONSUMER:
        if out == STDOUT:
            raise InvalidError("a consumer gets three files: name a directory with --out")
        if out.exists() and not out.is_dir():
            raise InvalidError(f"{out} is a file; a consumer gets a directory")
    elif out.is_dir():
        raise InvalidError(f"{out} is a directory; an {role} gets a file")


def write_identity(issued: IssuedIdentity, controller: str, out: Path) -> list[Path]:
    """What `operator issue` gives: a context FILE (``-``: standard output, and none is returned),
    or for consumers three PEM files in a DIR. `check_out` was asked before.
    """
    if issued.role == Role.CONSUMER:
        files = [out / "ca.pem", out / "cert.pem", out / "key.pem"]
        write_file(files[0], issued.ca_pem, 0o644)
        write_file(files[1], issued.certificate_pem, 0o644)
        write_file(files[2], issued.key_pem)
        return files
    context = _to_context(issued, issued.name, controller).to_json()
    if out == STDOUT:
        sys.stdout.buffer.write(context)
        sys.stdout.buffer.flush()
        return []
    write_file(out, context)
    return [out]


def _context(
    deps: Deps, ctx: Ctx, path: Path, name: str, role: Role, controller: str
) -> ContextFile:
    called = CONTEXT_NAME if role is Role.OPERATOR else name
    known = read_context(path)
    if known is not None and _usable(deps, ctx, known, role):
        context = ContextFile(
            called,
            controller,
            known.ca_pem,
            known.certificate_pem,
            known.key_pem,
            ctx.project,
        )
    else:
        context = _to_context(_issue(deps, ctx, name, role), called, controller)
    write_file(path, context.to_json())
    return context


def _usable(deps: Deps, ctx: Ctx, known: ContextFile, role: Role) -> bool:
    """Whether the certificate is ours, lives a while and the database knows it."""
    if not still_good(known, deps.authority, ctx.now):
        return False
    subject = read_certificate(known.certificate_pem).subject
    if subject is None or subject.role is not role:
        return False
    try:
        check_certificate(deps, ctx, role, subject.name, known.certificate_pem)
    except (UnauthenticatedError, DeniedError):
        return False
    return True


def _issue(deps: Deps, ctx: Ctx, name: str, role: Role) -> IssuedIdentity:
    try:
        return issue_identity(deps, ctx, name, role, again=True)
    except (ConflictError, InvalidError):  # taken by a device, revoked, or no name
        name = f"{role}-on-this-host"
        return issue_identity(deps, ctx, name, role, again=True, revived=True)


def user_name() -> str:
    """The user of this process, as far as that is a name for a certificate."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = ""
    return re.sub(r"[^a-z0-9-]+", "-", user.lower()).strip("-")[:63] or "admin"


def _to_context(issued: IssuedIdentity, name: str, controller: str) -> ContextFile:
    return ContextFile(name, controller, issued.ca_pem, issued.certificate_pem, issued.key_pem)

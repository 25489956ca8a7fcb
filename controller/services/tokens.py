"""Enrolment tokens: made, listed, revoked. The secret is told once and stored only as a hash."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from controller.errors import InvalidError, NotFoundError
from controller.services.context import Ctx, Deps
from controller.services.labels import check_label, refuse_versions
from controller.services.suggestions import suggest_names
from controller.store import events, tokens
from controller.store.session import fresh_id
from controller.store.tables import token as token_table
from controller.store.tokens import TokenRow
from controller.trust.tokens import Token, hash_secret, new_secret

DEFAULT_TTL_S = 24 * 3600.0
TTL_MAX_S = 365 * 86400.0
USES_MAX = 100_000

TokenView = TokenRow


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token and its text, which nobody can read again."""

    text: str
    info: TokenView


def create_token(
    deps: Deps,
    ctx: Ctx,
    *,
    uses: int = 1,
    ttl_s: float = DEFAULT_TTL_S,
    hardware_id: str = "",
    pending: bool = False,
    labels: Mapping[str, str] | None = None,
) -> NewToken:
    """A token for `uses` enrolments within `ttl_s` seconds; InvalidError for impossible values."""
    if not 1 <= uses <= USES_MAX:
        raise InvalidError(f"a token is good for 1 to {USES_MAX:,} enrolments, not {uses:,}")
    if not 1.0 <= ttl_s <= TTL_MAX_S:
        raise InvalidError("a token lives for 1 second to 365 days")
    if hardware_id and uses != 1:
        raise InvalidError("a token bound to a hardware id is good for one enrolment")
    for name, value in (labels or {}).items():
        check_label(name, value)
    secret = new_secret()
    with deps.store.write() as conn:
        refuse_versions(conn, ctx.project, labels or {})
        token_id = fresh_id(conn, token_table.c.token_id, lambda: ctx.ids.new("t"))
        tokens.insert_token(
            conn,
            token_id,
            ctx.project,
            hash_secret(secret),
            uses=uses,
            hardware_id=hardware_id or None,
            pending=pending,
            labels=labels or {},
            expires_at=ctx.now + timedelta(seconds=ttl_s),
            now=ctx.now,
            actor=ctx.actor,
        )
        details = {"token": token_id, "uses": uses, "pending": pending}
        events.append(conn, ctx.project, ctx.now, "token_created", ctx.actor, details=details)
        info = _get(tokens.get_token(conn, ctx.project, token_id), token_id)
    return NewToken(Token(secret, deps.authority.fingerprint).text(), info)


def list_tokens(deps: Deps, ctx: Ctx) -> list[TokenView]:
    """All tokens of the project, newest first."""
    with deps.store.read() as conn:
        return tokens.list_tokens(conn, ctx.project)


def revoke_token(deps: Deps, ctx: Ctx, token_id: str) -> TokenView:
    """No enrolment with it from now on; what enrolled stays. NotFoundError."""
    with deps.store.write() as conn:
        row = tokens.get_token(conn, ctx.project, token_id)
        if row is None:
            known = [one.token_id for one in tokens.list_tokens(conn, ctx.project)]
            raise NotFoundError(
                f"no token {token_id}", *suggest_names(token_id, known, "none was made yet")
            )
        if not row.revoked:
            tokens.revoke_token(conn, token_id)
            details = {"token": token_id}
            events.append(conn, ctx.project, ctx.now, "token_revoked", ctx.actor, details=details)
        return _get(tokens.get_token(conn, ctx.project, token_id), token_id)


def _get(row: TokenRow | None, token_id: str) -> TokenRow:
    if row is None:
        raise NotFoundError(
            f"no token {token_id}", "`fleetctl admin token list` shows those there are"
        )
    return row

"""What /metrics is made of in this process, and the token that callers from elsewhere bring."""

import secrets
from collections.abc import Callable

from controller.app_identity import write_file
from controller.clock import Clock
from controller.errors import InvalidError
from controller.mqtt.ingest import Ingest
from controller.services.context import Deps
from controller.services.status import ProcessFacts
from controller.settings import Settings
from controller.web.health import Metered
from controller.web.metrics import MetricsPage, Own

LEAST_CHARS = 16


def make_metered(
    settings: Settings,
    deps: Deps,
    clock: Clock,
    process: Callable[[], ProcessFacts],
    ingest: Ingest,
) -> Metered:
    """The page and its token. Raises InvalidError for a token file that cannot be used."""

    def own() -> Own:
        facts = process()
        return Own(
            version=facts.version,
            started_at=facts.started_at,
            broker_ok=facts.broker_ok,
            workers=facts.workers,
            messages=dict(ingest.counts),
            queued=ingest.queued(),
        )

    return Metered(MetricsPage(deps, clock, own).text, metrics_token(settings))


def metrics_token(settings: Settings) -> str:
    """The token in the file that is set, or in the one of the data directory, made when absent."""
    path = settings.token_file()
    if not settings.metrics_token_file and not path.exists():
        write_file(path, f"{secrets.token_urlsafe(32)}\n".encode("ascii"))
    try:
        token = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidError(
            f"the token of /metrics cannot be read from {path}: {error}",
            "metrics_token_file names it; empty makes one in the data directory",
        ) from error
    if len(token) < LEAST_CHARS:
        raise InvalidError(
            f"the token of /metrics in {path} has {len(token)} characters, "
            f"at least {LEAST_CHARS} are needed",
            "for example: openssl rand -hex 32",
        )
    return token

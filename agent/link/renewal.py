"""Renews the device's certificate at two thirds of its life, with jitter.

Refuses to give up a working certificate: the new one is kept beside it, has to say hello once, and
only then takes its place.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

from agent.domain.ports import Identity, IdentityStore
from agent.link.backoff import Backoff
from agent.link.channel import Credentials
from agent.link.errors import LinkError, TrustError
from agent.link.keys import read_certificate
from agent.link.seals import INLINE, Seals

PURPOSE = "renewal"
SPREAD = 0.05  # of the whole life, either way


def credentials_of(identity: Identity) -> Credentials:
    """What a channel needs of an identity."""
    return Credentials(identity.ca_pem, identity.certificate_pem, identity.key_pem)


def renewal_due_at(certificate_path: str, backoff: Backoff) -> datetime:
    """When to renew; another moment at every call, so ask once. ValueError when unreadable."""
    facts = read_certificate(certificate_path)
    life_s = (facts.not_after - facts.not_before).total_seconds()
    shift_s = backoff.spread(life_s, SPREAD) - life_s
    return facts.renew_at() + timedelta(seconds=shift_s)


def renew(
    store: IdentityStore,
    ask: Callable[[bytes], tuple[bytes, bytes]],
    prove: Callable[[Credentials], None],
    seals: Seals = INLINE,
) -> Identity:
    """Renew, prove and promote; gives the identity in use now. LinkError, StoreError.

    `ask` sends a certificate request and gives certificate and authority; `prove` makes one call
    with the new credentials and raises when it fails. A kill anywhere is picked up the next time.
    """
    current = store.current()
    if current is None:
        raise TrustError("this device is not enrolled", "lighterman-agent enroll --help")
    candidate = store.next()
    if candidate is not None:
        try:
            prove(credentials_of(candidate))
        except LinkError as error:
            if error.retryable:
                raise
            candidate = None  # refused for good, expired perhaps: ask for another
    if candidate is None:
        candidate = _obtain(store, current, ask, seals)
        prove(credentials_of(candidate))
    store.promote()
    return candidate


def _obtain(
    store: IdentityStore,
    current: Identity,
    ask: Callable[[bytes], tuple[bytes, bytes]],
    seals: Seals,
) -> Identity:
    kept = store.request(PURPOSE)
    if kept is None:
        made = seals.new_key_request(current.device_id)
        store.keep_request(PURPOSE, made.key_pem, made.csr_pem)
        kept = (made.key_pem, made.csr_pem)
    key_pem, csr_pem = kept
    certificate_pem, ca_pem = ask(csr_pem)
    try:
        fitting = seals.fits_key(certificate_pem, key_pem)
    except ValueError:
        fitting = False
    if not fitting:
        store.drop_request(PURPOSE)
        raise TrustError("the renewed certificate does not belong to the key of this device")
    # The authority stays the one from enrolment: its change is no matter of a renewal.
    del ca_pem
    candidate = replace(current, certificate_pem=certificate_pem, key_pem=key_pem)
    store.keep_next(candidate)
    store.drop_request(PURPOSE)
    return candidate

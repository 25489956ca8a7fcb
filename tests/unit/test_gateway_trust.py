"""Trust as functions of bytes: certificates, requests, tokens, signatures."""

from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from controller.errors import InvalidError
from controller.trust.authority import (
    DEVICE_LIFE_MAX_S,
    Authority,
    read_certificate,
    read_request,
)
from controller.trust.names import RESERVED, Role, Subject, check_name, parse_uri
from controller.trust.signing import Signer, key_id_of, verify
from controller.trust.tokens import Token, hash_secret, new_secret, parse_token
from tests.support.gateway import NOW, new_csr

AUTHORITY = Authority.create(NOW)


def issue(role: Role, name: str, life_s: float) -> x509.Certificate:
    made = AUTHORITY.new_identity(Subject(role, name), NOW, life_s, ["127.0.0.1", "c.example"])
    return x509.load_pem_x509_certificate(made.issued.pem)


def test_a_certificate_carries_name_and_role_and_is_signed_by_the_authority() -> None:
    certificate = issue(Role.OPERATOR, "ana", 3600.0)
    ca = x509.load_pem_x509_certificate(AUTHORITY.certificate_pem)
    certificate.verify_directly_issued_by(ca)
    presented = read_certificate(certificate.public_bytes(serialization.Encoding.PEM))
    assert presented.subject == Subject(Role.OPERATOR, "ana")
    common = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    assert [each.value for each in common] == ["ana"]


@pytest.mark.parametrize("life_s", [60.0, 86400.0, DEVICE_LIFE_MAX_S, 400 * 86400.0])
def test_a_device_certificate_never_lives_longer_than_30_days(life_s: float) -> None:
    certificate = issue(Role.DEVICE, "pi-1", life_s)
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert life <= timedelta(days=30)
    assert certificate.not_valid_before_utc <= NOW < certificate.not_valid_after_utc


def test_only_a_server_may_serve_and_only_others_may_call() -> None:
    usage = x509.ExtendedKeyUsage
    for role in Role:
        found = issue(role, "x1", 60.0).extensions.get_extension_for_class(usage).value
        server = ExtendedKeyUsageOID.SERVER_AUTH
        assert (server in found) == (role is Role.SERVER)
        assert len(list(found)) == 1


def test_an_issued_certificate_cannot_issue_others() -> None:
    constraints = issue(Role.DEVICE, "pi-1", 60.0).extensions.get_extension_for_class(
        x509.BasicConstraints
    )
    assert constraints.critical
    assert not constraints.value.ca


def test_a_request_is_taken_only_with_its_own_signature_and_curve() -> None:
    good, _ = new_csr()
    assert isinstance(read_request(good), ec.EllipticCurvePublicKey)
    other_curve, _ = new_csr(ec.SECP384R1())
    with pytest.raises(InvalidError):
        read_request(other_curve)
    foreign = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name)
    with pytest.raises(InvalidError):
        read_request(
            request.sign(foreign, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        )


def test_a_request_with_a_swapped_key_is_refused() -> None:
    mine, _ = new_csr()
    theirs, _ = new_csr()
    spki = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    der = x509.load_pem_x509_csr(mine).public_bytes(serialization.Encoding.DER)
    swapped = der.replace(
        x509.load_pem_x509_csr(mine).public_key().public_bytes(*spki),
        x509.load_pem_x509_csr(theirs).public_key().public_bytes(*spki),
    )
    assert swapped != der
    pem = x509.load_der_x509_csr(swapped).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(InvalidError, match="not signed by its own key"):
        read_request(pem)


@given(st.binary(max_size=9000))
def test_garbage_is_no_request(data: bytes) -> None:
    with pytest.raises(InvalidError):
        read_request(data)


def test_an_authority_survives_its_files() -> None:
    again = Authority.load(AUTHORITY.certificate_pem, AUTHORITY.key_pem)
    assert again.fingerprint == AUTHORITY.fingerprint
    with pytest.raises(InvalidError):
        Authority.load(AUTHORITY.certificate_pem, Authority.create(NOW).key_pem)


def test_the_revocation_list_names_what_was_revoked() -> None:
    made = AUTHORITY.new_identity(Subject(Role.DEVICE, "pi-1"), NOW, 60.0)
    pem = AUTHORITY.revocation_list([(made.issued.serial, NOW)], NOW, 3600.0)
    found = x509.load_pem_x509_crl(pem)
    assert [f"{each.serial_number:x}" for each in found] == [made.issued.serial]


@pytest.mark.parametrize("name", ["", "A", "a_b", "a/b", "a+", "#", "a" * 64, "ä", *RESERVED])
def test_names_that_could_fool_a_broker_are_refused(name: str) -> None:
    with pytest.raises(InvalidError):
        check_name(name, "device id")


@given(st.sampled_from(Role), st.from_regex(r"[a-z0-9-]{1,63}", fullmatch=True))
def test_a_subject_comes_back_from_its_uri(role: Role, name: str) -> None:
    subject = Subject(role, name)
    assert parse_uri(subject.uri()) == subject


@given(st.text())
def test_foreign_uris_name_nobody(text: str) -> None:
    assert parse_uri(text) is None or text.startswith("urn:lighterman:")


def test_a_token_comes_back_from_its_text() -> None:
    token = Token(new_secret(), AUTHORITY.fingerprint)
    assert parse_token(f" {token.text()}\n") == token
    assert hash_secret(token.secret) != hash_secret(new_secret())
    assert token.secret not in hash_secret(token.secret)


@given(st.text())
def test_other_text_is_no_token(text: str) -> None:
    with pytest.raises(InvalidError):
        parse_token(text)


def test_signatures_hold_for_exactly_these_bytes_and_this_key() -> None:
    signer = Signer.load(Signer.create().key_pem())
    (public,) = signer.public_keys()
    (signature,) = signer.sign(b"manifest")
    assert signature.key_id == public.key_id == key_id_of(public.public_key)
    assert verify(public.public_key, signature.signature, b"manifest")
    assert not verify(public.public_key, signature.signature, b"manifest ")
    (other,) = Signer.create().public_keys()
    assert not verify(other.public_key, signature.signature, b"manifest")

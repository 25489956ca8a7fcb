"""Makes the device's key and certificate request, and reads certificates. Heavy imports are lazy.

Refuses to store anything and to send a private key anywhere: only the request leaves the device.
"""

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True, slots=True)
class KeyRequest:
    """A private key and the certificate request made with it, both PEM."""

    key_pem: bytes
    csr_pem: bytes


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """What the agent needs to know of a certificate."""

    common_name: str
    not_before: datetime
    not_after: datetime

    def renew_at(self) -> datetime:
        """When two thirds of its life are over."""
        return self.not_before + (self.not_after - self.not_before) * 2 / 3


def new_key_request(common_name: str) -> KeyRequest:
    """A fresh P-256 key and its request. The controller decides the names in the certificate."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return KeyRequest(
        key_pem=key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        csr_pem=request.public_bytes(serialization.Encoding.PEM),
    )


def read_certificate(path: str) -> CertificateFacts:
    """Name and life of the first certificate in a PEM file; ValueError when it is none.

    By the interpreter's own parser: the heavy library stays out of memory for this question.
    """
    try:
        decoded = ssl._ssl._test_decode_cert(path)  # type: ignore[attr-defined]
        names = {key: value for part in decoded["subject"] for key, value in part}
        return CertificateFacts(
            common_name=names.get("commonName", ""),
            not_before=_utc(decoded["notBefore"]),
            not_after=_utc(decoded["notAfter"]),
        )
    except (OSError, KeyError, ssl.SSLError) as error:
        raise ValueError(f"{path} is no certificate") from error


def _utc(text: str) -> datetime:
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(text), UTC)


def fits_key(certificate_pem: bytes, key_pem: bytes) -> bool:
    """Whether the certificate was issued for this private key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    certificate = x509.load_pem_x509_certificate(certificate_pem)
    key = serialization.load_pem_private_key(key_pem, password=None)
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    der = serialization.Encoding.DER
    return bool(
        certificate.public_key().public_bytes(der, spki) == key.public_key().public_bytes(der, spki)
    )

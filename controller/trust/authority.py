"""The local certificate authority: bytes in, bytes out. Persists nothing, reads no clock.

EC P-256 throughout. The common name is what the broker sees; the URI subject alternative name
carries the role.
"""

import hashlib
import ipaddress
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from controller.errors import InvalidError
from controller.trust.names import Role, Subject, parse_uri

CA_LIFE_S = 20 * 365 * 86400.0
DEVICE_LIFE_MAX_S = 30 * 86400.0
BACKDATE_S = 300.0  # a device's clock may run a little behind ours


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that was just made, with what the store keeps of it."""

    serial: str
    subject: Subject
    public_key_digest: str
    pem: bytes
    not_before: datetime
    not_after: datetime


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate and its private key, both PEM."""

    issued: Issued
    key_pem: bytes


@dataclass(frozen=True, slots=True)
class Presented:
    """What a presented certificate says of itself."""

    serial: str
    subject: Subject | None
    not_before: datetime
    not_after: datetime


def new_key() -> ec.EllipticCurvePrivateKey:
    """A fresh P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_to_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """PKCS#8 PEM without password; the file mode protects it."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def public_key_digest(key: ec.EllipticCurvePublicKey) -> str:
    """SHA-256 of the SubjectPublicKeyInfo, as ``sha256:<hex>``."""
    der = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return "sha256:" + hashlib.sha256(der).hexdigest()


def read_request(csr_pem: bytes) -> ec.EllipticCurvePublicKey:
    """The public key of a certificate request whose holder proved to have the private one.

    What the request says of its subject is ignored: the controller decides. Raises InvalidError.
    """
    if len(csr_pem) > 8192:
        raise InvalidError("the certificate request is larger than 8 KiB")
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        key = request.public_key()
        genuine = request.is_signature_valid
    except Exception as error:  # foreign bytes: whatever the parser raises
        raise InvalidError("the certificate request cannot be read") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidError("the certificate request does not hold an EC P-256 key")
    if not genuine:
        raise InvalidError("the certificate request is not signed by its own key")
    return key


def read_certificate(pem: bytes) -> Presented:
    """Serial, subject, begin and end of a certificate. Says nothing of who signed it."""
    certificate = x509.load_pem_x509_certificate(pem)
    subject: Subject | None = None
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        for uri in names.get_values_for_type(x509.UniformResourceIdentifier):
            subject = parse_uri(uri) or subject
    except x509.ExtensionNotFound:
        pass
    return Presented(
        serial_text(certificate.serial_number),
        subject,
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
    )


def serial_text(serial: int) -> str:
    """How serials are stored: lower-case hex without prefix."""
    return f"{serial:x}"


class Authority:
    """A CA certificate with its key."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._certificate = certificate
        self._key = key

    @classmethod
    def create(cls, now: datetime, name: str = "Lighterman CA") -> "Authority":
        """A new self-signed CA, good for 20 years."""
        key = new_key()
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(seconds=BACKDATE_S))
            .not_valid_after(now + timedelta(seconds=CA_LIFE_S))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(identifier, critical=False)
            .add_extension(_key_usage(ca=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate, key)

    @classmethod
    def load(cls, certificate_pem: bytes, key_pem: bytes) -> "Authority":
        """From PEM; InvalidError when key and certificate do not belong together."""
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        key = serialization.load_pem_private_key(key_pem, password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise InvalidError("the CA key is not an EC key")
        if certificate.public_key() != key.public_key():
            raise InvalidError("CA certificate and CA key do not belong together")
        return cls(certificate, key)

    @property
    def not_before(self) -> datetime:
        """Before that time nobody takes what it signed."""
        return self._certificate.not_valid_before_utc

    @property
    def certificate_pem(self) -> bytes:
        """What everybody may know."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """What nobody else may know."""
        return key_to_pem(self._key)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate's DER, hex: the last part of an enrolment token."""
        return hashlib.sha256(
            self._certificate.public_bytes(serialization.Encoding.DER)
        ).hexdigest()

    def issue(
        self,
        subject: Subject,
        public_key: ec.EllipticCurvePublicKey,
        now: datetime,
        life_s: float,
        hosts: Sequence[str] = (),
    ) -> Issued:
        """A certificate for `subject`; `hosts` are DNS names or addresses of a server.

        A device's certificate is cut to 30 days, counted from its backdated start.
        """
        backdate_s = min(BACKDATE_S, life_s * 0.05)
        if subject.role is Role.DEVICE:
            life_s = min(life_s, DEVICE_LIFE_MAX_S - backdate_s)
        not_before = (now - timedelta(seconds=backdate_s)).replace(microsecond=0)
        not_after = (now + timedelta(seconds=life_s)).replace(microsecond=0)
        serial = secrets.randbits(127) | (1 << 126)  # fixed length, never zero
        server = subject.role is Role.SERVER
        usage = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject.name)]))
            .issuer_name(self._certificate.subject)
            .public_key(public_key)
            .serial_number(serial)
            .not_valid_before(not_before)
            .not_valid_after(not_after)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_alternative_names(subject, hosts), critical=False)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        return Issued(
            serial=serial_text(serial),
            subject=subject,
            public_key_digest=public_key_digest(public_key),
            pem=certificate.public_bytes(serialization.Encoding.PEM),
            not_before=not_before,
            not_after=not_after,
        )

    def new_identity(
        self, subject: Subject, now: datetime, life_s: float, hosts: Sequence[str] = ()
    ) -> Identity:
        """A fresh key and its certificate, for those whose key is made here."""
        key = new_key()
        return Identity(self.issue(subject, key.public_key(), now, life_s, hosts), key_to_pem(key))

    def revocation_list(
        self, revoked: Iterable[tuple[str, datetime]], now: datetime, life_s: float
    ) -> bytes:
        """A signed list (PEM) of revoked serials, for the broker."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(now - timedelta(seconds=BACKDATE_S))
            .next_update(now + timedelta(seconds=life_s))
        )
        for serial, at in revoked:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(int(serial, 16))
                .revocation_date(at)
                .build()
            )
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _alternative_names(subject: Subject, hosts: Sequence[str]) -> x509.SubjectAlternativeName:
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(subject.uri())]
    for host in hosts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return x509.SubjectAlternativeName(names)


def _key_usage(ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )

"""Certificates as values: an authority of our own and what it signs. ECDSA P-256, PEM."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CLOCK_SKEW = 300.0
"""How long before its making a certificate begins, in seconds: other machines' clocks may be behind."""


class PkiError(ValueError):
    """What should be a certificate or a key is none."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate. Two are equal if they are the same; times are in seconds since the epoch."""

    der: bytes = field(repr=False)
    begins: float = field(compare=False)
    ends: float = field(compare=False)

    @property
    def pem(self) -> str:
        """In the form of Secrets, files and caBundles."""
        return self._parsed().public_bytes(serialization.Encoding.PEM).decode()

    @property
    def dns_names(self) -> frozenset[str]:
        """The names it is for."""
        try:
            names = self._parsed().extensions.get_extension_for_class(x509.SubjectAlternativeName)
        except x509.ExtensionNotFound:
            return frozenset()
        return frozenset(names.value.get_values_for_type(x509.DNSName))

    def signed_by(self, authority: Certificate) -> bool:
        """Whether `authority` signed it; says nothing of the time."""
        try:
            self._parsed().verify_directly_issued_by(authority._parsed())
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True

    def belongs_to(self, key: str) -> bool:
        """Whether `key` (PEM) is its private key."""
        try:
            public = serialization.load_pem_private_key(key.encode(), None).public_key()
        except (ValueError, TypeError):
            return False
        return _public(public) == _public(self._parsed().public_key())

    def _parsed(self) -> x509.Certificate:
        return x509.load_der_x509_certificate(self.der)


def read_certificates(pem: str) -> tuple[Certificate, ...]:
    """Those in `pem`, in their order. PkiError if there is none, or one cannot be read."""
    try:
        return tuple(_value(item) for item in x509.load_pem_x509_certificates(pem.encode()))
    except ValueError as error:
        raise PkiError(f"no certificate: {error}") from error


def bundle(certificates: Iterable[Certificate]) -> str:
    """All of them as one PEM text."""
    return "".join(certificate.pem for certificate in certificates)


def make_authority(name: str, now: float, lifetime: float) -> tuple[Certificate, str]:
    """A new authority, which can sign servers' certificates and nothing further, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    # A name of its own: verifiers look for the issuer by name, and an old authority lives on beside a new one.
    subject = _name(f"{name} {x509.random_serial_number():040x}"[:64])
    public = key.public_key()
    made = (
        _builder(subject, subject, public, now, now + lifetime)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _value(made), _pem(key)


def issue(
    names: Sequence[str], now: float, lifetime: float, authority: Certificate, authority_key: str
) -> tuple[Certificate, str]:
    """A server's certificate for `names`, which ends no later than its authority, and its key."""
    signer = serialization.load_pem_private_key(authority_key.encode(), None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise PkiError("the authority's key is not one of Hawse's making")
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = authority._parsed()
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    made = (
        _builder(_name(names[0][:64]), issuer.subject, key.public_key(), now, min(now + lifetime, authority.ends))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(signer, hashes.SHA256())
    )
    return _value(made), _pem(key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: float, end: float
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime.fromtimestamp(int(now - CLOCK_SKEW), datetime.UTC))
        .not_valid_after(datetime.datetime.fromtimestamp(int(end), datetime.UTC))
    )


def _usage(*, sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=sign, crl_sign=sign, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _value(certificate: x509.Certificate) -> Certificate:
    return Certificate(
        certificate.public_bytes(serialization.Encoding.DER),
        certificate.not_valid_before_utc.timestamp(),
        certificate.not_valid_after_utc.timestamp(),
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> str:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()


def _public(key: object) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(serialization.Encoding.DER, form)  # type: ignore[attr-defined, no-any-return]

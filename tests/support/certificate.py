"""A certificate for loopback, made for one test and signed by an authority of its own."""

import ipaddress
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """Where a certificate, its key and the authority that signed it are, as PEM files."""

    path: Path
    key_path: Path
    ca_path: Path

    def server_context(self) -> ssl.SSLContext:
        """What a server that shows this certificate needs."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.path, self.key_path)
        return context


def certificate(folder: Path) -> Certificate:
    """Make a certificate (ECDSA) for 127.0.0.1 and localhost, valid for a day, and write it to `folder`."""
    now = datetime.now(UTC)
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority of a test")])
    known_as = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    usage = {
        "content_commitment": False,
        "key_encipherment": False,
        "data_encipherment": False,
        "key_agreement": False,
        "encipher_only": False,
        "decipher_only": False,
    }

    def builder(name: x509.Name, public: ec.EllipticCurvePublicKey, *, authority: bool) -> x509.CertificateBuilder:
        """Begin a certificate. Strict checks want all these extensions (RFC 5280, 4.2.1)."""
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(authority_name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - HOUR)
            .not_valid_after(now + DAY)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(
                x509.KeyUsage(digital_signature=not authority, key_cert_sign=authority, crl_sign=authority, **usage),
                critical=True,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
            )
        )

    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    authority = builder(authority_name, authority_key.public_key(), authority=True)
    leaf = builder(name, key.public_key(), authority=False)
    leaf = leaf.add_extension(x509.SubjectAlternativeName(known_as), critical=False)
    made = Certificate(path=folder / "server.pem", key_path=folder / "server.key", ca_path=folder / "authority.pem")
    pem = serialization.Encoding.PEM
    made.ca_path.write_bytes(authority.sign(authority_key, hashes.SHA256()).public_bytes(pem))
    made.path.write_bytes(leaf.sign(authority_key, hashes.SHA256()).public_bytes(pem))
    made.key_path.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    made.key_path.chmod(0o600)
    return made

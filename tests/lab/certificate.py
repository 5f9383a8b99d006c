"""A certificate authority of the lab's own, and certificates of localhost by it."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def make_certificate(folder: Path) -> tuple[Path, Path, Path]:
    """Writes ca.pem, cert.pem and key.pem into `folder`, for localhost and 127.0.0.1, good for a day."""
    authority, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = _name("vmbackup lab")
    root = (_builder(issuer, issuer, authority, authority)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs=True), critical=True))
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    leaf = (_builder(_name("localhost"), issuer, own, authority)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(names, critical=False))
    files = folder / "ca.pem", folder / "cert.pem", folder / "key.pem"
    for file, builder in zip(files, (root, leaf), strict=False):
        file.write_bytes(builder.sign(authority, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    files[2].write_bytes(own.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                           serialization.NoEncryption()))
    return files


def make_pki(folder: Path) -> Path:
    """`folder` with what QEMU and libvirt want of both sides, by their names: ca-cert, server-cert, client-key ...

    The server is localhost and 127.0.0.1.
    """
    folder.mkdir(mode=0o755)
    ca, certificate, key = make_certificate(folder)
    ca.rename(folder / "ca-cert.pem")
    for side in ("server", "client"):
        (folder / f"{side}-cert.pem").write_bytes(certificate.read_bytes())
        (folder / f"{side}-key.pem").write_bytes(key.read_bytes())
    for path in (certificate, key):
        path.unlink()
    return folder


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(subject: x509.Name, issuer: x509.Name, own: ec.EllipticCurvePrivateKey,
             signer: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(own.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False))


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(digital_signature=True, content_commitment=False, key_encipherment=not signs,
                         data_encipherment=False, key_agreement=False, key_cert_sign=signs, crl_sign=signs,
                         encipher_only=False, decipher_only=False)

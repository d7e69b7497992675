"""Keys of a federation: a certificate authority, the SuperLink's certificate, and a key pair for every node.

    DIR/ca.crt, ca.key           the authority; nodes and `flwr` trust what it has signed
    DIR/server.crt, server.key   the SuperLink's certificate, for its names and addresses
    DIR/nodes/NAME, NAME.pub     a node's key pair in OpenSSH format; the SuperLink gets the public key

Keys are elliptic-curve keys over P-384, which Flower requires for nodes. Existing files are never overwritten, and only
missing ones are created, so the same command adds nodes.
"""

import ipaddress
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from task.schema import ConfigError
from task.storage.room import is_full

HERE = ("localhost", "127.0.0.1")  # names by which Flower's own processes and `flwr` reach the SuperLink on its machine
NODE = re.compile(r"[A-Za-z0-9][\w.\-]{0,63}(?<!\.pub)")
LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_\-]{0,61}[A-Za-z0-9])?"
HOST = re.compile(rf"(?=.*[A-Za-z])(?=.{{1,253}}$)({LABEL}\.)*{LABEL}")
SKEW = timedelta(hours=1)  # tolerance for a node's clock that is behind
Issuer = tuple[x509.Name, EllipticCurvePrivateKey]


@dataclass(frozen=True)
class Pair:
    """The paths of the two halves of a key."""

    private: Path
    public: Path

    @property
    def there(self) -> bool:
        """Return whether both halves exist."""
        return self.private.exists() and self.public.exists()

    @property
    def problems(self) -> list[str]:
        """Return a problem if one half exists without the other."""
        both = [(self.private, self.public), (self.public, self.private)]
        return [
            f"{one} is there, but not {other}; move it away" for one, other in both if one.exists() > other.exists()
        ]

    def write(self, private: bytes, public: bytes) -> None:
        """Write both halves. Only the owner can read the private half, from the first byte on.

        Raises FileExistsError instead of overwriting a file.
        """
        for path, content, mode in ((self.private, private, 0o600), (self.public, public, 0o644)):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(content)


@dataclass(frozen=True)
class Keys:
    """All keys of a federation. `names` are host names and addresses by which nodes reach the SuperLink; certificates
    are valid for `days`.
    """

    folder: Path
    names: Sequence[str]
    nodes: Sequence[str]
    days: int

    def make(self) -> list[Path]:
        """Create the missing keys and return the paths of their public halves.

        Raises ConfigError with all problems, before anything is written, and for a folder that cannot be written.
        """
        if problems := self._problems():
            raise ConfigError(problems)
        try:
            return self._make()
        except OSError as error:
            if is_full(error):
                raise
            raise ConfigError([f"{self.folder} cannot be written: {error.strerror}"]) from error

    def _make(self) -> list[Path]:
        wanted: list[tuple[Pair, Callable[[], tuple[bytes, bytes]]]]
        wanted = [(self.authority, self._authority), (self.server, self._server)]
        wanted += [(self.node(name), partial(_node, name)) for name in self.nodes]
        made = []
        for pair, content in wanted:
            if not pair.there:
                pair.write(*content())
                made.append(pair.public)
        return made

    @property
    def authority(self) -> Pair:
        """Return the paths of the authority's key and certificate."""
        return Pair(self.folder / "ca.key", self.folder / "ca.crt")

    @property
    def server(self) -> Pair:
        """Return the paths of the SuperLink's key and certificate."""
        return Pair(self.folder / "server.key", self.folder / "server.crt")

    def node(self, name: str) -> Pair:
        """Return the paths of a node's key pair."""
        return Pair(self.folder / "nodes" / name, self.folder / "nodes" / f"{name}.pub")

    def _problems(self) -> list[str]:
        found = [
            f"--names: '{name}' is neither a host name nor an address" for name in self.names if not _is_host(name)
        ]
        found += [f"--nodes: '{name}' must consist of letters, digits, '.', '-' and '_'"
                  for name in self.nodes if not NODE.fullmatch(name)]  # fmt: skip
        found += [f"--nodes names '{n}' twice" for n in dict.fromkeys(self.nodes) if self.nodes.count(n) > 1]
        found += [f"--days {self.days} must be above 0"] if self.days < 1 else []
        for pair in (self.authority, self.server, *map(self.node, self.nodes)):
            found += pair.problems
        if self.server.there and not self.authority.there:
            found.append(f"{self.server.public} is there, but not the authority that signed it; move it away")
        return found + (self._other_names() if self.server.there else self._no_names())

    def _no_names(self) -> list[str]:
        return [] if self.names else ["--names: give the host names and addresses by which nodes reach the SuperLink"]

    def _other_names(self) -> list[str]:
        certificate = x509.load_pem_x509_certificate(self.server.public.read_bytes())
        known = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        lacking = [name for name in self.names if _general(name) not in known] if all(map(_is_host, self.names)) else []
        place = f"{self.server.public} and {self.server.private.name}"
        return [f"{place} are for other names than {', '.join(lacking)}; move them away"] if lacking else []

    def _authority(self) -> tuple[bytes, bytes]:
        key, name = generate_private_key(SECP384R1()), _called("thistledown authority")
        usage = x509.KeyUsage(
            key_cert_sign=True, crl_sign=True, digital_signature=False, content_commitment=False, encipher_only=False,
            key_encipherment=False, data_encipherment=False, key_agreement=False, decipher_only=False,
        )  # fmt: skip
        extensions = [(x509.BasicConstraints(ca=True, path_length=0), True), (usage, True)]
        return self._signed(key, name, extensions, (name, key))

    def _server(self) -> tuple[bytes, bytes]:
        signing = load_pem_private_key(self.authority.private.read_bytes(), password=None)
        if not isinstance(signing, EllipticCurvePrivateKey):
            raise ConfigError([f"{self.authority.private} is not an elliptic-curve key"])
        subject = x509.load_pem_x509_certificate(self.authority.public.read_bytes()).subject
        hosts = [_general(name) for name in dict.fromkeys([*self.names, *HERE])]
        extensions = [
            (x509.SubjectAlternativeName(hosts), False),
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        ]
        return self._signed(generate_private_key(SECP384R1()), _called("superlink"), extensions, (subject, signing))

    def _signed(
        self,
        key: EllipticCurvePrivateKey,
        subject: x509.Name,
        extensions: Sequence[tuple[x509.ExtensionType, bool]],
        issuer: Issuer,
    ) -> tuple[bytes, bytes]:
        """Return the key and its certificate, in PEM."""
        now, (name, signing) = datetime.now(UTC), issuer
        certificate = x509.CertificateBuilder(
            name, subject, key.public_key(), x509.random_serial_number(), now - SKEW, now + timedelta(days=self.days)
        )
        for extension, critical in [
            *extensions,
            (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
            (x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key()), False),
        ]:
            certificate = certificate.add_extension(extension, critical)
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return private, certificate.sign(signing, hashes.SHA384()).public_bytes(Encoding.PEM)


def _node(name: str) -> tuple[bytes, bytes]:
    """Return a new key pair in OpenSSH format, with the node's name as comment."""
    key = generate_private_key(SECP384R1())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()), public + f" {name}\n".encode()


def _called(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _is_host(name: str) -> bool:
    return _address(name) is not None or HOST.fullmatch(name) is not None


def _general(name: str) -> x509.GeneralName:
    address = _address(name)
    return x509.DNSName(name) if address is None else x509.IPAddress(address)


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None

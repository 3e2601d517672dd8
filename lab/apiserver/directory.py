"""The directory of one cluster: certificates, tokens, kubeconfig, what it stores, and the address it answers at.

Everything but the address is made once and kept, so that a client that trusts ``ca.crt`` goes on trusting it after a
restart.
"""

import os
import secrets
import ssl
from pathlib import Path
from urllib.parse import urlsplit

import trustme
import yaml

_ADMIN = "admin"


class Directory:
    """Paths below ``root``, which is made where it does not exist, readable by its owner alone."""

    def __init__(self, root: Path) -> None:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.root = root
        self.ca = root / "ca.crt"
        self.tokens = root / "tokens.csv"
        self.kubeconfig = root / "kubeconfig"
        self.url = root / "url"
        self.journal = root / "journal.jsonl"
        self.etcd = root / "etcd"
        self.log = root / "apiserver.log"

    def tls(self, host: str) -> ssl.SSLContext:
        """The server's TLS context, for ``host`` and for loopback."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.certificate(host))
        return context

    def certificate(self, host: str) -> Path:
        """The PEM file of the server's key and its certificate, for ``host`` and for loopback."""
        server = self.root / "server.pem"
        hosts = self.root / "server.hosts"
        names = ",".join(dict.fromkeys([host, "127.0.0.1", "::1", "localhost"]))
        if not server.exists() or not hosts.exists() or hosts.read_text() != names:
            leaf = self._authority().issue_cert(*names.split(","))
            chain = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
            _write(server, leaf.private_key_pem.bytes() + chain)
            _write(hosts, names.encode())
        return server

    def signing_key(self) -> Path:
        """The PEM file of the key that signs service account tokens: the CA's, so that a restart keeps it."""
        self._authority()
        return self.root / "ca.key"

    def _authority(self) -> trustme.CA:
        key = self.root / "ca.key"
        if key.exists() and self.ca.exists():
            return trustme.CA.from_pem(self.ca.read_bytes(), key.read_bytes())
        authority = trustme.CA(organization_name="Hawse lab cluster")
        _write(key, authority.private_key_pem.bytes())
        _write(self.ca, authority.cert_pem.bytes())
        return authority

    def admin_token(self) -> str:
        """The admin's token; makes a token file with that one user where there is none."""
        if not self.tokens.exists():
            _write(self.tokens, f'{secrets.token_urlsafe(32)},{_ADMIN},{_ADMIN},"system:masters"\n'.encode())
        return self.tokens.read_text().split(",", 1)[0]

    def last_port(self) -> int:
        """The port this cluster answered at before, or 0: clients find it again after a restart."""
        return urlsplit(self.url.read_text().strip()).port or 0 if self.url.exists() else 0

    def publish(self, url: str) -> None:
        """Write the address and the admin's kubeconfig."""
        named = "hawse-lab"
        cluster = {"server": url, "certificate-authority": str(self.ca.resolve())}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": named, "cluster": cluster}],
            "users": [{"name": _ADMIN, "user": {"token": self.admin_token()}}],
            "contexts": [{"name": named, "context": {"cluster": named, "user": _ADMIN}}],
            "current-context": named,
        }
        _write(self.kubeconfig, yaml.safe_dump(config, sort_keys=False).encode())
        _write(self.url, f"{url}\n".encode())


def _write(path: Path, content: bytes) -> None:
    """Write a whole file at once, readable by its owner alone."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.touch(mode=0o600)
    fresh.write_bytes(content)
    os.replace(fresh, path)

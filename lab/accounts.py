"""The users of a lab cluster: its admin, and the service accounts of deploy/base/rbac.yaml, known by static tokens."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from pathlib import Path

import yaml

NAMESPACE = "hawse-system"
ACCOUNTS = {
    "worker": "hawse-workers",
    "tickets": "hawse-tickets",
    "beat": "hawse-beat",
    "watch": "hawse-watch",
}
"""The service account of each process that speaks to the API server."""


def user_of(component: str) -> str:
    """The user name under which the API server knows a process."""
    return f"system:serviceaccount:{NAMESPACE}:{ACCOUNTS[component]}"


class Accounts:
    """The users of the cluster that will start on `directory`, whose tokens.csv this writes.

    `others` are users without any rights, each known by a token in `tokens`.
    """

    def __init__(self, directory: Path, others: Iterable[str] = ()) -> None:
        self.tokens = {name: secrets.token_urlsafe(24) for name in others}
        self._tokens = {component: secrets.token_urlsafe(24) for component in ACCOUNTS}
        # What the API server itself says of a service account's token.
        groups = f"system:serviceaccounts,system:serviceaccounts:{NAMESPACE}"
        lines = [f'{secrets.token_urlsafe(24)},admin,admin,"system:masters"']
        lines += [
            f'{token},{user_of(component)},{ACCOUNTS[component]},"{groups}"'
            for component, token in self._tokens.items()
        ]
        lines += [f"{token},{name},{name}," for name, token in self.tokens.items()]
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = directory / "tokens.csv"
        file.touch(mode=0o600)
        file.write_text("\n".join(lines) + "\n")

    def kubeconfigs(self, admin: Path, directory: Path) -> dict[str, Path]:
        """A kubeconfig for each process, like the `admin`'s but for the user, in `directory`."""
        config = yaml.safe_load(admin.read_text())
        files = {}
        for component, token in self._tokens.items():
            config["users"][0]["user"] = {"token": token}
            files[component] = directory / f"{component}.kubeconfig"
            files[component].touch(mode=0o600)
            files[component].write_text(yaml.safe_dump(config))
        return files

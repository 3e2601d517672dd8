"""Who is asking: bearer tokens from a file as kube-apiserver's ``--token-auth-file`` reads it.

Authentication only. There is no RBAC here: whoever has a token may do everything.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from lab.apiserver import errors
from lab.apiserver.objects import Json

_EVERYBODY = "system:authenticated"


class BadTokenFile(Exception):
    """A line of the token file lacks a token, a user or a uid."""


@dataclass(frozen=True, slots=True)
class User:
    """An authenticated user, as reviews and AdmissionReviews show it."""

    name: str
    uid: str
    groups: tuple[str, ...]

    def info(self) -> Json:
        """The ``authentication.k8s.io/v1 UserInfo``."""
        return {"username": self.name, "uid": self.uid, "groups": list(self.groups)}


class Tokens:
    """The users by token."""

    def __init__(self, users: dict[str, User]) -> None:
        self._users = users

    @classmethod
    def read(cls, path: Path) -> "Tokens":
        """Lines of ``token,user,uid,"group1,group2"``; groups are optional. Raises `BadTokenFile`."""
        users: dict[str, User] = {}
        with path.open(newline="") as file:
            for number, row in enumerate(csv.reader(file), 1):
                if not row:
                    continue
                if len(row) < 3 or not row[0].strip():
                    raise BadTokenFile(f'{path}, line {number}: write token,user,uid,"group1,group2"')
                token, name, uid = (item.strip() for item in row[:3])
                groups = [group.strip() for group in row[3].split(",") if group.strip()] if len(row) > 3 else []
                users[token] = User(name, uid, (*groups, _EVERYBODY))
        return cls(users)

    def user_of(self, token: str) -> User | None:
        return self._users.get(token)

    def authenticate(self, request: web.Request) -> User:
        """The user of a request. Raises `ApiError` 401 where the token is missing or unknown."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        user = self.user_of(token.strip()) if scheme.lower() == "bearer" else None
        if user is None:
            raise errors.unauthorized()
        return user

"""Questions about access. There is no RBAC here: every authenticated user may do everything, and the answers say so."""

from lab.apiserver.auth import Tokens, User
from lab.apiserver.objects import Json, dig

_ANONYMOUS = "system:unauthenticated"
_REASON = "the embedded cluster has no RBAC: every authenticated user may do everything"


def answer(plural: str, body: Json, user: User, tokens: Tokens) -> Json:
    """The review with its status filled in; ``plural`` is one of `discovery.REVIEWS`."""
    if plural == "tokenreviews":
        status = _token(body, tokens)
    elif plural == "selfsubjectreviews":
        status = {"userInfo": user.info()}
    elif plural == "selfsubjectrulesreviews":
        everything = {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}
        status = {"resourceRules": [everything], "nonResourceRules": [], "incomplete": False}
    elif plural == "subjectaccessreviews" and _ANONYMOUS in (dig(body, "spec", "groups") or ()):  # type: ignore[operator]
        status = {"allowed": False, "reason": "anonymous users have no access"}
    else:
        status = {"allowed": True, "reason": _REASON}
    return {**body, "metadata": body.get("metadata") or {}, "status": status}


def _token(body: Json, tokens: Tokens) -> Json:
    user = tokens.user_of(str(dig(body, "spec", "token") or ""))
    if user is None:
        return {"authenticated": False, "user": {}, "error": "invalid bearer token"}
    return {"authenticated": True, "user": user.info()}

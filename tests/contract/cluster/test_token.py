"""A pod's token is replaced in its file while the process runs."""

import datetime
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from kubernetes.config import incluster_config

from egress.adapters import cluster as adapter
from egress.adapters.cluster import Cluster, ClusterAwayError, Kind
from lab.apiserver.process import EmbeddedCluster


class Clock(datetime.datetime):
    """The client's clock; tests put it forward."""

    ahead = datetime.timedelta()

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
        return datetime.datetime.now(tz) + cls.ahead


def test_a_token_that_is_replaced_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with EmbeddedCluster(tmp_path / "cluster") as server:
        token = tmp_path / "token"
        token.write_text("one-that-ran-out")
        where = urlsplit(server.url)
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", str(where.hostname))
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(where.port))
        monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(token))
        monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(server.ca_path))
        clock = SimpleNamespace(datetime=Clock, timedelta=datetime.timedelta)
        monkeypatch.setattr(incluster_config, "datetime", clock)
        cluster = Cluster()
        with pytest.raises(ClusterAwayError, match="401"):
            cluster.list(Kind.NAMESPACE)
        token.write_text(server.token)
        Clock.ahead += datetime.timedelta(minutes=1)
        assert cluster.list(Kind.NAMESPACE).items  # at once: it was the token that was refused
        token.write_text("one-that-is-not-looked-at")
        Clock.ahead += datetime.timedelta(minutes=1)
        assert cluster.list(Kind.NAMESPACE).items
        monkeypatch.setattr(adapter, "AUTHORIZATION_SECONDS", 0.0)
        # The kubelet swaps a link: for a moment there may be nothing, which passes.
        token.unlink()
        Clock.ahead += datetime.timedelta(minutes=1)
        with pytest.raises(ClusterAwayError, match="token"):
            cluster.list(Kind.NAMESPACE)
        token.write_text(server.token)
        assert cluster.list(Kind.NAMESPACE).items

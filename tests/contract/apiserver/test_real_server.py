"""Whether this suite has also run against a real kube-apiserver."""

import os

import pytest

from lab.apiserver.client import Client


def test_the_real_server_is_among_the_clusters(cluster: Client) -> None:
    if not os.environ.get("HAWSE_REAL_APISERVER"):
        pytest.skip("HAWSE_REAL_APISERVER names no folder with url, ca.crt and tokens.csv of a real API server")
    assert cluster.get("/readyz").code == 200

"""Makes the packages importable from a checkout, and gives every suite the clusters to run on.

    def test_mine(real_cluster): ...      # by nature for the real API server: CEL, RBAC
    def test_mine(embedded_cluster): ...  # for the embedded one alone
    def test_mine(any_cluster): ...       # runs on both

Each is one server for the whole session: leave it as it was found. A test that kills its server, or that wants the
cluster for itself, takes `real_binaries` (the skip, where there are none) and starts a `RealCluster(tmp_path)`: 3 s.

`make test` runs two sessions side by side, each with servers of its own; TOGETHER says what stays in one of them.
"""

import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

# Appended, so that an installed wheel wins.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from lab.apiserver.process import EmbeddedCluster
from lab.cluster import Cluster, ClusterError
from lab.real_cluster import RealCluster, binaries

LEFT_OUT = "the real API server is left out"


# Folders whose tests stay in one process, one after the other, for the sake of a lab or of servers that they share. The
# rest, tests/unit, goes wherever there is time.
TOGETHER = {"contract": "contract", "e2e": "lab", "kernel": "lab", "browser": "lab"}


class ByFolder(LoadScopeScheduling):
    """Gives each process what stays together, the most tests first."""

    def _split_scope(self, nodeid: str) -> str:
        return TOGETHER.get(Path(nodeid).parts[1], nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFolder:  # noqa: ANN401 - xdist's own
    """In place of those of xdist."""
    return ByFolder(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """All tests that want the real API server are skipped for one reason: with one place it becomes one line."""
    report = yield
    if report.skipped and isinstance(report.longrepr, tuple) and LEFT_OUT in report.longrepr[2]:
        report.longrepr = (__file__, 1, report.longrepr[2])
    return report


@pytest.fixture(scope="session")
def real_binaries() -> Path:
    """The folder with kube-apiserver and etcd. Skips with what to do; in CI nothing is skipped."""
    try:
        return binaries()
    except ClusterError as error:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"{LEFT_OUT}: {error}")


@pytest.fixture(scope="session")
def real_cluster(real_binaries: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    """A kube-apiserver with RBAC, etcd and the namespace controller."""
    with RealCluster(tmp_path_factory.mktemp("real")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def embedded_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedCluster]:
    """The embedded cluster: no RBAC, no CEL."""
    with EmbeddedCluster(tmp_path_factory.mktemp("embedded")) as cluster:
        yield cluster


@pytest.fixture(scope="session", params=["embedded", "real"])
def any_cluster(request: pytest.FixtureRequest) -> Cluster:
    """One after the other."""
    cluster: Cluster = request.getfixturevalue(f"{request.param}_cluster")
    return cluster

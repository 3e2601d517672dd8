"""The network lab, started once for all tests here; every test takes away what it put there.

Scripts that need a node's kernel run inside it, without pytest: ``lab.run("node1", [sys.executable, "-c", ...])``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from lab.net import preflight
from lab.net.broker import Broker
from lab.net.network import NetworkLab
from lab.net.topology import Pod


@pytest.fixture(scope="session")
def machine() -> None:
    """Skips what needs the lab where the machine cannot run it; in CI that is a failure."""
    if problems := preflight.check():
        text = "; ".join(problems)
        if os.environ.get("CI") == "true":
            pytest.fail(text, pytrace=False)
        pytest.skip(text)


@pytest.fixture(scope="session")
def lab(machine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NetworkLab]:
    """Two nodes, node1 and node2, no pods."""
    with NetworkLab(tmp_path_factory.mktemp("lab")) as lab:
        yield lab


@pytest.fixture
def pods(lab: NetworkLab) -> Iterator[Callable[..., Pod]]:
    """Makes pods that go when the test does."""
    made: list[str] = []

    def add(name: str, node: str, netid: int = 1086658) -> Pod:
        pod = lab.add_pod(name, node, netid)
        made.append(name)
        return pod

    yield add
    for name in made:
        if name in lab.pods:
            lab.remove_pod(name)


@pytest.fixture(scope="session")
def broker(lab: NetworkLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker that the lab's nodes reach at its `tcp_url` and the host at its `unix_url`."""
    with Broker(tmp_path_factory.mktemp("broker"), lab.holder) as broker:
        yield broker

"""A runner's process has of pyroute2 what its drivers import, and nothing else."""

import subprocess
import sys
from importlib import import_module

from node_runner import lean

DRIVERS = "conntrack flows generation links nat neighbours netlink watch"
SCRIPT = f"""
import sys
from ipaddress import ip_address
from egress.program import Layout
from node_runner import lean
from node_runner.drivers import open_node
{{first}}
lean.pyroute2()
for driver in {DRIVERS.split()}:
    __import__("node_runner.drivers." + driver)
open_node(ip_address("192.0.2.1"), Layout()).close()
print(*(name for name in sys.modules if name.split(".")[0] == "pyroute2"))
"""


def imported(first: str = "") -> list[str]:
    """The modules of pyroute2 in a process that has all drivers; it does `first` before."""
    command = [sys.executable, "-c", SCRIPT.format(first=first)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()


def test_the_drivers_do_without_the_rest_of_pyroute2() -> None:
    some, whole = imported(), imported("import pyroute2")
    assert set(some) < set(whole)
    assert len(some) < len(whole) / 4
    assert "pyroute2.netlink" in some
    assert "pyroute2.iproute" not in some


def test_a_pyroute2_that_is_there_is_left_alone() -> None:
    whole = import_module("pyroute2")
    lean.pyroute2()
    assert sys.modules["pyroute2"] is whole

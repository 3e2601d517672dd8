"""docs/uninstall.md on nodes: its commands, as they stand there, on what the real drivers made."""

from __future__ import annotations

import re
import subprocess
from ipaddress import ip_address
from pathlib import Path

import pytest

from . import test_dual_stack
from .conftest import Rig, run
from .test_dual_stack import TABLE, Pass, row, text_of

rig = test_dual_stack.rig
PAGE = (Path(__file__).parents[3] / "docs" / "uninstall.md").read_text()
BY_OTHERS = row(0x15, (ip_address("192.168.1.105"), "node3"), (ip_address("192.168.1.106"), "node4"))


def commands(after: str) -> str:
    """The first block of commands after a text."""
    found = re.search(rf"{re.escape(after)}.*?^ *```\n(.*?)^ *```$", PAGE, re.DOTALL | re.MULTILINE)
    assert found
    return found[1]


LOOK, CLEAN = commands("2. **Look**"), commands("## A node that was not drained")


def shell(text: str) -> str:
    done = subprocess.run(["sh", "-c", text], capture_output=True, text=True, timeout=60, check=False)
    errors = [line for line in done.stderr.splitlines() if "tables-legacy tables present" not in line]
    assert errors == []
    return done.stdout


@pytest.mark.parametrize("rig", ["nft", "legacy"], indirect=True)
def test_a_node_that_was_not_drained_is_found_and_cleaned(rig: Rig) -> None:
    tables = [Path(f"/proc/thread-self/net/{name}_tables_names") for name in ("ip", "ip6")]
    before, legacy = text_of(rig), [file.read_text() for file in tables]
    assert shell(LOOK) == ""
    result = Pass(rig)(TABLE | BY_OTHERS)
    assert all(claim.held for claim in result.claims)

    found = shell(LOOK)
    for address in (claim.address for claim in result.claims):
        assert f" {address}/" in found, "its line of the interface"
        assert f"--to-source {address}\n" in found, "its rule"
    assert found.count("cookie=0x4861777365") == 2 * len(TABLE | BY_OTHERS)
    assert "2001:db8::40/" not in found, "somebody else's"
    groups = run("ovs-ofctl", "-O", "OpenFlow13", "dump-groups", "br0")
    assert groups.count("type=select") == 2, "one of each IP version"

    shell(CLEAN)
    assert text_of(rig) == before, "nothing of ours is left, and nothing else is gone"
    assert shell(LOOK) == ""
    shell(CLEAN)  # where there is nothing, it does nothing
    assert text_of(rig) == before
    assert [file.read_text() for file in tables] == legacy, "who looks makes the kernel load no tables"

"""What the lab says of a machine that cannot run it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from lab.net import preflight


def test_an_ordinary_user_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert any("must be started as root" in problem for problem in preflight.check())


def test_missing_programs_become_one_line_of_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = {"linux.uml", "tcpdump", "ovs-vsctl", "ovs-ofctl"}
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None if name in missing else f"/usr/bin/{name}")
    lines = [problem for problem in preflight.check() if "apt-get" in problem]
    assert lines[0] == "programs are missing: apt-get install openvswitch-switch tcpdump user-mode-linux"


def test_no_tun_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path != "/dev/net/tun")
    assert any("modprobe tun" in problem for problem in preflight.check())


def test_a_work_directory_that_a_kernel_command_line_cannot_carry() -> None:
    assert any("'/srv/my work'" in problem for problem in preflight.check(Path("/srv/my work")))

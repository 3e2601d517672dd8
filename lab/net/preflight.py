"""Can this machine run the network lab? Said before it fails, in words that help."""

from __future__ import annotations

import os
import platform
import re
import shutil
from pathlib import Path

_PROGRAMS = {
    "linux.uml": "user-mode-linux",
    "ovs-vswitchd": "openvswitch-switch",
    "ovsdb-server": "openvswitch-switch",
    "ovs-vsctl": "openvswitch-switch",
    "ovs-ofctl": "openvswitch-switch",
    "iptables-legacy": "iptables",
    "ip": "iproute2",
    "tcpdump": "tcpdump",
    "curl": "curl",
    "modprobe": "kmod",
    "sysctl": "procps",
    "conntrack": "conntrack",
    "arping": "iputils-arping",
    "ping": "iputils-ping",
}
_MODULES = Path("/usr/lib/uml/modules")


def check(workdir: Path | None = None) -> list[str]:
    """Problems that keep the lab from starting, each a line that says what to do; empty when it can."""
    problems = []
    if platform.system() != "Linux":
        return [f"the network lab needs Linux, this is {platform.system()}"]
    if os.geteuid() != 0:
        problems.append("the network lab must be started as root (it makes a tap in a network namespace of its own)")
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        problems.append("/dev/net/tun cannot be opened: modprobe tun, or give the container --device /dev/net/tun")
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    packages = sorted({package for program, package in _PROGRAMS.items() if shutil.which(program, path=path) is None})
    if packages:
        problems.append(f"programs are missing: apt-get install {' '.join(packages)}")
    if "user-mode-linux" not in packages and not any(_MODULES.glob("*/kernel/net/openvswitch/openvswitch.ko*")):
        problems.append(f"no openvswitch module below {_MODULES}: apt-get install --reinstall user-mode-linux")
    if workdir is not None and re.search(r"[\s,\"]", str(workdir)):
        problems.append(f"the work directory's name {str(workdir)!r} has a blank, comma or quote: choose another")
    return problems

"""What can go wrong on a node. Every error has a stable reason for machines and a message that says what to do next."""

from __future__ import annotations

from typing import ClassVar


class NodeError(Exception):
    """Something on the node is not as it must be. `reason` is stable CamelCase, fit for a Kubernetes condition."""

    reason: ClassVar[str] = "NodeError"


class NameInvalid(NodeError):
    """A configured name of a bridge, port or chain that no tool would take for a name."""

    reason = "NameInvalid"


class BridgeMissing(NodeError):
    """The bridge does not exist in Open vSwitch."""

    reason = "BridgeMissing"


class PortMissing(NodeError):
    """A port is not on the bridge, or has no port number or MAC."""

    reason = "PortMissing"


class OpenVSwitchUnavailable(NodeError):
    """Open vSwitch's database or its switch does not answer."""

    reason = "OpenVSwitchUnavailable"


class OpenVSwitchRefused(NodeError):
    """Open vSwitch answered a bundle with an error; it has applied nothing of it."""

    reason = "OpenVSwitchRefused"


class FlowUnreadable(NodeError):
    """A flow on the bridge that OVS's own parser does not understand."""

    reason = "FlowUnreadable"


class ChainMissing(NodeError):
    """The chain that ours hangs from does not exist."""

    reason = "ChainMissing"


class IptablesFailed(NodeError):
    """iptables-save or iptables-restore failed."""

    reason = "IptablesFailed"


class Ip6tablesFailed(NodeError):
    """ip6tables-save or ip6tables-restore failed; what iptables was asked for was done."""

    reason = "Ip6tablesFailed"


class InterfaceMissing(NodeError):
    """No interface carries the node's IP."""

    reason = "InterfaceMissing"


class InterfaceNameTooLong(NodeError):
    """The interface's name leaves no room for our label, and the kernel does not keep an address's protocol."""

    reason = "InterfaceNameTooLong"


class KernelTooOld(NodeError):
    """The kernel keeps nothing that would tell an IPv6 address of ours from others."""

    reason = "KernelTooOld"


class AddressOutsideSubnet(NodeError):
    """The address is not in the subnet of the node's interface."""

    reason = "AddressOutsideSubnet"


class AddressIsNodeIP(NodeError):
    """The address is the node's own."""

    reason = "AddressIsNodeIP"


class AddressForeign(NodeError):
    """Somebody else has put the address on this node."""

    reason = "AddressForeign"


class AddressIsPrimary(NodeError):
    """To remove the address would make the kernel remove others with it."""

    reason = "AddressIsPrimary"


class NetlinkFailed(NodeError):
    """The kernel refused a netlink request; `code` is its errno, or 0."""

    reason = "NetlinkFailed"

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class LinkFailed(NodeError):
    """Frames cannot be sent or received on the interface."""

    reason = "LinkFailed"

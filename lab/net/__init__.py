"""The network lab: one user-mode Linux kernel, several nodes inside it, a real Open vSwitch and iptables on each.

Start with ``lab.net.network.NetworkLab``. ``lab.net.inside`` is what runs within that kernel.
"""

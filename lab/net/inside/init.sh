#!/bin/sh
# First process of the lab's kernel: makes a read-only host tree usable, loads the network modules, becomes the agent.
# The kernel hands the HAWSE_* words of its command line over as environment variables.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount --make-rshared /
mkdir -p /run/lock /run/lab/bin /run/netns /run/modules/lib /run/modules/usr

# A checkout or a Python below /tmp or /run has just been hidden: show it again.
for tree in "$HAWSE_SOURCE" "$HAWSE_PREFIX" "$HAWSE_BASE"; do
    case $tree/ in
    /tmp/*|/run/*) [ -d "$tree" ] || { mkdir -p "$tree" && mount -t hostfs -o "ro,$tree" none "$tree"; } ;;
    esac
done

# The work directory is the one place outside that the lab may write to, under the same name.
mkdir -p "$HAWSE_WORKDIR" && mount -t hostfs -o "$HAWSE_WORKDIR" none "$HAWSE_WORKDIR" && mount -o remount,rw "$HAWSE_WORKDIR"

# Debian's modules are not where modprobe looks; the kernel loads nothing on demand from inside a network namespace.
ln -s /usr/lib/uml/modules /run/modules/lib/modules
ln -s ../lib /run/modules/usr/lib
modprobe -d /run/modules -a openvswitch vport-vxlan veth bridge ip_tables iptable_nat iptable_filter xt_nat \
    xt_MASQUERADE xt_mark xt_connmark xt_comment xt_conntrack ipt_REJECT nf_conntrack_netlink ip6_tables ip6table_nat \
    ip6table_filter ip6t_REJECT ip_set ip_set_hash_ip xt_set sch_netem

# All that it needs is loaded. What it asks for later it would not get, and each time that it asks, for a revision of a
# match that no tool has, or a device that comes, a process is started: more than half of all that ran here.
echo > /proc/sys/kernel/modprobe
echo > /proc/sys/kernel/hotplug

# This kernel has no nf_tables for IPv4: plain "iptables" means the legacy one here.
for tool in iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore; do
    ln -s "$(command -v "$(echo "$tool" | sed 's/tables/tables-legacy/')")" "/run/lab/bin/$tool"
done

ip link set lo up
ip link add management type bridge
ip link set vec0 up master management
ip link set management up
ip address add "$HAWSE_ADDRESS" dev management

export PYTHONPATH="$HAWSE_SOURCE"
cd /
exec "$HAWSE_PYTHON" -S -c "from lab.net.inside.agent import main; main()"

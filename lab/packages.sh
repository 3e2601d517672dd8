#!/usr/bin/env bash
# Installs the Debian packages that the demo and the tests need, if any is missing.
set -euo pipefail

packages=(
  python3 python3-venv                     # the virtual environment
  user-mode-linux                          # a kernel with Open vSwitch, as a process
  openvswitch-switch iptables nftables iproute2 conntrack kmod
  tcpdump curl iputils-ping iputils-arping # what the lab looks and asks with
  ca-certificates procps
)
command -v kubectl >/dev/null || packages+=(kubernetes-client)

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  echo "This is no Debian: install by other means what the demo needs (${packages[*]}); tests without it are skipped." >&2
  exit 0
fi
missing=()
for package in "${packages[@]}"; do
  [ "$(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null)" = 'ii ' ] || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -ne 0 ]; then
  echo "Missing Debian packages, and only root can install them: apt-get install ${missing[*]}" >&2
  exit 0
fi
echo "== Debian packages: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# openvswitch-switch would start a switch on this machine; the lab starts its own, elsewhere.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
  trap 'rm -f "$policy"' EXIT
fi
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null

#!/usr/bin/env bash
# Installs the Debian packages that the demo and the tests need, if any is missing.
set -euo pipefail

packages=(
  python3 python3-venv                     # the virtual environment
  user-mode-linux                          # a kernel with Open vSwitch, as a process
  openvswitch-switch iptables nftables iproute2 conntrack kmod
  tcpdump curl iputils-ping iputils-arping # what the lab looks and asks with
  ca-certificates procps
  wrk                                      # asks the webhook, in the benchmark
  nginx-light                              # the reverse proxy that signs people in
  chromium fonts-dejavu-core               # the dashboard's tests look at its pages in it
)

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  echo "This is no Debian: install by other means what the demo needs (${packages[*]}); tests without it are skipped." >&2
  exit 0
fi
installed() { [ "$(dpkg-query -W -f '${db:Status-Abbrev}' "$1" 2>/dev/null)" = 'ii ' ]; }
missing=()
for package in "${packages[@]}"; do
  installed "$package" || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && command -v kubectl >/dev/null && exit 0
if [ "$(id -u)" -ne 0 ]; then
  [ ${#missing[@]} -eq 0 ] && exit 0
  echo "Missing Debian packages, and only root can install them: apt-get install ${missing[*]}" >&2
  exit 3
fi
echo "== Debian packages: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# These would serve on this machine, now and at each boot; the lab and the tests start their own, elsewhere.
fresh=()
for service in openvswitch-switch nginx; do
  installed "$service" || fresh+=("$service")
done
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  trap 'rm -f "$policy"' EXIT
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
fi
[ ${#missing[@]} -eq 0 ] || apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
if [ ${#fresh[@]} -gt 0 ] && command -v systemctl >/dev/null; then
  systemctl disable -q "${fresh[@]}" 2>/dev/null || true
fi
# kubectl is for the person at the demo and for a few tests; where there is no package of it, they do without.
command -v kubectl >/dev/null || apt-get install -y -qq --no-install-recommends kubernetes-client >/dev/null ||
  echo "No kubectl to be had as a package: the tests that use it are skipped." >&2

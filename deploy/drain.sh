#!/bin/sh
# Takes back every address that Hawse gave, before it is uninstalled: afterwards all traffic leaves with the nodes' IPs, as
# before Hawse. The control plane and the node runners must be running: they bring it to the nodes. What an admin set by
# hand stays. docs/uninstall.md has the rest. Safe to run again.
set -eu
served=$(kubectl api-resources -o name)

# Nobody is given an address any more: neither in admission nor by the workers, who need a pool for it.
kubectl delete mutatingwebhookconfiguration,validatingwebhookconfiguration hawse --ignore-not-found
# Not those without a pool: they only show what was set by hand, and would come back.
claims() {
  kubectl get egressaddresses -o 'jsonpath={range .items[?(@.spec.pool!="")]}{.metadata.name}{"\n"}{end}'
}
given=$(claims)
kubectl delete egresspools --all --wait=false # they go when nobody has an address of them any more
sleep 5 # until the workers have seen that the pools are to go
kubectl annotate namespaces --all egress.hawse.dev/addresses- >/dev/null

# The claims first: one that stands keeps its namespace's traffic from leaving with a node's IP.
while left=$(claims) && [ -n "$left" ]; do
  printf '%s\n' "$left" | xargs kubectl delete egressaddresses --ignore-not-found
  sleep 2
done

# An address as its EgressAddress is named: of IPv6 expanded, with dashes.
named() {
  printf '%s\n' "$1" | awk '!/:/ { print; next } {
    left = tolower($0); right = ""
    if (at = index(left, "::")) { right = substr(left, at + 2); left = substr(left, 1, at - 1) }
    before = split(left, first, ":"); after = split(right, last, ":")
    for (i = 1; i <= 8; i++) {
      part = i <= before ? first[i] : i > 8 - after ? last[i - 8 + after] : ""
      name = name (i > 1 ? "-" : "") substr("0000" part, length(part) + 1)
    }
    print name
  }'
}
# Takes what was given out of the `egressIPs` of all objects of a kind that the cluster has. $2 is what comes before it in
# an object, and $3 and $4 around it in a patch.
clear() {
  printf '%s\n' "$served" | grep -qxF "$1" || return 0
  list="{range .items[*]}{.metadata.name}{range $2.egressIPs[*]} {@}{end}{\"\\n\"}{end}"
  kubectl get "$1" -o "jsonpath=$list" | while read -r name addresses; do
    kept=
    for address in $addresses; do
      printf '%s\n' "$given" | grep -qxF "$(named "$address")" || kept="$kept,\"$address\""
    done
    kubectl patch "$1" "$name" --type=merge -p "{$3\"egressIPs\": [${kept#,}]$4}" </dev/null
  done
}
# From here on the namespaces' traffic leaves with the nodes' IPs.
if printf '%s\n' "$served" | grep -qxF egressips.k8s.ovn.org; then
  kubectl delete egressips --selector=egress.hawse.dev/namespace
fi
clear egressips.k8s.ovn.org .spec '"spec": {' '}'
clear netnamespaces.network.openshift.io '' '' ''
clear hostsubnets.network.openshift.io '' '' '' # and the nodes let the addresses go

# The workers let the pools go: once these are gone, nobody would.
tries=60
while [ -n "$(kubectl get egresspools -o name)" ]; do
  tries=$((tries - 1))
  [ "$tries" -gt 0 ] || { echo 'drain.sh: the pools do not go: kubectl describe egresspools' >&2; exit 1; }
  sleep 1
done

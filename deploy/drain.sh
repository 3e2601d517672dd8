#!/bin/sh
# Takes back every address that Hawse gave, before it is uninstalled: afterwards all traffic leaves with the nodes' IPs, as
# before Hawse. The control plane and the node runners must be running: they bring it to the nodes. What an admin set by
# hand stays. docs/uninstall.md has the rest. Safe to run again, wherever it ended.
set -eu
fail() {
  echo "drain.sh: $1; what was done stays done: mend it and run this again" >&2
  exit 1
}
# A command until it succeeds, five times at most: others change and delete objects between a list and what follows it.
again() {
  tries=5
  until "$@"; do
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || fail "failed five times: $*"
    sleep 2
  done
}
served=$(kubectl api-resources -o name) || fail 'cannot list what the API server serves'

# Nobody is given an address any more: neither in admission nor by the workers, who need a pool for it.
again kubectl delete mutatingwebhookconfiguration,validatingwebhookconfiguration hawse --ignore-not-found
# Not those without a pool: they only show what was set by hand, and would come back.
claims() {
  kubectl get egressaddresses -o 'jsonpath={range .items[?(@.spec.pool!="")]}{.metadata.name}{"\n"}{end}' ||
    fail 'cannot list the EgressAddresses'
}
# That an address was given is known from its claim alone, and the claims go first. So their names are kept in a ConfigMap
# before: to the next run, what this one may leave in other objects would otherwise look as if it were set by hand.
given=$(kubectl -n hawse-system get configmap hawse-drain --ignore-not-found -o 'jsonpath={.data.given}') ||
  fail 'cannot read the ConfigMap hawse-drain'
keep() {
  given=$(printf '%s\n' "$given" "$1" | sed '/^$/d' | sort -u)
  # Through pipes: all addresses of a cluster may be more than a command line takes.
  printf '%s\n' "$given" |
    kubectl -n hawse-system create configmap hawse-drain --from-file=given=/dev/stdin --dry-run=client -o yaml |
    kubectl apply --server-side --force-conflicts -f - || fail 'cannot write the ConfigMap hawse-drain'
}
left=$(claims)
keep "$left"
again kubectl delete egresspools --all --wait=false # they go when nobody has an address of them any more
sleep 5                                             # until the workers have seen that the pools are to go
again kubectl annotate namespaces --all egress.hawse.dev/addresses- >/dev/null

# The claims first: one that stands keeps its namespace's traffic from leaving with a node's IP.
rounds=10
left=$(claims)
while [ -n "$left" ]; do
  [ "$rounds" -gt 0 ] || fail 'EgressAddresses do not go, or come again: kubectl get egressaddresses'
  rounds=$((rounds - 1))
  keep "$left" # among them those that were made since
  printf '%s\n' "$left" | xargs kubectl delete egressaddresses --ignore-not-found || true # what is left is seen below
  sleep 2
  left=$(claims)
done

# From lines of an object's name, its version and its addresses: of each object that has a given one, name, version and the
# other addresses as JSON. An EgressAddress is named by its address: by that of IPv6 expanded, with dashes.
spared() {
  { printf '%s\n' "$given" -- && cat; } | awk '
    function named(address,   left, right, at, before, after, first, last, i, part, name) {
      if (address !~ /:/) return address
      left = tolower(address); right = ""
      if (at = index(left, "::")) { right = substr(left, at + 2); left = substr(left, 1, at - 1) }
      before = split(left, first, ":"); after = split(right, last, ":")
      for (i = 1; i <= 8; i++) {
        part = i <= before ? first[i] : i > 8 - after ? last[i - 8 + after] : ""
        name = name (i > 1 ? "-" : "") substr("0000" part, length(part) + 1)
      }
      return name
    }
    !listed { if ($0 == "--") listed = 1; else given[$0]; next }
    {
      others = ""
      count = 0
      for (i = 3; i <= NF; i++) {
        if (named($i) in given) count++
        else others = others (others == "" ? "" : ", ") "\"" $i "\""
      }
      if (count) print $1, $2, "[" others "]"
    }'
}
# Takes what was given out of the `egressIPs` of all objects of a kind that the cluster has. $2 is what comes before it in
# an object, and $3 and $4 around it in a patch. A patch names the version that was read, so that it overwrites nothing; what
# was changed or deleted meanwhile is read again.
clear() {
  printf '%s\n' "$served" | grep -qxF "$1" || return 0
  list="{range .items[*]}{.metadata.name} {.metadata.resourceVersion}{range $2.egressIPs[*]} {@}{end}{\"\\n\"}{end}"
  rounds=6
  while :; do
    listed=$(kubectl get "$1" -o "jsonpath=$list") || fail "cannot list the $1"
    todo=$(printf '%s\n' "$listed" | spared)
    [ -n "$todo" ] || return 0
    rounds=$((rounds - 1))
    [ "$rounds" -gt 0 ] || fail "$1 keep addresses that were given: $(printf '%s\n' "$todo" | cut -d ' ' -f 1 | head -n 5 | xargs)"
    [ "$rounds" -eq 5 ] || sleep 2
    printf '%s\n' "$todo" | while read -r name version others; do
      patch="{\"metadata\": {\"resourceVersion\": \"$version\"}, $3\"egressIPs\": $others$4}"
      kubectl patch "$1" "$name" --type=merge -p "$patch" </dev/null || true # the next round's list tells
    done
  done
}
# From here on the namespaces' traffic leaves with the nodes' IPs.
if printf '%s\n' "$served" | grep -qxF egressips.k8s.ovn.org; then
  again kubectl delete egressips --selector=egress.hawse.dev/namespace --ignore-not-found
fi
clear egressips.k8s.ovn.org .spec '"spec": {' '}'
clear netnamespaces.network.openshift.io '' '' ''
clear hostsubnets.network.openshift.io '' '' '' # and the nodes let the addresses go

# The workers let the pools go: once these are gone, nobody would.
seconds=60
pools=$(kubectl get egresspools -o name) || fail 'cannot list the EgressPools'
while [ -n "$pools" ]; do
  seconds=$((seconds - 1))
  [ "$seconds" -gt 0 ] || fail 'the pools do not go: kubectl describe egresspools'
  sleep 1
  pools=$(kubectl get egresspools -o name) || fail 'cannot list the EgressPools'
done
again kubectl -n hawse-system delete configmap hawse-drain --ignore-not-found

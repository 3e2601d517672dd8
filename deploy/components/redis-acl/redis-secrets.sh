#!/bin/sh
# Makes a password for each role and prints the Secrets that Redis and Hawse read them from:
#
#   deploy/components/redis-acl/redis-secrets.sh | kubectl apply -f -
#
# Run it again for new passwords, then restart Redis and everything of Hawse. HOST:PORT of Redis is an optional argument.
set -eu
where=${1:-hawse-redis.hawse-system.svc:6379}
rules=$(grep '^user ' "$(dirname "$0")/users.acl")

password() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
hash() { printf %s "$1" | sha256sum | cut -d' ' -f1; }
secret() {
  printf -- '---\napiVersion: v1\nkind: Secret\nmetadata:\n  name: %s\n  namespace: hawse-system\n' "$1"
  printf '  labels: {app.kubernetes.io/name: hawse}\nstringData:\n'
}

for role in workers webhook api runner; do
  password=$(password)
  name=$(printf %s "$role" | tr '[:lower:]' '[:upper:]')
  rules=$(printf '%s\n' "$rules" | sed "s/#@$name@/#$(hash "$password")/")
  secret "hawse-redis-$role"
  printf '  url: redis://hawse-%s:%s@%s/0\n' "$role" "$password" "$where"
done
secret hawse-redis-acl
printf '  users.acl: |\n'
printf '%s\n' "$rules" | sed 's/^/    /'

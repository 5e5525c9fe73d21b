#!/bin/sh
# container_base.sh OUT.tar [SUITE]: a root file system like Debian's slim image, made from the
# mirror that this machine's apt uses. For building the containers where no registry can be reached.
set -eu

out=$1
suite=${2:-trixie}
mirror() {
    apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' |
        awk -v suffix="$1" '$2 ~ "^[a-z]+" suffix "$" { print $1; exit }'
}
main=$(mirror "")
security=$(mirror -security)
# What the official image has in place of apt's caches.
clean='DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/*.bin || true"; };
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
Acquire::Languages "none";'
merged=""
[ "$suite" != bookworm ] ||
    merged="--include=usr-is-merged --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"
export clean
# shellcheck disable=SC2086,SC2016  # two options or none; expanded by the hook's shell
mmdebstrap --quiet --variant=minbase $merged \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/info/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --customize-hook='echo "$clean" > "$1"/etc/apt/apt.conf.d/docker-clean' \
    --customize-hook='rm -rf "$1"/var/cache/apt/*.bin "$1"/var/lib/apt/lists/*' \
    "$suite" "$out" "deb $main $suite main" "deb $main $suite-updates main" \
    "deb ${security:-$main} $suite-security main"

#!/bin/sh
# Installs what gptd needs from Debian's packages: setup.sh for building, setup.sh --test for the
# tests too, setup.sh --browser for those of the web page as well, setup.sh --container for those
# that build and run containers. Says what it does; does nothing (and needs no network) when all is
# there.
set -eu

build="gcc make libc6-dev libmicrohttpd-dev libgnutls28-dev libcjson-dev libpcre2-dev
       libunistring-dev libssl-dev curl ca-certificates"
test="libcmocka-dev openssl python3 python3-venv clang"
container="buildah podman runc mmdebstrap"

if ! command -v dpkg-query >/dev/null; then
    echo "setup: not a Debian system; gptd needs what Debian calls: $build (tests: $test)" >&2
    exit 0
fi

missing() {
    for package in "$@"; do
        state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) || state=absent
        [ "$state" = installed ] || printf '%s ' "$package"
    done
}

root() {
    if [ "$(id -u)" = 0 ]; then "$@"
    elif command -v sudo >/dev/null; then sudo "$@"
    else
        echo "setup: needs root for: $*" >&2
        exit 1
    fi
}

install() {
    [ $# -gt 0 ] || return 0
    echo "setup: installing $*"
    root apt-get update -q
    root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@"
}

wanted=$build
[ "${1:-}" = --test ] && wanted="$build $test"
[ "${1:-}" = --browser ] && wanted="$build $test chromium"
[ "${1:-}" = --container ] && wanted="$build $test $container"
# shellcheck disable=SC2046,SC2086  # package lists are meant to be split
install $(missing $wanted)

# The sanitizers' and the fuzzer's run-time library is named after clang's major version.
if [ "${1:-}" = --test ]; then
    # shellcheck disable=SC2046
    install $(missing "libclang-rt-$(clang -dumpversion | cut -d. -f1)-dev")
fi

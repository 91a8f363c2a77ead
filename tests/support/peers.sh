#!/bin/sh
# What other teams verify our tokens with, for the tests: Node packages; HAProxy, Apache and Go from Debian's packages,
# unpacked into a folder of ours; and a browser, which reads our pages. Nothing is installed on the system; root may get
# it the package lists. What cannot be had is said; its tests skip, or fail where CI is set. And what the mini-program is
# held against: the types of WeChat's API, and DevTools' schemas.
set -u
cd "$(dirname "$0")/../.."
peers=$1

if command -v npm >/dev/null; then
    echo "fetching the Node packages that tests verify with, and WeChat's types and schemas (once)"
    for folder in node devtools; do
        npm ci --prefix "tests/integration/$folder" --no-audit --no-fund --loglevel=error >/dev/null ||
            echo "npm ci failed for $folder"
    done
else
    echo "npm is missing: nothing is verified with Node's jose, and the mini-program is not held against WeChat's types"
fi

# The packages and what they need of others, into the folder.
unpack() {
    # Without the lists that name them there is nothing to fetch, and only root can get those.
    apt-cache show "$@" >/dev/null 2>&1 || apt-get update -qq >/dev/null 2>&1 || true
    # Of what comes along with them, no part of the system itself.
    names=$(apt-get install -s --no-install-recommends "$@" 2>/dev/null | awk '/^Inst/ {print $2}' | grep -v systemd)
    work=$(mktemp -d)
    chmod 755 "$work"
    if [ -n "$names" ] && (cd "$work" && apt-get download -qq $names >/dev/null 2>&1); then
        mkdir -p "$peers"
        for package in "$work"/*.deb; do
            dpkg -x "$package" "$peers"
        done
    elif [ -n "$names" ]; then
        echo "the packages could not be fetched"
    fi
    rm -rf "$work"
}

if command -v apt-get >/dev/null && command -v dpkg >/dev/null; then
    rm -rf "$peers"
    echo "fetching HAProxy and Apache, which tests verify with, and wrk, which the benchmark asks with (once)"
    unpack haproxy apache2-bin libapache2-mod-auth-openidc wrk
    # Each is 90 MB: where nobody waits for them.
    if [ -n "${CI:-}" ]; then
        echo "fetching Go and a browser without windows (once)"
        unpack golang-go golang-github-coreos-go-oidc-dev
        unpack chromium-headless-shell
    fi
else
    echo "apt-get is missing: install haproxy and apache2 with mod_auth_openidc yourself, to have them tested with"
fi

#!/bin/sh
# What gptd is made of, by Debian's packages:
#
#     sbom.sh PROGRAM VERSION [NAME=VERSION ...]   SPDX 2.3 JSON: the program, the packages of all
#                                                  libraries that it loads, and what else is named
#     sbom.sh --packages PROGRAM                   those packages' names alone
set -eu

# packages PROGRAM: the names, each once. Debian's merged /usr has each library under two paths, and
# dpkg knows one of them.
packages() {
    linked=$(ldd "$1")
    all=""
    case $linked in *"not found"*) echo "sbom: $1: $linked" >&2; exit 1 ;; esac
    for library in $(echo "$linked" | grep -oE '/[^ ]+'); do
        real=$(realpath "$library")
        found=$(dpkg-query -S "$real" "${real#/usr}" 2>/dev/null | head -n 1)
        [ -n "$found" ] || { echo "sbom: no package has $real" >&2; exit 1; }
        all="$all ${found%%:*}"
    done
    # shellcheck disable=SC2086  # one name a line
    printf '%s\n' $all | sort -u
}

# entry ID NAME VERSION SUPPLIER PURL: one package's object.
entry() {
    printf '    {"SPDXID": "SPDXRef-%s", "name": "%s", "versionInfo": "%s", "supplier": "%s",\n' \
           "$1" "$2" "$3" "$4"
    printf '     "downloadLocation": "NOASSERTION", "filesAnalyzed": false,\n'
    printf '     "licenseConcluded": "NOASSERTION", "licenseDeclared": "NOASSERTION",\n'
    printf '     "copyrightText": "NOASSERTION"'
    [ -z "$5" ] || printf ',\n     "externalRefs": [{"referenceCategory": "PACKAGE-MANAGER", %s}]' \
                          "\"referenceType\": \"purl\", \"referenceLocator\": \"$5\""
    printf '}'
}

# relationship A TYPE B
relationship() {
    printf '    {"spdxElementId": "SPDXRef-%s", "relationshipType": "%s", ' "$1" "$2"
    printf '"relatedSpdxElement": "SPDXRef-%s"}' "$3"
}

if [ "$1" = --packages ]; then
    packages "$2"
    exit
fi
program=$1
version=$2
shift 2
names=$(packages "$program")
digest=$(sha256sum "$program" | cut -c 1-16)
distribution=$(. /etc/os-release && echo "$ID-${VERSION_ID:-sid}")

cat <<END
{
  "spdxVersion": "SPDX-2.3",
  "dataLicense": "CC0-1.0",
  "SPDXID": "SPDXRef-DOCUMENT",
  "name": "gptd-$version",
  "documentNamespace": "https://spdx.org/spdxdocs/gptd-$version-$digest",
  "creationInfo": {"created": "$(date -u +%Y-%m-%dT%H:%M:%SZ)", "creators": ["Tool: gptd-sbom"]},
  "packages": [
END
entry gptd gptd "$version" NOASSERTION ""
for name in $names; do
    echo ,
    entry "deb-$name" "$name" "$(dpkg-query -W -f '${Version}' "$name")" "Organization: Debian" \
          "$(dpkg-query -W -f 'pkg:deb/debian/${Package}@${Version}?arch=${Architecture}' "$name" |
             sed 's/+/%2B/g; s/~/%7E/g')&distro=$distribution"
done
for extra in "$@"; do
    echo ,
    entry "${extra%%=*}" "${extra%%=*}" "${extra#*=}" "Organization: NVIDIA" ""
done
printf '\n  ],\n  "relationships": [\n'
relationship DOCUMENT DESCRIBES gptd
for name in $names; do
    echo ,
    relationship gptd DYNAMIC_LINK "deb-$name"
done
for extra in "$@"; do
    echo ,
    relationship gptd DEPENDS_ON "${extra%%=*}"
done
printf '\n  ]\n}\n'

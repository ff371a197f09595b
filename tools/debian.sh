#!/usr/bin/env bash
# Programs from Debian's packages that some tests need. Where they cannot be had, those tests are skipped and say why.
#     tools/debian.sh WHICH-TESTS 'PROGRAM|ANOTHER-AS-GOOD ...' 'PACKAGE ...'
set -u
tests=$1 programs=$2 packages=$3

found() {
  local choices
  IFS='|' read -ra choices <<<"$1"
  for choice in "${choices[@]}"; do
    command -v "$choice" >/dev/null && return 0
  done
  return 1
}

missing=()
for program in $programs; do
  found "$program" || missing+=("$program")
done
[ "${#missing[@]}" -eq 0 ] && exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
  echo "not on PATH: ${missing[*]}; install it for the $tests, which are skipped now"
  exit 0
fi
echo "installing $packages for the $tests"
log=$(mktemp)
# The tests start what they need themselves: a package that brings a service must not start it on this machine.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod +x "$policy"
  trap 'rm -f "$policy"' EXIT
fi
# shellcheck disable=SC2086  # several packages
if ! { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $packages; } >"$log" 2>&1; then
  tail -n 3 "$log"
  echo "$packages could not be installed: the $tests are skipped"
fi
rm -f "$log"

#!/usr/bin/env bash
# A browser for the tests that look at the report. Where none can be had, those tests are skipped and say why.
set -u

for browser in chromium chromium-browser google-chrome; do
  if command -v "$browser" >/dev/null && command -v chromedriver >/dev/null; then
    exit 0
  fi
done
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
  echo 'no chromium with chromedriver on PATH: install both for the browser tests, which are skipped now'
  exit 0
fi
echo 'installing chromium and chromium-driver for the browser tests'
log=$(mktemp)
if ! { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends chromium chromium-driver; } >"$log" 2>&1; then
  tail -n 3 "$log"
  echo 'chromium could not be installed: the browser tests are skipped'
fi
rm -f "$log"

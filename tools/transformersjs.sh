#!/usr/bin/env bash
# Transformers.js, pinned, for the tests that load bundles in it. Prints the folder whose node_modules holds it.
set -eu

version=4.3.1
cache=${EDGEWISE_CACHE:-$HOME/.cache/edgewise}
folder=$cache/transformersjs

for program in node npm; do
  if ! command -v "$program" >/dev/null; then
    echo "error: no $program on PATH: install Node.js 20 or newer to load bundles in Transformers.js" >&2
    exit 1
  fi
done

installed() {
  grep -qs "\"version\": \"$version\"" "$folder/node_modules/@huggingface/transformers/package.json"
}

if ! installed; then
  mkdir -p "$cache"
  # Installed under a name of its own and renamed, so that a killed run leaves nothing that looks whole.
  work=$(mktemp -d "$cache/.transformersjs.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  echo '{"private": true}' >"$work/package.json"
  # Without onnxruntime's CUDA libraries: hundreds of MB that nothing here uses.
  if ! ONNXRUNTIME_NODE_INSTALL_CUDA=skip npm install --prefix "$work" --save-exact --no-audit --no-fund \
    --no-update-notifier "@huggingface/transformers@$version" >"$work/npm.log" 2>&1; then
    why=$(grep -v 'complete log of this run' "$work/npm.log" | sed 's/^npm [^ ]* //' | tr '\n' ' ' | cut -c 1-300)
    echo "error: npm could not install @huggingface/transformers@$version: $why" >&2
    exit 1
  fi
  # A run beside this one may have put its own there meanwhile, which is as good.
  if ! installed; then
    rm -rf "$folder"
    node -e 'require("fs").renameSync(process.argv[1], process.argv[2])' "$work" "$folder" 2>/dev/null || installed
  fi
fi
echo "$folder"

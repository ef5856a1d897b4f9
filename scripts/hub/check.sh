#!/usr/bin/env bash
# candle-peft and huggingface_hub on one Hub and one cache. Needs Python 3 and PyPI.
set -euo pipefail
cd "$(dirname "$0")/../.."

requirements=scripts/hub/requirements.txt
case " $* " in *" --peft "*) requirements=scripts/hub/requirements-peft.txt ;; esac
venv=${HUB_CHECK_VENV:-target/hub-check/$(basename "$requirements" .txt)}
if ! cmp -s "$requirements" "$venv/installed.txt"; then
    python3 -m venv --clear "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$requirements"
    cp "$requirements" "$venv/installed.txt"
fi
cargo build --workspace --bins
cargo build --package candle-peft --package peft-testkit --example loopback_hub
"$venv/bin/python" scripts/hub/check.py "$@"

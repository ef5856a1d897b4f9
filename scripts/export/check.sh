#!/usr/bin/env bash
# Exports the adapters that PEFT wrote (tests/fixtures) and checks every value of the files. Needs Rust, Python and PyPI.
# With CANDLE_PEFT set to the command line's binary, that one is used and nothing is built.
set -euo pipefail
cd "$(dirname "$0")/../.."

cases=(
    tinylora_default tinylora_all_linear_tied tinylora_layers_to_transform tinylora_regex tinylora_embedding
    lora_default lora_rslora_rank_pattern lora_embedding gpt2_conv1d lora_gpt2_conv1d
)
work=target/export-check
venv=$work/venv
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check -r scripts/export/requirements.txt

if [ -z "${CANDLE_PEFT:-}" ]; then
    cargo build --workspace --bins
    CANDLE_PEFT=${CARGO_TARGET_DIR:-target}/debug/candle-peft
fi

fixtures=tests/fixtures
exports=$work/exports
rm -rf "$exports"
for case in "${cases[@]}"; do
    base=$fixtures/$(sed -n 's/^ *"base": "\(.*\)",$/\1/p' "$fixtures/$case/case.json")
    for format in mlx gguf; do
        out=$exports/$case/mlx
        if [ "$format" = gguf ]; then out=$exports/$case/adapter.gguf; fi
        "$CANDLE_PEFT" convert --adapter "$fixtures/$case" --base "$base" --to "$format" --out "$out" > /dev/null
    done
done
"$venv/bin/python" scripts/export/check.py --cases "$fixtures" --exports "$exports" "${cases[@]}"

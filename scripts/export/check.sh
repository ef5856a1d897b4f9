#!/usr/bin/env bash
# Exports the adapters that PEFT wrote (tests/fixtures) and checks every value of the files; with --engines MLX-LM and llama.cpp
# run them too. Needs Rust, Python and PyPI. With CANDLE_PEFT set to the command line's binary nothing is built.
set -euo pipefail
cd "$(dirname "$0")/../.."

requirements=requirements.txt
case "${1:-}" in
    "") ;;
    --engines) requirements=requirements-engines.txt ;;
    *) echo "usage: check.sh [--engines]" >&2; exit 2 ;;
esac
cases=(
    tinylora_default tinylora_all_linear_tied tinylora_layers_to_transform tinylora_regex tinylora_embedding
    lora_default lora_rslora_rank_pattern lora_embedding gpt2_conv1d lora_gpt2_conv1d
)
work=target/export-check
venv=$work/venv
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check -r "scripts/export/$requirements"

if [ -z "${CANDLE_PEFT:-}" ]; then
    cargo build --workspace --bins
    CANDLE_PEFT=${CARGO_TARGET_DIR:-target}/debug/candle-peft
fi

fixtures=tests/fixtures
exports=$work/exports
rm -rf "$exports"
for case in "${cases[@]}"; do
    base=$fixtures/$(sed -n 's/^ *"base": "\(.*\)",$/\1/p' "$fixtures/$case/case.json")
    convert=("$CANDLE_PEFT" convert --adapter "$fixtures/$case" --base "$base")
    "${convert[@]}" --to mlx --out "$exports/$case/mlx" > /dev/null
    "${convert[@]}" --to gguf --out "$exports/$case/adapter.gguf" > /dev/null
done
"$venv/bin/python" scripts/export/check.py --cases "$fixtures" --exports "$exports" "${cases[@]}"
if [ "$requirements" != requirements.txt ]; then
    log=$work/engines.log
    "$venv/bin/python" scripts/export/engines.py --cases "$fixtures" --exports "$exports" "${cases[@]}" 2> "$log" ||
        { tail -n 20 "$log" >&2; exit 1; }
fi

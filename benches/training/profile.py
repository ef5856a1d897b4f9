"""Where the time of a training step goes: samples of the stack while `library.rs` trains, grouped by the operator they are in.

    cargo build --example bench_training
    python3 benches/training/profile.py --base MODEL_DIR [--case tinylora] [--batch 1] [--length 128] [--steps 10]

Needs `perf` and `addr2line`. One thread, so that an operator's stack holds all of its work; samples count time on a processor, so other programs
disturb the shares little. Loading does not count.
"""

import argparse
import collections
import itertools
import json
import os
import pathlib
import re
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
FREQUENCY = 199

# The innermost of these that a stack passes through is what a sample counts for: parts of names of functions.
OPERATORS = {
    "peft_nn::linear::": "layers",
    "peft_nn::attention::": "attention",
    "peft_nn::cross_entropy::": "loss",
    "peft_nn::rms_norm::": "norms",
    "peft_nn::layer_norm::": "norms",
    "peft_nn::rope::": "rotary embedding",
    "peft_nn::swiglu::": "feed-forward activation",
    "peft_nn::gelu": "feed-forward activation",
    "peft_nn::add::": "residual sums",
    "peft_nn::combination::": "adapters",
    "peft_tinylora::": "adapters",
    "peft_lora::": "adapters",
    "peft_nn::embedding::": "embedding",
    "candle_nn::optim": "optimiser",
}
# Lines of the layers' kernel that are about the low-rank change alone.
OF_A_CHANGE = re.compile(r"\b(low|mixed|dlow|dmixed|dmixing|change|scaled_and_mixed)\b")
# Where the first step begins, and with it what counts.
STEP = "peft_train::loss"


def record(binary, args, path):
    command = ["perf", "record", "-q", "-e", "cpu-clock", "-F", str(FREQUENCY), "--call-graph", "dwarf,32768", "-o", path]
    command += [binary, args.base, args.case, str(args.batch), str(args.length), str(args.steps)]
    env = {**os.environ, "RAYON_NUM_THREADS": "1"}
    return json.loads(subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout)


def stacks(path):
    """The stacks of samples, innermost frame first: (address or None outside the program, symbol)."""
    script = subprocess.run(["perf", "script", "-i", path, "-F", "ip,sym,dso", "--no-inline"], check=True, capture_output=True, text=True)
    for sample in script.stdout.split("\n\n"):
        frames = []
        for line in sample.splitlines():
            found = re.match(r"\s*([0-9a-f]+) (.*) \((.*)\)$", line)
            if found:
                address, symbol, file = found.groups()
                frames.append((int(address, 16) if "bench_training" in file else None, symbol))
        if frames:
            yield frames


def lines_of(binary, addresses):
    """For each address the places in the source that it belongs to, innermost of the inlined functions first."""
    # A return address lies behind its call, which may be on another line.
    questions = "\n".join(hex(address - 1) for address in addresses)
    command = ["addr2line", "-a", "-i", "-e", binary]
    answer = subprocess.run(command, input=questions, check=True, capture_output=True, text=True).stdout
    places, current = {}, None
    for line in answer.splitlines():
        if line.startswith("0x") and ":" not in line:
            current = places.setdefault(int(line, 16) + 1, [])
        else:
            current.append(line.split(" ")[0])
    return places


def source_line(place, cache={}):
    path, _, number = place.rpartition(":")
    if path not in cache:
        cache[path] = pathlib.Path(path).read_text().splitlines() if pathlib.Path(path).is_file() else []
    at = int(number) - 1 if number.isdigit() else -1
    return cache[path][at] if 0 <= at < len(cache[path]) else ""


def classify(frames, places):
    """The operator, and whether it is multiplying matrices."""
    product = False
    for address, symbol in frames:
        inlined = places.get(address, [])
        product |= any("peft-nn/src/cpu/gemm/" in place for place in inlined)
        name = next((name for part, name in OPERATORS.items() if part in symbol), None)
        if name == "layers" and any("/linear/" in place and OF_A_CHANGE.search(source_line(place)) for place in inlined):
            name = "adapters"
        # The products of attention are woven into it.
        if name:
            return name, product and name != "attention"
    # Of the products only packing is handed to the pool's thread, whose stack does not hold the operator.
    return ("packing", False) if product else ("the rest", False)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True)
    parser.add_argument("--case", default="tinylora")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    binary = str(ROOT / "target/debug/examples/bench_training")
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/perf.data"
        record(binary, args, path)
        samples = list(itertools.dropwhile(lambda frames: not any(STEP in symbol for _, symbol in frames), stacks(path)))
    places = lines_of(binary, {address for frames in samples for address, _ in frames if address is not None})

    counts, faults = collections.Counter(), collections.Counter()
    for frames in samples:
        found = classify(frames, places)
        counts[found] += 1
        faults[found] += any("asm_exc_page_fault" in symbol for _, symbol in frames)
    config = json.loads((pathlib.Path(args.base) / "config.json").read_text())
    operations = products(config, args.batch, args.length)
    total = sum(counts.values())
    print(f"{args.case}, {args.batch} x {args.length}: {total / FREQUENCY / args.steps:.3f} s a step on one thread, {total} samples")
    for (name, product), count in counts.most_common():
        what = f"{name}: products" if product else name
        line = f"{what:26} {count / total:6.1%}   of it page faults {faults[name, product] / count:4.0%}"
        if (name, product) in operations:
            line += f"   {operations[name, product] * args.steps / (count / FREQUENCY) / 1e9:.0f} GFLOP/s"
        print(line)


def products(config, batch, length):
    """Operations of a step in the products with frozen weights, forward and back to the inputs, without those of low-rank changes; and in
    the two products of causal attention, of which the backward pass makes five."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads, keys = config["num_attention_heads"], config["num_key_value_heads"]
    width = config.get("head_dim") or hidden // heads
    layer = hidden * (2 * heads + 2 * keys) * width + 3 * hidden * inner
    body = layer * config["num_hidden_layers"] * batch * length
    head = config["vocab_size"] * hidden * batch * (length - 1)
    attention = 7 * batch * length**2 * heads * width * config["num_hidden_layers"]
    return {("layers", True): 4 * body, ("loss", True): 4 * head, ("attention", False): attention}


if __name__ == "__main__":
    main()

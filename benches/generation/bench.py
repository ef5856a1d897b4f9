#!/usr/bin/env python3
"""Times generation, candle-peft and transformers in turn: sampling at temperature 1, a fixed number of new tokens.

Needs Python and cargo; the packages for PyTorch's part are installed into a virtual environment unless one is given.
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from harness import ROOT, parser, run, target, workplace  # noqa: E402

CASES = ["base", "base-bf16"]
# Live and merged adapters are only timed here.
ADAPTERS = ["tinylora", "tinylora-merged", "lora", "lora-merged"]
SHAPES = ["1x1", "8x8"]


def arguments():
    options = parser(__doc__, "folder of a Llama model")
    options.add_argument("--cases", nargs="*", choices=CASES, default=CASES[:1], metavar="CASE", help=", ".join(CASES))
    options.add_argument("--adapters", nargs="*", choices=ADAPTERS, default=[], metavar="CASE", help=", ".join(ADAPTERS))
    options.add_argument("--shapes", nargs="+", default=SHAPES, metavar="PxS", help="numbers of prompts and of samples of each")
    options.add_argument("--tokens", type=int, default=64, help="new tokens of each sample")
    options.add_argument("--runs", type=int, default=3, help="runs of either side, each after one that is not counted")
    return options.parse_args()


def main():
    args = arguments()
    with workplace(args) as (work, python):
        subprocess.run(["cargo", "build", "--workspace", "--example", "bench_generation"], cwd=ROOT, check=True)
        rows = [measure(case, shape, python, args) for case in args.cases for shape in args.shapes]
        adapters = [measure(case, args.shapes[-1], None, args) for case in args.adapters]
        facts = {"base": str(args.base), "threads": args.threads, "load": os.getloadavg()[0]}
        (work / "results.json").write_text(json.dumps({**facts, "rows": rows, "adapters": adapters}, indent=2))
    print("| model | prompts x samples | transformers | candle-peft | ratio | candle-transformers | memory: transformers | candle-peft |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        theirs, ours, candle = row["torch"], row["ours"], row["candle"]
        candle = f"{candle['rate']:.0f} tokens/s" if candle else ""
        print(f"| {row['case']} | {row['shape']} | {theirs['rate']:.0f} tokens/s | {ours['rate']:.0f} tokens/s | {ours['rate'] / theirs['rate']:.1f} "
              f"| {candle} | {theirs['peak_mib']:.0f} MiB | {ours['peak_mib']:.0f} MiB |")
    for row in adapters:
        ours = row["ours"]
        merging = "".join(f", {what} {ours[what] * 1000:.0f} ms" for what in ("merge", "unmerge") if ours.get(what))
        print(f"\n{row['case']}, {row['shape']}: {ours['rate']:.0f} tokens/s{merging}")
    print(f"\n{facts['threads']} threads, medians of {args.runs} runs of {args.tokens} tokens, load average {facts['load']:.1f} at the end")


def measure(case, shape, python, args):
    """Medians of every side, in turn."""
    prompts, samples = shape.split("x")
    common = [prompts, samples, args.tokens, 2]
    binary = target() / "examples" / "bench_generation"
    theirs, ours, candle = [], [], []
    for _ in range(args.runs):
        ours.append(json.loads(run(binary, args.base, case, *common)))
        if python:
            theirs.append(json.loads(run(python, "-W", "ignore", HERE / "torch_side.py", args.base, case, *common, args.threads)))
        if shape == "1x1" and case == "base":
            candle.append(json.loads(run(binary, args.base, "candle", *common)))
    total = int(prompts) * int(samples) * args.tokens
    return {"case": case, "shape": shape, "torch": medians(theirs, total), "ours": medians(ours, total), "candle": medians(candle, total)}


def medians(runs, tokens):
    if not runs:
        return None
    row = {"rate": tokens / statistics.median(second for run in runs for second in run["seconds"][1:]),
           "peak_mib": statistics.median(run["peak_mib"] for run in runs)}
    for what in ("merge", "unmerge"):
        if times := [second for run in runs for second in run.get(what, [])]:
            row[what] = statistics.median(times)
    return row


if __name__ == "__main__":
    main()

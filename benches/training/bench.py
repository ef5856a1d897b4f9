#!/usr/bin/env python3
"""Times training steps, candle-peft and PyTorch with PEFT in turn, and reads the memory that either takes.

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

CASES = ["tinylora", "lora", "lora-all"]
SHAPES = ["1x128", "4x256", "1x2048"]


def arguments():
    options = parser(__doc__, "folder of a Llama model")
    options.add_argument("--cases", nargs="+", choices=CASES, default=CASES, metavar="CASE", help=", ".join(CASES))
    options.add_argument("--shapes", nargs="+", default=SHAPES, metavar="BxL", help="batch sizes and lengths in tokens")
    options.add_argument("--steps", type=int, default=5, help="steps of a run; the first is not counted")
    options.add_argument("--runs", type=int, default=3, help="runs of either side")
    return options.parse_args()


def main():
    args = arguments()
    with workplace(args) as (work, python):
        subprocess.run(["cargo", "build", "--workspace", "--example", "bench_training"], cwd=ROOT, check=True)
        rows = [measure(case, shape, python, args) for case in args.cases for shape in args.shapes]
        facts = {"base": str(args.base), "threads": args.threads, "load": os.getloadavg()[0]}
        (work / "results.json").write_text(json.dumps({**facts, "rows": rows}, indent=2))
    print("| adapter | batch x tokens | PyTorch | candle-peft | ratio | memory: PyTorch | candle-peft | ratio | losses apart by |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        theirs, ours = row["torch"], row["ours"]
        print(f"| {row['case']} | {row['shape']} | {theirs['seconds']:.2f} s | {ours['seconds']:.2f} s | {ours['seconds'] / theirs['seconds']:.2f} "
              f"| {theirs['peak_mib']:.0f} MiB | {ours['peak_mib']:.0f} MiB | {ours['peak_mib'] / theirs['peak_mib']:.2f} | {row['loss']:.0e} |")
    print(f"\n{facts['threads']} threads, medians of {args.runs} runs of {args.steps} steps, load average {facts['load']:.1f} at the end")


def measure(case, shape, python, args):
    """Medians of either side, in turn."""
    batch, length = shape.split("x")
    common = [args.base, case, batch, length, args.steps]
    theirs, ours = [], []
    for _ in range(args.runs):
        ours.append(json.loads(run(target() / "examples" / "bench_training", *common)))
        theirs.append(json.loads(run(python, "-W", "ignore", HERE / "torch_side.py", *common, args.threads)))
    # Fresh adapters change nothing, so the first losses are those of the base model.
    apart = abs(ours[0]["losses"][0] - theirs[0]["losses"][0])
    return {"case": case, "shape": shape, "torch": medians(theirs), "ours": medians(ours), "loss": apart}


def medians(runs):
    seconds = statistics.median(second for run in runs for second in run["seconds"][1:])
    return {"seconds": seconds, "peak_mib": statistics.median(run["peak_mib"] for run in runs),
            "loaded_mib": statistics.median(run["loaded_mib"] for run in runs)}


if __name__ == "__main__":
    main()

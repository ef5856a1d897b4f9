#!/usr/bin/env python3
"""Times training steps, candle-peft and PyTorch with PEFT in turn, and reads the memory that either takes.

Needs Python and cargo; the packages for PyTorch's part are installed into a virtual environment unless one is given.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from harness import ROOT, environment, run, target  # noqa: E402

CASES = ["tinylora", "lora", "lora-all"]
SHAPES = ["1x128", "4x256", "1x2048"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", metavar="DIR", type=Path, required=True, help="folder of a Llama model")
    parser.add_argument("--python", metavar="BIN", type=Path,
                        help="a Python that has PEFT, torch and transformers [default: one made in --work]")
    parser.add_argument("--work", metavar="DIR", type=Path, help="keep results.json here")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES, metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="BxL", help="batch sizes and lengths in tokens")
    parser.add_argument("--steps", type=int, default=5, help="steps of a run; the first is not counted")
    parser.add_argument("--runs", type=int, default=3, help="runs of either side")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of either side")
    return parser.parse_args()


def main():
    args = arguments()
    os.environ.update(RAYON_NUM_THREADS=str(args.threads), HF_HUB_OFFLINE="1")
    with tempfile.TemporaryDirectory() as scratch:
        work = (args.work or Path(scratch)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        python = args.python or environment(work / "venv")
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

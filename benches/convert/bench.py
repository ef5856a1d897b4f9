#!/usr/bin/env python3
"""Times the conversion of a TinyLoRA on every linear layer of a model to LoRA: candle-peft's and PEFT's, in one run.

Needs Python and cargo; the packages for PEFT's part are installed into a virtual environment unless one is given.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from harness import ROOT, parser, run, target, workplace  # noqa: E402

ADAPTER = {"r": 2, "u": 13, "weight_tying": 1.0, "target_modules": "all-linear", "init_weights": "uniform"}
RUNS = 5


def arguments():
    options = parser(__doc__, "folder of a Llama model")
    options.add_argument("--release", action="store_true", help="build candle-peft with --release")
    return options.parse_args()


def main():
    args = arguments()
    with workplace(args) as (work, python):
        command, library = build(args.release)
        adapter = work / "tinylora"
        if not adapter.exists():
            settings = [word for name, value in ADAPTER.items() for word in ("--set", f"{name}={value}")]
            run(command, "init", "--base", args.base, "--method", "tinylora", *settings, "--out", adapter)
        rows = ours(command, library, adapter, work)
        rows += json.loads(run(python, HERE / "peft_side.py", args.base, adapter, work, args.threads))
        measure(python, adapter, rows)
        facts = {"base": str(args.base), "adapter": ADAPTER, "threads": args.threads, "load": os.getloadavg()[0],
                 "profile": "release" if args.release else "dev"}
        (work / "results.json").write_text(json.dumps({**facts, "rows": rows}, indent=2))
    print(table(rows))
    print(f"\n{facts['threads']} threads, {facts['profile']} profile, load average {facts['load']:.1f} at the end")


def build(release):
    """The command line and the program that times the library."""
    profile = ["--release"] if release else []
    names = ["--bin", "candle-peft", "--example", "bench_convert"]
    subprocess.run(["cargo", "build", "--workspace", *profile, *names], cwd=ROOT, check=True)
    folder = target("release" if release else "debug")
    return folder / "candle-peft", folder / "examples" / "bench_convert"


def ours(command, library, adapter, work):
    """Rows of candle-peft: exact, and cut down to rank 1."""
    rows = []
    for name, rank in [("candle-peft, exact", None), ("candle-peft, rank 1", 1)]:
        out = work / f"candle-peft-{rank or 'exact'}"
        option = ["--rank", rank] if rank else []
        walls = []
        for _ in range(RUNS):
            start = time.perf_counter()
            run(command, "convert", "--adapter", adapter, "--to", "lora", "--out", out, *option)
            walls.append(time.perf_counter() - start)
        inside = json.loads(run(library, adapter, *([rank] if rank else [])))
        rows.append({"name": name, "out": str(out), "modules": inside["modules"], "convert": inside["convert"],
                     "whole": statistics.median(walls)})
    return rows


def measure(python, adapter, rows):
    """Adds the errors to the rows, and a row with the least error that rank 1 can have."""
    report = json.loads(run(python, HERE / "errors.py", adapter, *[row["out"] for row in rows]))
    for row in rows:
        row["errors"] = report["errors"][row["out"]]
    rows.append({"name": "the least that rank 1 allows", "errors": report["least"]})


def table(rows):
    header = ["conversion", "folder to folder", "largest error", "mean error"]
    lines = [f"| {rows[0]['modules']} modules | {' | '.join(header)} |", "|---|---|---|---|---|"]
    for row in rows:
        times = [duration(row[key]) if key in row else "" for key in ("convert", "whole")]
        errors = [f"{row['errors'][key]:.2g}" for key in ("largest", "mean")]
        lines.append(f"| {row['name']} | {' | '.join(times + errors)} |")
    return "\n".join(lines)


def duration(seconds):
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


if __name__ == "__main__":
    main()

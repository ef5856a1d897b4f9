#!/usr/bin/env python3
"""Times making a TinyLoRA of 13 numbers on every linear layer of a model, candle-peft and PEFT in turn, and single decompositions.

Needs Python and cargo; the packages for PEFT's part are installed into a virtual environment unless one is given. The model is tried
with its own weights, whose singular values fall, and with Gaussian ones of the same shapes, whose do not.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from harness import ROOT, parser, run, target, workplace  # noqa: E402


def arguments():
    options = parser(__doc__, "folder of a Llama model in f32, one file of weights")
    options.add_argument("--runs", type=int, default=3, help="runs of either side")
    return options.parse_args()


def main():
    args = arguments()
    with workplace(args) as (work, python):
        subprocess.run(["cargo", "build", "--workspace", "--example", "bench_init", "--bench", "truncated_svd"], cwd=ROOT, check=True)
        gaussian = work / "gaussian"
        if not gaussian.exists():
            run(python, HERE / "gaussian.py", args.base, gaussian)
        rows = [model(name, base, python, work, args) for name, base in (("own", args.base), ("Gaussian", gaussian))]
        layers = single(python, args.threads)
        facts = {"base": str(args.base), "threads": args.threads, "load": os.getloadavg()[0]}
        (work / "results.json").write_text(json.dumps({**facts, "models": rows, "layers": layers}, indent=2))
    print("| weights | PEFT | candle-peft | ratio | load the model | largest error of B A: PEFT | candle-peft |\n|---|---|---|---|---|---|---|")
    for row in rows:
        print(f"| {row['name']} | {row['peft']:.2f} s | {row['ours']:.3f} s | {row['peft'] / row['ours']:.0f} | {row['load']:.2f} s "
              f"| {row['errors'][0]:.1e} | {row['errors'][1]:.1e} |")
    print("\n| weights | start | seconds | of loading alone | held after loading | at the most above it |\n|---|---|---|---|---|---|")
    for row in rows:
        alone = row["starts"]["none"]["seconds"]
        for kind, start in row["starts"].items():
            print(f"| {row['name']} | {kind} | {start['seconds']:.3f} s | {start['seconds'] / alone:.2f} | {start['held'] / 1e6:.0f} MB "
                  f"| {start['above_model'] / 1e6:.0f} MB |")
        theirs = (row["their_load"] + row["peft"], row["their_load"] + row["their_read"])
        for kind, seconds in zip(("PEFT, make", "PEFT, read"), theirs):
            print(f"| {row['name']} | {kind} | {seconds:.2f} s | {seconds / row['their_load']:.2f} | {row['their_held'] / 1e6:.0f} MB "
                  f"| {row['their_above_model'] / 1e6:.0f} MB |")
        print(f"\n{row['name']}: compact checkpoint {row['compact_bytes']} bytes, PEFT's tensors {row['their_bytes']} bytes\n")
    print("\n| layer | spectrum | torch.linalg.svd | r = 2 here | ratio |\n|---|---|---|---|---|")
    for row in layers:
        rows_, cols = row["shape"]
        print(f"| {rows_} x {cols} | {row['spectrum']} | {row['torch']:.2f} s | {1000 * row['ours']:.0f} ms | {row['torch'] / row['ours']:.0f} |")
    print(f"\n{facts['threads']} threads, medians of {args.runs} runs, load average {facts['load']:.1f} at the end")


def model(name, base, python, work, args):
    """Medians of either side, in turn, how far the products of the factors are from exact ones, and starts of every kind."""
    theirs, kinds = [], {"make": [], "none": [], "cached": [], "compact": [], "compact cached": []}
    out, ours, cache = work / f"{name}-peft", work / f"{name}-candle-peft", work / f"{name}-cache"
    shutil.rmtree(cache, ignore_errors=True)

    def here(kind):
        mode, *cached = kind.split()
        with_cache = [cache] if cached or mode == "cached" else []
        return json.loads(run(target() / "examples" / "bench_init", base, mode, ours, *with_cache))

    for _ in range(args.runs):
        for folder in (out, ours):
            shutil.rmtree(folder, ignore_errors=True)
        theirs.append(json.loads(run(python, HERE / "peft_side.py", "model", base, out, args.threads)))
        kinds["make"].append(here("make"))
        if not cache.exists():
            here("cached")
        # In turn, so that a busy moment meets all of them.
        for _ in range(5):
            for kind in ("none", "cached", "compact", "compact cached"):
                kinds[kind].append(here(kind))
    errors = json.loads(run(python, HERE / "errors.py", base, out, ours / "full"))
    starts = {kind: {"seconds": median(runs, "load", "more"), "more": median(runs, "more"), "held": median(runs, "held"),
                     "above_model": median(runs, "above_model")} for kind, runs in kinds.items()}
    size = sum(file.stat().st_size for file in (ours / "compact").iterdir())
    return {"name": name, "peft": median(theirs, "make"), "ours": starts["make"]["more"], "load": median(kinds["none"], "load"),
            "errors": errors, "starts": starts, "compact_bytes": size, "their_load": median(theirs, "load"), "their_read": median(theirs, "read"),
            "their_held": median(theirs, "held"), "their_above_model": median(theirs, "above_model"),
            "their_bytes": (out / "adapter_model.safetensors").stat().st_size}


def median(runs, *names):
    """The median of sums of these fields."""
    return statistics.median(sum(run[name] for name in names) for run in runs)


def single(python, threads):
    """torch's decomposition and the truncated one of the same shapes."""
    theirs = json.loads(run(python, HERE / "peft_side.py", "layers", threads))
    done = subprocess.run(["cargo", "bench", "--quiet", "--profile", "dev", "--workspace", "--bench", "truncated_svd"], cwd=ROOT,
                          stdout=subprocess.PIPE, text=True, check=True)
    ours = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    found = {(tuple(row["shape"]), row["spectrum"]): row["seconds"] for row in ours if row["r"] == 2}
    return [{"shape": row["shape"], "spectrum": row["spectrum"], "torch": row["seconds"],
             "ours": found[tuple(row["shape"]), row["spectrum"]]} for row in theirs]


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Times making a TinyLoRA of 13 numbers on every linear layer of a model, candle-peft and PEFT in turn, and single decompositions.

Needs Python and cargo; the packages for PEFT's part are installed into a virtual environment unless one is given. The model is tried
with its own weights, whose singular values fall, and with Gaussian ones of the same shapes, whose do not.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from harness import ROOT, environment, run, target  # noqa: E402


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", metavar="DIR", type=Path, required=True, help="folder of a Llama model in f32, one file of weights")
    parser.add_argument("--python", metavar="BIN", type=Path,
                        help="a Python that has PEFT, torch and transformers [default: one made in --work]")
    parser.add_argument("--work", metavar="DIR", type=Path, help="keep adapters and results.json here")
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
    print("\n| layer | spectrum | torch.linalg.svd | r = 2 here | ratio |\n|---|---|---|---|---|")
    for row in layers:
        rows_, cols = row["shape"]
        print(f"| {rows_} x {cols} | {row['spectrum']} | {row['torch']:.2f} s | {1000 * row['ours']:.0f} ms | {row['torch'] / row['ours']:.0f} |")
    print(f"\n{facts['threads']} threads, medians of {args.runs} runs, load average {facts['load']:.1f} at the end")


def model(name, base, python, work, args):
    """Medians of either side, in turn, and how far the products of the factors are from exact ones."""
    theirs, ours = [], []
    outs = [work / f"{name}-peft", work / f"{name}-candle-peft"]
    for _ in range(args.runs):
        for out in outs:
            shutil.rmtree(out, ignore_errors=True)
        theirs.append(json.loads(run(python, HERE / "peft_side.py", "model", base, outs[0], args.threads)))
        ours.append(json.loads(run(target() / "examples" / "bench_init", base, outs[1])))
    errors = json.loads(run(python, HERE / "errors.py", base, *outs))
    return {"name": name, "peft": statistics.median(run["make"] for run in theirs), "ours": statistics.median(run["make"] for run in ours),
            "load": statistics.median(run["load"] for run in ours), "errors": errors}


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

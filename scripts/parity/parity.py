#!/usr/bin/env python3
"""Compares the `candle-peft` command line with PyTorch, transformers and PEFT on a real model."""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Nothing here needs the network, and a hub that is out of reach must not slow the checks down.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import peft
import torch
import transformers

import golden
from candle_peft import CandlePeft
from checks import ModelChecks
from reference import Reference
from report import Report
from stand_in import StandIn

HERE = Path(__file__).resolve().parent
GOLDEN = HERE.parent.parent / "tests" / "fixtures"
CHECKS = ["base_loss", "training", "lora", "trained_adapter", "generation", "conversion", "merging", "foreign"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", metavar="DIR", help="folder of a Llama model with its tokenizer, in f32")
    parser.add_argument("--candle-peft", metavar="BIN", help="the binary")
    parser.add_argument("--reference-only", action="store_true", help="PEFT stands in for the binary")
    parser.add_argument("--data", type=Path, default=HERE / "data" / "eval.jsonl", help="rows to evaluate")
    parser.add_argument("--training-data", type=Path, default=HERE / "data" / "train.jsonl", help="rows to train on")
    parser.add_argument("--work", metavar="DIR", type=Path, help="keep what is written, and results.json, here")
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=CHECKS, metavar="CHECK",
                        help=f"a choice of {', '.join(CHECKS)}")
    parser.add_argument("--rewritten", metavar="DIR", help="golden cases as candle-peft writes them, CASE/ each")
    parser.add_argument("--golden", metavar="DIR", default=GOLDEN, help="the golden cases")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch and of the binary")
    args = parser.parse_args()
    if args.base and bool(args.candle_peft) == args.reference_only:
        parser.error("give either --candle-peft or --reference-only")
    if not args.base and not args.rewritten:
        parser.error("give --base, --rewritten or both")
    return args


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    os.environ.setdefault("RAYON_NUM_THREADS", str(args.threads))
    with tempfile.TemporaryDirectory() as scratch:
        work = args.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        started = time.time()
        report = Report()
        if args.base:
            model_checks(args, work, report)
        if args.rewritten:
            golden.check(args.golden, args.rewritten, report)
        report.write((args.work or Path.cwd()) / "results.json", **facts(args, time.time() - started))
    print(f"\n{len(report.rows)} checks, {len(report.failures)} failed")
    return 1 if report.failures else 0


def model_checks(args, work, report):
    ref = Reference(args.base)
    end = ref.tokenizer.eos_token_id
    subject = StandIn(ref) if args.reference_only else CandlePeft(args.candle_peft, args.base, end)
    checks = ModelChecks(subject, ref, args.data, args.training_data, work, report)
    for name in args.only:
        try:
            getattr(checks, name)()
        except Exception as error:  # One check that breaks must not hide the others.
            report.failed(name, f"{type(error).__name__}: {error}")


def facts(args, seconds):
    versions = {module.__name__: module.__version__ for module in (torch, transformers, peft)}
    if args.candle_peft:
        done = subprocess.run([args.candle_peft, "--version"], capture_output=True, text=True)
        versions["candle-peft"] = done.stdout.strip()
    return {"base": args.base, "versions": versions, "cpu": torch.backends.cpu.get_cpu_capability(),
            "seconds": round(seconds, 1)}


if __name__ == "__main__":
    sys.exit(main())

"""What the benchmarks share: the packages that PEFT's part needs, and running programs."""

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The versions that the parity checks are made with.
REQUIREMENTS = ROOT / "scripts" / "parity" / "requirements.txt"


def parser(description, base):
    """The options of every benchmark; `base` says which model it wants."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--base", metavar="DIR", type=Path, required=True, help=base)
    parser.add_argument("--python", metavar="BIN", type=Path,
                        help="a Python that has PEFT, torch and transformers [default: one made in --work]")
    parser.add_argument("--work", metavar="DIR", type=Path, help="keep what is written, and results.json, here")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of either side")
    return parser


@contextmanager
def workplace(args):
    """The folder to work in and the Python for PEFT's part, with the number of threads set for either side."""
    os.environ.update(RAYON_NUM_THREADS=str(args.threads), HF_HUB_OFFLINE="1")
    with tempfile.TemporaryDirectory() as scratch:
        work = (args.work or Path(scratch)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        yield work, args.python or environment(work / "venv")


def environment(folder):
    """The Python of a virtual environment with the pinned packages."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        run(python, "-m", "pip", "install", "--quiet", "-r", REQUIREMENTS)
    return python


def target(profile="debug"):
    """Where cargo puts programs."""
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / profile


def run(*words):
    """What a program printed."""
    done = subprocess.run([str(word) for word in words], stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, words))}\nended with exit code {done.returncode}")
    return done.stdout

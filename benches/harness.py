"""What the benchmarks share: the packages that PEFT's part needs, and running programs."""

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The versions that the parity checks are made with.
REQUIREMENTS = ROOT / "scripts" / "parity" / "requirements.txt"


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

"""Runs `candle-peft` and reads what it says, how long it takes and how much memory it has."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from experiments import HERE

ROOT = HERE.parent.parent
# Seconds between two looks at a process's memory.
INTERVAL = 0.02


class ProgramFailed(Exception):
    """The program ended with an error."""


@dataclass(frozen=True)
class Call:
    """A call that succeeded. Memory is the resident set of the process, in bytes."""

    report: dict
    seconds: float
    memory: list
    memory_max: int


class Program:
    """The command line program, with a number of threads."""

    def __init__(self, path, threads):
        self.path = path
        self.threads = threads

    @cached_property
    def version(self):
        return subprocess.run([self.path, "--version"], capture_output=True, text=True, check=True).stdout.strip()

    @cached_property
    def digest(self):
        """Stands for this very build."""
        # In pieces: on Linux the peak memory of a child counts what this process had when it started it.
        digest = hashlib.sha256()
        with open(self.path, "rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
        return digest.hexdigest()

    def __call__(self, words, log):
        """Runs a command; what it wrote to standard error is in the file `log`."""
        words = [str(self.path), *map(str, words), "--json"]
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "RAYON_NUM_THREADS": str(self.threads), "HF_HUB_OFFLINE": "1"}
        output = log.with_suffix(".out")
        started = time.monotonic()
        with output.open("w") as stdout, log.open("w") as stderr:
            process = subprocess.Popen(words, stdout=stdout, stderr=stderr, env=environment)
            try:
                memory, usage = watch(process)
            finally:
                if process.returncode is None:
                    process.kill()
                    process.wait()
        seconds = time.monotonic() - started
        text = output.read_text()
        if process.returncode != 0:
            said = (text.strip() or log.read_text().strip()).splitlines()
            raise ProgramFailed(f"{' '.join(words)} ended with {process.returncode}: {said[-1] if said else 'no output'}")
        # Kilobytes on Linux, bytes on macOS.
        most = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return Call(json.loads(text), seconds, memory, most)


def watch(process):
    """Waits for a process; how much memory it had time after time, and what it used."""
    memory = []
    while True:
        done, status, usage = os.wait4(process.pid, os.WNOHANG)
        if done:
            process.returncode = os.waitstatus_to_exitcode(status)
            return [bytes for bytes in memory if bytes], usage
        memory.append(resident(process.pid))
        time.sleep(INTERVAL)


def resident(pid):
    """The resident set of a process in bytes; none where the system does not tell or the process is gone."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    except (OSError, IndexError):
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def find(path):
    """The program that was named, or else the one that cargo built, or the one on PATH."""
    built = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug" / "candle-peft"
    choices = [path] if path else [built, shutil.which("candle-peft")]
    for choice in choices:
        if choice and os.access(choice, os.X_OK):
            return Path(choice).resolve()
    sys.exit(f"no candle-peft at {path or built}; build it with `cargo build -p peft-cli`, or name one with --binary")

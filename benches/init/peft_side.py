"""PEFT's `get_peft_model`, or torch's SVD, timed: `peft_side.py model BASE OUT THREADS` or `peft_side.py layers THREADS`. Prints JSON."""

import json
import sys
import time
from pathlib import Path

import torch

SHAPES = [(2048, 2048), (512, 2048), (8192, 2048), (2048, 8192)]


def model(base, out):
    from peft import PeftModel, TinyLoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    start = time.perf_counter()
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    loaded, load_peak, held = time.perf_counter(), peak(), reset()
    adapted = get_peft_model(plain, TinyLoraConfig(task_type="CAUSAL_LM", u=13, weight_tying=1.0, target_modules="all-linear"))
    made, above_model = time.perf_counter(), peak() - held
    adapted.save_pretrained(out, save_embedding_layers=False)
    saved = time.perf_counter()
    # The same file again, as a later start reads it.
    again = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    again_loaded = time.perf_counter()
    PeftModel.from_pretrained(again, out)
    return {"load": again_loaded - saved, "make": made - loaded, "read": time.perf_counter() - again_loaded,
            "load_peak": load_peak, "held": held, "above_model": above_model}


def peak():
    """The most memory that this process held so far, or since `reset`, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


def reset():
    """Forgets the peak so far; what the process holds now."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def layers():
    rows = []
    for shape in SHAPES:
        gaussian = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        for spectrum, weight in (("Gaussian", gaussian), ("1 / i", decaying(gaussian))):
            start = time.perf_counter()
            torch.linalg.svd(weight, full_matrices=False)
            rows.append({"shape": list(shape), "spectrum": spectrum, "seconds": time.perf_counter() - start})
    return rows


def decaying(gaussian):
    """The same singular vectors with the values 1, 1/2, 1/3, ..."""
    u, s, vh = torch.linalg.svd(gaussian, full_matrices=False)
    return (u / torch.arange(1, len(s) + 1)) @ vh


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[-1]))
    print(json.dumps(model(*sys.argv[2:4]) if sys.argv[1] == "model" else layers()))

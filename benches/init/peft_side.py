"""PEFT's `get_peft_model`, or torch's SVD, timed: `peft_side.py model BASE OUT THREADS` or `peft_side.py layers THREADS`. Prints JSON."""

import json
import sys
import time

import torch

SHAPES = [(2048, 2048), (512, 2048), (8192, 2048), (2048, 8192)]


def model(base, out):
    from peft import TinyLoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    start = time.perf_counter()
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    loaded = time.perf_counter()
    adapted = get_peft_model(plain, TinyLoraConfig(task_type="CAUSAL_LM", u=13, weight_tying=1.0, target_modules="all-linear"))
    made = time.perf_counter()
    adapted.save_pretrained(out, save_embedding_layers=False)
    return {"load": loaded - start, "make": made - loaded}


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

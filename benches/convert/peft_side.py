"""PEFT's `convert_to_lora` of an adapter, timed: `peft_side.py BASE ADAPTER WORK THREADS`. Prints rows as JSON."""

import json
import sys
import time
from pathlib import Path

import torch
from peft import PeftModel, convert_to_lora
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging


def main():
    base, adapter, work, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    rows = []
    for rank in (2, 1):
        out = Path(work) / f"peft-{rank}"
        out.mkdir(exist_ok=True)
        start = time.perf_counter()
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
        loaded = time.perf_counter()
        config, tensors = convert_to_lora(model, rank)
        converted = time.perf_counter()
        config.save_pretrained(out)
        save_file(tensors, out / "adapter_model.safetensors")
        rows.append({"name": f"PEFT `convert_to_lora`, rank {rank}", "out": str(out), "modules": len(tensors) // 2,
                     "convert": converted - loaded, "whole": time.perf_counter() - start})
    print(json.dumps(rows))


if __name__ == "__main__":
    main()

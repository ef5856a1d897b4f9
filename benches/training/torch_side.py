"""Training steps of PyTorch, transformers and PEFT: `torch_side.py MODEL_DIR CASE BATCH LENGTH STEPS THREADS`. Prints JSON."""

import json
import sys
import time

import torch
from peft import LoraConfig, TinyLoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()


def memory(what):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith(what))


def config(case):
    return {
        "tinylora": lambda: TinyLoraConfig(task_type="CAUSAL_LM", u=13, weight_tying=1.0, target_modules="all-linear"),
        "lora": lambda: LoraConfig(task_type="CAUSAL_LM", r=16, target_modules=["q_proj", "v_proj"]),
        "lora-all": lambda: LoraConfig(task_type="CAUSAL_LM", r=16, target_modules="all-linear"),
    }[case]()


def main():
    base, case, batch, length, steps, threads = sys.argv[1:]
    batch, length, steps = int(batch), int(length), int(steps)
    torch.set_num_threads(int(threads))
    dtype = torch.bfloat16 if case.endswith("-bf16") else torch.float32
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    loaded = memory("VmRSS:")
    model = get_peft_model(model, config(case.removesuffix("-bf16")))
    model.train()
    ids = ((torch.arange(batch * length) * 7919) % 40_000 + 5).reshape(batch, length)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    seconds, losses = [], []
    for _ in range(steps):
        start = time.perf_counter()
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - start)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(json.dumps({"seconds": seconds, "losses": losses, "loaded_mib": loaded, "peak_mib": memory("VmHWM:"), "trainable": trainable}))


main()

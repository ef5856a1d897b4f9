"""Generation with transformers: `torch_side.py MODEL_DIR CASE PROMPTS SAMPLES TOKENS RUNS THREADS`. Prints JSON."""

import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()


def memory(what):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith(what))


def prompts(count):
    """The same as the other side's, padded on the left."""
    lengths = [40 if count == 1 else 20 + i * 40 // (count - 1) for i in range(count)]
    ids = torch.zeros(count, max(lengths), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, -length:] = torch.tensor([(row * 1009 + i) * 7919 % 40_000 + 5 for i in range(length)])
        mask[row, -length:] = 1
    return ids, mask


def main():
    base, case, count, samples, tokens, runs, threads = sys.argv[1:]
    count, samples, tokens = int(count), int(samples), int(tokens)
    torch.set_num_threads(int(threads))
    dtype = torch.bfloat16 if case.endswith("-bf16") else torch.float32
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).eval()
    loaded = memory("VmRSS:")
    ids, mask = prompts(count)
    seconds = []
    for _ in range(int(runs)):
        start = time.perf_counter()
        with torch.inference_mode():
            texts = model.generate(input_ids=ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                                   num_return_sequences=samples, max_new_tokens=tokens, min_new_tokens=tokens, pad_token_id=0)
        seconds.append(time.perf_counter() - start)
        assert texts.shape == (count * samples, ids.shape[1] + tokens)
    print(json.dumps({"seconds": seconds, "loaded_mib": loaded, "peak_mib": memory("VmHWM:")}))


main()

"""Golden cases that candle-peft has read and written again: PEFT must find nothing changed."""

import json
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import adapters
from reference import check_loaded, strict_warnings

LOGITS_LIMIT = 1e-5
# PEFT decomposes the weight again when it reads such an adapter, and with another number of threads to other last bits.
DECOMPOSED, DECOMPOSED_LIMIT = ("pissa", "olora"), 5e-5
# Cases of other methods are compared where they are.
REQUIRED = "TINYLORA"


def check(golden, rewritten, report):
    """Compares the cases under `rewritten` with their originals under `golden`."""
    for case in sorted(path.parent for path in Path(golden).glob("*/case.json")):
        facts = json.loads((case / "case.json").read_text())
        for expected in sorted(case.rglob("expected.safetensors")):
            original = expected.parent
            name = str(original.relative_to(golden))
            if facts["peft_type"] != REQUIRED and not (Path(rewritten) / name).exists():
                continue
            try:
                _check_case(name, original, Path(rewritten) / name, case.parent / facts["base"], report)
            except Exception as error:  # One broken case must not hide the others.
                report.failed(f"golden {name}", f"{type(error).__name__}: {error}")


def _check_case(name, original, copy, base, report):
    report.equal(f"golden {name}: layout", adapters.layout(copy), adapters.layout(original))
    report.equal(f"golden {name}: tensors that changed", adapters.changed(copy, original), [])
    report.equal(f"golden {name}: fields", adapters.config(copy), adapters.config(original))

    expected = load_file(original / "expected.safetensors")
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto", attn_implementation="eager")
    with strict_warnings():
        model = PeftModel.from_pretrained(model, copy).eval()
    check_loaded(model, copy)
    with torch.no_grad():
        logits = model(expected["input_ids"]).logits.float()
    worst = (logits - expected["adapted_logits"].float()).abs().max().item()
    decomposed = adapters.config(copy).get("init_lora_weights") in DECOMPOSED
    report.number(f"golden {name}: logits", worst, 0.0, DECOMPOSED_LIMIT if decomposed else LOGITS_LIMIT)

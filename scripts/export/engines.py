#!/usr/bin/env python3
"""Runs exported adapters in MLX-LM and in llama.cpp and compares their logits with those that PEFT computed.

Takes the folders of check.py. MLX runs on the CPU; llama.cpp is that of the package xllamacpp, with f32 base models made here.
Both give the log-probabilities of every token after every prefix. Prints a line per case and engine and 'N passed, N failed';
the exit code is 1 if any comparison failed.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import base_gguf
import numpy as np
from cases import Case
from safetensors.numpy import load_file, save_file

# ggml looks GELU up in a table of f16 numbers, and mlx-lm computes that of the first Gemma without PyTorch's approximation. So
# these base models differ as much without any adapter.
GELU_LIMIT = 1e-2
GELU = {"llama_cpp": ("gpt2", "gemma", "gemma2"), "mlx": ("gemma",)}


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def mlx(case: Case, folder: Path | None, work: Path) -> np.ndarray:
    """What mlx-lm computes with the base model, and the adapter in a folder."""
    import mlx.core as mx
    from mlx_lm.tuner.utils import load_adapters
    from mlx_lm.utils import load_model

    # mlx-lm reads configs as they are published: `rope_theta` at the top, and `n_ctx` for GPT-2, whose tensors have no
    # `transformer.` in their names.
    config = (case.base_config.get("rope_parameters") or {}) | case.base_config
    tensors = load_file(case.base / "model.safetensors")
    if case.model_type == "gpt2":
        config["n_ctx"] = config["n_positions"]
        tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    (work / "config.json").write_text(json.dumps(config))
    save_file(tensors, work / "model.safetensors")
    model, _ = load_model(work)
    if folder is not None:
        load_adapters(model, str(folder))
    return log_softmax(np.array(model(mx.array(case.expected["input_ids"])).astype(mx.float32)))


def llama_cpp(case: Case, file: Path | None, work: Path) -> np.ndarray:
    """What llama.cpp computes with the base model, and the adapter in a file: one request per prefix."""
    import xllamacpp

    base = work / "base.gguf"
    base_gguf.write(case.base, base)
    params = xllamacpp.CommonParams()
    params.model.path = str(base)
    params.n_ctx, params.n_parallel, params.warmup = 64, 1, False
    # A cache in f16 would cost more precision than the limit allows.
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if file is not None:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(file), 1.0)]
    server = xllamacpp.Server(params)
    ids, vocabulary = case.expected["input_ids"], case.base_config["vocab_size"]
    found = np.full((*ids.shape, vocabulary), np.nan)
    request = {"n_predict": 1, "n_probs": vocabulary, "cache_prompt": False, "samplers": [], "post_sampling_probs": False}
    for row, column in np.ndindex(ids.shape):
        reply = server.handle_completions({"prompt": ids[row, : column + 1].tolist()} | request)
        for token in reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
            found[row, column, token["id"]] = token["logprob"]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, required=True, help="the folder of the cases and their base models")
    parser.add_argument("--exports", type=Path, required=True, help="the folder of the converted adapters")
    parser.add_argument("--limit", type=float, default=1e-4, help="more for a model of many blocks, whose sums round more")
    parser.add_argument("names", nargs="+", metavar="CASE")
    args = parser.parse_args()

    passed = failed = 0
    for name in args.names:
        case = Case(args.cases, name)
        plain, adapted = (log_softmax(case.expected[key]) for key in ("base_logits", "adapted_logits"))
        for engine, file in ((mlx, "mlx"), (llama_cpp, "adapter.gguf")):
            with tempfile.TemporaryDirectory() as work:
                of_base = np.abs(engine(case, None, Path(work)) - plain).max()
                found = engine(case, args.exports / name / file, Path(work))
            error, effect = np.abs(found - adapted).max(), np.abs(found - plain).max()
            # NaN, of a token without a probability, is no agreement; and an adapter that does nothing proves nothing.
            limit = GELU_LIMIT if case.model_type in GELU[engine.__name__] else args.limit
            agrees = of_base <= limit and error <= limit and effect > 50 * limit
            passed, failed = passed + agrees, failed + (not agrees)
            line = f"{engine.__name__:9} {name}: base {of_base:.1e}, adapter {error:.1e}, effect {effect:.2f}"
            print(f"{'ok' if agrees else 'FAILED':6} {line}", flush=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())

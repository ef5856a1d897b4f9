"""How far LoRAs are from a TinyLoRA, in f64: `errors.py TINYLORA LORA ...`. Prints JSON.

An error is that of a module: |delta - delta'| / |delta| in Frobenius norms, delta = B R A with R = sum_i v[i] P[i].
"""

import json
import sys
from pathlib import Path

import numpy
from safetensors.numpy import load_file


def tensors(folder):
    loaded = load_file(Path(folder) / "adapter_model.safetensors")
    return {name: tensor.astype(numpy.float64) for name, tensor in loaded.items()}


def exact(folder):
    """Left and right factor of each module's delta."""
    source = tensors(folder)
    v = source["base_model.tinylora_v.0"]
    assert sum(".tinylora_v." in name for name in source) == 1, "all modules share one vector"
    factors = {}
    for name, b in source.items():
        if name.endswith(".tinylora_B"):
            module = name.removesuffix(".tinylora_B")
            mixing = numpy.einsum("i,ijk->jk", v, source[f"{module}.tinylora_P"])
            factors[module] = b @ mixing, source[f"{module}.tinylora_A"]
    return factors


def spectrum(left, right):
    """The singular values of a product of two factors, which is never multiplied out."""
    core = numpy.linalg.qr(left, mode="r") @ numpy.linalg.qr(right.T, mode="r").T
    return numpy.linalg.svd(core, compute_uv=False)


def error(delta, lora, module):
    (left, right), (b, a) = delta, (lora[f"{module}.lora_B.weight"], lora[f"{module}.lora_A.weight"])
    difference = spectrum(numpy.hstack([left, -b]), numpy.vstack([right, a]))
    return numpy.linalg.norm(difference) / numpy.linalg.norm(spectrum(left, right))


def summary(values):
    return {"largest": float(max(values)), "mean": float(numpy.mean(values))}


def main():
    deltas = exact(sys.argv[1])
    errors = {}
    for folder in sys.argv[2:]:
        lora = tensors(folder)
        assert len(lora) == 2 * len(deltas), f"{folder} has other modules"
        errors[folder] = summary([error(delta, lora, module) for module, delta in deltas.items()])
    spectra = [spectrum(*delta) for delta in deltas.values()]
    least = summary([numpy.linalg.norm(s[1:]) / numpy.linalg.norm(s) for s in spectra])
    print(json.dumps({"errors": errors, "least": least}))


if __name__ == "__main__":
    main()

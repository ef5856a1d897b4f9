"""How far two TinyLoRAs' products B A are apart, which the signs of singular vectors do not change: `difference.py ONE OTHER`.

Prints the largest of all modules of |B A - B' A'| / |B A| in Frobenius norms, computed in f64 from the small factors.
"""

import sys
from pathlib import Path

import numpy
from safetensors.numpy import load_file

one, other = ({name: tensor.astype(numpy.float64) for name, tensor in load_file(Path(folder) / "adapter_model.safetensors").items()}
              for folder in sys.argv[1:])


def norm(left, right):
    """Of a product that is never multiplied out."""
    return numpy.linalg.norm(numpy.linalg.qr(left, mode="r") @ numpy.linalg.qr(right.T, mode="r").T)


worst = 0.0
for name, b in one.items():
    if name.endswith("tinylora_B"):
        a_name = name.removesuffix("B") + "A"
        a, other_a, other_b = one[a_name], other[a_name], other[name]
        worst = max(worst, norm(numpy.hstack([b, -other_b]), numpy.vstack([a, other_a])) / norm(b, a))
print(worst)

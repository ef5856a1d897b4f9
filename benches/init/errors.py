"""How far the products B A of TinyLoRAs are from the best approximation of their rank: `errors.py MODEL_DIR ADAPTER ...`. Prints JSON.

For each adapter the largest of all modules of |B A - W_r| / |W_r| in Frobenius norms, where W_r comes from a whole decomposition in
f64. The signs of singular vectors do not change it.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

base = load_file(Path(sys.argv[1]) / "model.safetensors")
adapters = [load_file(Path(folder) / "adapter_model.safetensors") for folder in sys.argv[2:]]
worst = [0.0 for _ in adapters]
for name in adapters[0]:
    if not name.endswith(".tinylora_B"):
        continue
    module = name.removesuffix(".tinylora_B")
    r = adapters[0][name].shape[1]
    u, s, vh = torch.linalg.svd(base[module.removeprefix("base_model.model.") + ".weight"].double(), full_matrices=False)
    exact = (u[:, :r] * s[:r]) @ vh[:r]
    for i, adapter in enumerate(adapters):
        product = adapter[name].double() @ adapter[f"{module}.tinylora_A"].double()
        worst[i] = max(worst[i], ((product - exact).norm() / exact.norm()).item())
print(json.dumps(worst))

#!/usr/bin/env python3
"""Writes forgetting.jsonl: 100 texts in the style of what the embedded model was trained on.

A document is one to five sums of numbers below 50. In half of the documents every sum is right, in half every one is one too
many, and `kind` says which. The loss on such texts tells how far a model has moved from the text it comes from.
"""

import json
import random
from pathlib import Path

DOCUMENTS = 100
LIMIT = 50
FILE = Path(__file__).resolve().parent / "forgetting.jsonl"


def rows(seed=0):
    """The rows, right ones and wrong ones in turn."""
    rng = random.Random(seed)
    for number in range(DOCUMENTS):
        too_many = number % 2
        sums = [(rng.randrange(LIMIT), rng.randrange(LIMIT)) for _ in range(rng.randint(1, 5))]
        text = "\n".join(f"{a}+{b}={a + b + too_many}" for a, b in sums)
        yield {"text": text, "kind": "wrong" if too_many else "right"}


def text():
    """The file."""
    return "".join(json.dumps(row) + "\n" for row in rows())


if __name__ == "__main__":
    FILE.write_text(text())

#!/usr/bin/env python3
"""Turns MetaMathQA-395K.json into rows to train on: `make_metamath.py MetaMathQA-395K.json > metamath.jsonl`.

Answers of more than 1300 characters are left out, and every token of a row has a loss, as in PEFT's method comparison. The
prompt is the one that the task gsm8k asks with.
"""

import json
import sys

LONGEST = 1300


def rows(entries):
    """The rows of entries that have a `query` and a `response`."""
    for entry in entries:
        if len(entry["response"]) <= LONGEST:
            yield {"text": f"Question: {entry['query']} Think step by step.\nAnswer: {entry['response']}"}


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: make_metamath.py MetaMathQA-395K.json > metamath.jsonl")
    with open(sys.argv[1], encoding="utf-8") as file:
        for row in rows(json.load(file)):
            print(json.dumps(row))


if __name__ == "__main__":
    main()

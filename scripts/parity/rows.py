"""Data rows as token ids and labels, made with `transformers`: what candle-peft's data module promises."""

import json
from dataclasses import dataclass

IGNORE_INDEX = -100


@dataclass
class Example:
    """Token ids with one label each, not shifted; `IGNORE_INDEX` where no loss is wanted."""

    input_ids: list
    labels: list

    @property
    def targets(self):
        """How many tokens have a loss; nothing predicts the first one."""
        return sum(label != IGNORE_INDEX for label in self.labels[1:])


def read_jsonl(path):
    """The objects of a JSONL file."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def write_ids(path, examples):
    """Writes examples as `input_ids` rows, which need no tokenizer."""
    with open(path, "w") as file:
        for example in examples:
            file.write(json.dumps({"input_ids": example.input_ids, "labels": example.labels}) + "\n")


def encode(row, tokenizer):
    """One row as an `Example`."""
    if "input_ids" in row:
        return Example(row["input_ids"], row.get("labels") or list(row["input_ids"]))
    if "messages" in row:
        return _chat(row["messages"], tokenizer)
    if "text" in row:
        return _after(0, _ended(tokenizer(row["text"]).input_ids, tokenizer))
    prompt = tokenizer(row["prompt"]).input_ids
    ids = _continued(prompt, tokenizer(row["prompt"] + row["completion"]).input_ids, row["completion"], tokenizer)
    return _after(len(prompt), _ended(ids, tokenizer))


def _chat(messages, tokenizer):
    """A conversation: the loss is on the last message if the assistant wrote it, else on every token."""
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    ids = tokenizer(whole, add_special_tokens=False).input_ids
    if messages[-1]["role"] != "assistant" or len(messages) == 1:
        return _after(0, ids)
    before = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    assert whole.startswith(before), "this template does not render a prompt as a beginning of the whole"
    prompt = tokenizer(before, add_special_tokens=False).input_ids
    return _after(len(prompt), _continued(prompt, ids, whole[len(before):], tokenizer))


def _continued(prompt, whole, completion, tokenizer):
    """The whole encoded at once, unless the border of prompt and completion falls inside a token."""
    if whole[:len(prompt)] == prompt:
        return whole
    return prompt + tokenizer(completion, add_special_tokens=False).input_ids


def _ended(ids, tokenizer):
    return ids if ids[-1] == tokenizer.eos_token_id else ids + [tokenizer.eos_token_id]


def _after(prompt, ids):
    return Example(ids, [IGNORE_INDEX] * prompt + ids[prompt:])

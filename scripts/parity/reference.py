"""The reference: losses, training and generation by PyTorch, transformers and PEFT, on the CPU in f32."""

import contextlib
import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, TinyLoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

import adapters
from rows import IGNORE_INDEX

logging.set_verbosity_error()
logging.disable_progress_bar()

# Said of every adapter without stored projections, right or wrong.
EXPECTED_WARNINGS = ("PRNG", "save_projection", "`is_gradient_checkpointing` is deprecated")


@dataclass
class Evaluation:
    """Mean losses per token, in nats."""

    loss: float
    tokens: int
    row_losses: list
    row_tokens: list


@dataclass
class Generation:
    """What a model says after a prompt."""

    prompt_tokens: int
    # The new ids, without the one that ends the text.
    tokens: list
    # The same without special tokens.
    text: str
    # The smallest lead of a chosen token over the next best: where it is tiny, rounding may decide.
    margin: float = math.inf


class Reference:
    """A model folder as PyTorch sees it."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)

    def base(self, folder=None):
        """A fresh copy of the model, or of the model in another folder; every tensor must be found and used."""
        model, info = AutoModelForCausalLM.from_pretrained(
            folder or self.folder, dtype=torch.float32, output_loading_info=True)
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if info[kind]:
                raise ValueError(f"{folder or self.folder}: {kind} {sorted(info[kind])}")
        return model.eval()

    def fresh(self, settings, method="tinylora"):
        """The model under a new adapter of PEFT's own, drawn from seed 0."""
        config = {"tinylora": TinyLoraConfig, "lora": LoraConfig}[method]
        base = self.base()
        torch.manual_seed(0)
        with strict_warnings():
            return get_peft_model(base, config(task_type="CAUSAL_LM", **settings))

    def adapted(self, adapter, trainable=False, folder=None):
        """The model under a saved adapter, which must fill PEFT's model exactly."""
        with strict_warnings():
            model = PeftModel.from_pretrained(self.base(folder), adapter, is_trainable=trainable)
        check_loaded(model, adapter)
        return model.eval()

    def generate(self, model, prompt, chat, count):
        """The greedy continuation, without special tokens."""
        if chat:
            prompt = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)
        inputs = self.tokenizer(prompt, add_special_tokens=not chat, return_tensors="pt")
        out = model.generate(**inputs, do_sample=False, max_new_tokens=count, return_dict_in_generate=True,
                             output_logits=True)
        count = inputs.input_ids.shape[1]
        ids = out.sequences[0, count:].tolist()
        leads = [(best := logits[0].topk(2).values)[0] - best[1] for logits in out.logits]
        return Generation(count, without_end(ids, self.tokenizer.eos_token_id),
                          self.tokenizer.decode(ids, skip_special_tokens=True), float(min(leads)))


def without_end(ids, end):
    """Generated ids, without the token that ended them."""
    return ids[:-1] if ids[-1:] == [end] else ids


def evaluate(model, examples):
    """Mean losses, every row by itself, so that no padding is involved."""
    model.eval()
    with torch.no_grad():
        losses = [float(batch_loss(model, [example])) for example in examples]
    tokens = [example.targets for example in examples]
    mean = sum(loss * count for loss, count in zip(losses, tokens)) / sum(tokens)
    return Evaluation(mean, sum(tokens), losses, tokens)


def batch_loss(model, examples):
    """The mean loss over all tokens of a batch that have one; short rows are padded on the right."""
    length = max(len(example.input_ids) for example in examples)

    def padded(values, fill):
        return torch.tensor([row + [fill] * (length - len(row)) for row in values])

    ids = padded([example.input_ids for example in examples], 0)
    labels = padded([example.labels for example in examples], IGNORE_INDEX)
    mask = padded([[1] * len(example.input_ids) for example in examples], 0)
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX)


def train(model, examples, steps, batch_size, learning_rate):
    """Trains in file order with AdamW, and returns the loss before each step.

    An epoch visits every row once; where the batch size does not divide the rows, its last batch is short.
    """
    batches = [examples[i:i + batch_size] for i in range(0, len(examples), batch_size)]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    model.train()
    losses = []
    for step in range(steps):
        loss = batch_loss(model, batches[step % len(batches)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses


def randomize(model, scale, seed=0):
    """Fills the trainable parameters with fixed random numbers."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            if parameter.requires_grad:
                parameter.uniform_(-scale, scale, generator=generator)


def check_loaded(model, adapter):
    """Fails unless the adapter's tensors are the ones that PEFT would save; PEFT itself ignores unknown keys."""
    # PEFT asks the model hub whether the vocabulary has changed if it is left to decide about embeddings.
    live = get_peft_model_state_dict(model, save_embedding_layers=False)
    stored = adapters.tensors(adapter)
    if missing := sorted(live.keys() - stored.keys()):
        raise ValueError(f"{adapter}: missing {missing}")
    if extra := sorted(key for key in stored.keys() - live.keys() if not key.endswith(".base_layer.weight")):
        raise ValueError(f"{adapter}: PEFT does not know {extra}")
    if other := sorted(key for key in live if not torch.equal(live[key], stored[key].to(live[key].dtype))):
        raise ValueError(f"{adapter}: PEFT has other values of {other}")


@contextlib.contextmanager
def strict_warnings():
    """Turns warnings into errors, but for the ones that say nothing about the adapter."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for text in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message=f"(?s).*{text}")
        yield

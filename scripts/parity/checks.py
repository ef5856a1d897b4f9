"""The checks on a real model."""

import json
from pathlib import Path

from safetensors import safe_open
from transformers import AutoTokenizer

import adapters
import reference
from rows import encode, read_jsonl, write_ids

LOSS_LIMIT = 1e-4
CURVE_LIMIT = 1e-3

# 13 numbers for the whole model. They start at 0, where the adapter changes nothing.
TINYLORA = {"u": 13, "weight_tying": 1.0, "target_modules": "all-linear"}
STEPS = 20
BATCH_SIZE = 2
LEARNING_RATE = 1e-2

# The LoRA family, whose factors start from seed 0 here and there.
LORA_LEARNING_RATE = 2e-4
LORA = {
    "lora": {"r": 8, "target_modules": ["q_proj", "v_proj"]},
    "rslora, all-linear": {"r": 16, "lora_alpha": 32, "use_rslora": True, "target_modules": "all-linear"},
    "dora": {"r": 4, "use_dora": True, "target_modules": ["q_proj", "down_proj"]},
    "pissa": {"r": 4, "init_lora_weights": "pissa", "target_modules": ["q_proj", "v_proj"]},
    "olora": {"r": 4, "init_lora_weights": "olora", "target_modules": ["q_proj", "v_proj"]},
}
# These begin as a part of the weight, which PEFT finds again when it reads them.
DECOMPOSED = ["pissa", "olora"]

NEW_TOKENS = 40
PROMPTS = [
    ("The three primary colours are", False),
    ("Q: 6 + 7\nA:", False),
    ("Write one sentence about the sea.", True),
    ("How many legs do two spiders have?", True),
]

# Adapters made by PEFT. Their v are drawn from +-SCALE.
FOREIGN_SCALE = 0.15
FOREIGN = {
    "tied, all-linear": {"u": 13, "weight_tying": 1.0, "target_modules": "all-linear"},
    "defaults": {},
    "no projection": {"u": 9, "save_projection": False, "projection_seed": 7},
    "no projection, scalar path": {"u": 3, "r": 1, "save_projection": False, "target_modules": ["q_proj", "down_proj"]},
    "weight_tying 0.5": {"u": 8, "weight_tying": 0.5, "target_modules": ["q_proj", "k_proj", "gate_proj"]},
    "layers_to_transform": {"r": 3, "u": 16, "target_modules": ["v_proj", "o_proj"], "layers_to_transform": [2, 11, 29],
                            "layers_pattern": "layers"},
}


class ModelChecks:
    """Compares a subject, `CandlePeft` or its stand-in, with the reference."""

    def __init__(self, subject, ref, data, training_data, work, report):
        self.subject, self.ref, self.work, self.report = subject, ref, Path(work), report
        self.data, self.training_data = data, training_data
        self.examples = self._encode(data)
        self.ids = self.work / "eval_ids.jsonl"
        write_ids(self.ids, self.examples)
        self.trained = self.work / "trained"
        self.trained_loss = None

    def base_loss(self):
        """`eval` of the base model, from token ids and from text."""
        expected = reference.evaluate(self.ref.base(), self.examples)
        self._compare("eval ids", self.subject.evaluate(self.ids), expected)
        from_text = self.subject.evaluate(self.data)
        self.report.equal("eval text: tokens of each row", from_text.row_tokens, expected.row_tokens)
        self._compare("eval text", from_text, expected)

    def training(self):
        """The loss curve of 13 numbers, and the adapter that comes out.

        Singular vectors are free in sign, and so is what a projection does to them: only adapters with the same
        factors train alike. So PEFT starts from the checkpoint that `init` writes.
        """
        start = self.work / "init"
        self.subject.init(TINYLORA, start)
        examples = self._encode(self.training_data)
        model = self.ref.adapted(start, trainable=True)
        before = reference.evaluate(model, examples).loss
        expected = reference.train(model, examples, STEPS, BATCH_SIZE, LEARNING_RATE)
        fall = before - reference.evaluate(model, examples).loss
        losses = self.subject.train(
            self.training_data, self.trained, STEPS, BATCH_SIZE, LEARNING_RATE, settings=TINYLORA)
        self.report.numbers(f"train: loss at each of {STEPS} steps", losses, expected, CURVE_LIMIT)
        self.report.at_least("train: fall of the loss on the training data", fall, 0.1)
        vector = "base_model.tinylora_v.0"
        self.report.equal("train: layout of the adapter", adapters.layout(self.trained), adapters.layout(start))
        self.report.equal("train: tensors that changed", adapters.changed(self.trained, start), [vector])
        theirs = next(values for name, values in model.named_parameters() if "tinylora_v" in name)
        ours = adapters.tensors(self.trained)[vector]
        self.report.numbers("train: the 13 numbers", ours.tolist(), theirs.tolist(), CURVE_LIMIT)

    def lora(self):
        """The loss curves of the LoRA family from the factors that PEFT draws itself, and the adapters that come out."""
        base = reference.evaluate(self.ref.base(), self.examples).loss
        examples = self._encode(self.training_data)
        for name, settings in LORA.items():
            model = self.ref.fresh(settings, "lora")
            expected = reference.train(model, examples, STEPS, BATCH_SIZE, LORA_LEARNING_RATE)
            folder = self.work / ("trained_" + name.replace(" ", "_").replace(",", ""))
            losses = self.subject.train(
                self.training_data, folder, STEPS, BATCH_SIZE, LORA_LEARNING_RATE, settings=settings, method="lora")
            self.report.numbers(f"{name}: loss at each of {STEPS} steps", losses, expected, CURVE_LIMIT)
            evaluation = reference.evaluate(model, self.examples)
            self.report.at_least(f"{name}: effect on the loss", abs(evaluation.loss - base), 1e-2)
            self._compare(f"{name}: eval, to PEFT's own training", self.subject.evaluate(self.ids, adapter=folder),
                          evaluation, CURVE_LIMIT)
            loaded = reference.evaluate(self.ref.adapted(folder), self.examples)
            self._compare(f"{name}: in PEFT", self.subject.evaluate(self.ids, adapter=folder), loaded)
            if name in DECOMPOSED:
                plain = self.work / f"{folder.name}_plain"
                self.subject.convert(folder, plain, needs_base=True)
                converted = reference.evaluate(self.ref.adapted(plain), self.examples)
                self._compare(f"{name}: as an ordinary LoRA, in PEFT", converted, loaded)

    def trained_adapter(self):
        """The trained adapter, loaded by PEFT."""
        expected = self._trained_evaluation()
        base = reference.evaluate(self.ref.base(), self.examples).loss
        self.report.at_least("trained adapter: effect on the loss", abs(expected.loss - base), 1e-2)
        self._compare("trained adapter", self.subject.evaluate(self.ids, adapter=self.trained), expected)

    def generation(self):
        """Greedy continuations, with and without the adapter and the chat template."""
        for adapter in (None, self.trained):
            model = self.ref.adapted(adapter) if adapter else self.ref.base()
            for prompt, chat in PROMPTS:
                expected = self.ref.generate(model, prompt, chat, NEW_TOKENS)
                ours = self.subject.generate(prompt, chat, NEW_TOKENS, adapter)
                name = f"generate{' --chat' if chat else ''}{' --adapter' if adapter else ''} {prompt[:12]!r}"
                self.report.at_least(f"{name}: lead", expected.margin, 1e-3, "smallest lead of a token over the next")
                self.report.equal(f"{name}: prompt tokens", ours.prompt_tokens, expected.prompt_tokens)
                self.report.equal(f"{name}: tokens", ours.tokens, expected.tokens)
                self.report.equal(f"{name}: text", ours.text, expected.text)

    def conversion(self):
        """`convert`: PEFT loads the result as a LoRA."""
        converted = self.work / "lora"
        self.subject.convert(self.trained, converted)
        config = json.loads((converted / "adapter_config.json").read_text())
        self.report.equal("convert: peft_type", config["peft_type"], "LORA")
        evaluation = reference.evaluate(self.ref.adapted(converted), self.examples)
        self._compare("convert: in PEFT, to the source", evaluation, self._trained_evaluation())
        self._compare("convert: eval", self.subject.evaluate(self.ids, adapter=converted), evaluation)

    def merging(self):
        """`merge`: transformers loads the result as a model."""
        merged = self.work / "merged"
        self.subject.merge(self.trained, merged)
        evaluation = reference.evaluate(self.ref.base(merged), self.examples)
        self._compare("merge: in transformers, to the adapter", evaluation, self._trained_evaluation())
        self._compare("merge: eval", self.subject.evaluate(self.data, base=merged), evaluation)
        self.report.equal("merge: tensors", _tensors(merged), _tensors(self.ref.folder))
        texts = [row["text"] for row in read_jsonl(self.data) if "text" in row]
        tokenizer = AutoTokenizer.from_pretrained(merged)
        self.report.equal("merge: tokenizer", tokenizer(texts).input_ids, self.ref.tokenizer(texts).input_ids)
        self.report.equal("merge: chat template", tokenizer.chat_template, self.ref.tokenizer.chat_template)

    def foreign(self):
        """Adapters that PEFT made, evaluated here, and evaluated by PEFT once they have been written again."""
        base = reference.evaluate(self.ref.base(), self.examples).loss
        for name, settings in FOREIGN.items():
            folder = self.work / ("foreign_" + name.replace(" ", "_").replace(",", ""))
            model = self.ref.fresh(settings)
            reference.randomize(model, FOREIGN_SCALE)
            model.save_pretrained(folder, save_embedding_layers=False)
            expected = reference.evaluate(model, self.examples)
            self.report.at_least(f"from PEFT, {name}: effect", abs(expected.loss - base), 1e-2)
            self._compare(f"from PEFT, {name}", self.subject.evaluate(self.ids, adapter=folder), expected)
            again = self.work / f"{folder.name}_again"
            self.subject.rewrite(folder, again, self.training_data)
            self.report.equal(f"from PEFT, {name}: layout, written again", *map(adapters.layout, (again, folder)))
            self.report.equal(f"from PEFT, {name}: tensors that changed", adapters.changed(again, folder), [])
            self.report.equal(f"from PEFT, {name}: fields", *map(adapters.config, (again, folder)))
            evaluation = reference.evaluate(self.ref.adapted(again), self.examples)
            self._compare(f"from PEFT, {name}: written again", evaluation, expected)

    def _compare(self, name, ours, expected, limit=LOSS_LIMIT):
        self.report.number(f"{name}: loss", ours.loss, expected.loss, limit)
        self.report.numbers(f"{name}: row losses", ours.row_losses, expected.row_losses, limit)

    def _trained_evaluation(self):
        if self.trained_loss is None:
            self.trained_loss = reference.evaluate(self.ref.adapted(self.trained), self.examples)
        return self.trained_loss

    def _encode(self, data):
        return [encode(row, self.ref.tokenizer) for row in read_jsonl(data)]


def _tensors(folder):
    """The names, shapes and dtypes of a model folder."""
    found = {}
    for path in Path(folder).glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():
                part = file.get_slice(name)
                found[name] = (tuple(part.get_shape()), part.get_dtype())
    return found

"""PEFT in the place of `candle-peft`: tries the checks themselves, and shows what rounding alone does."""

from peft import save_as_lora

import reference
from reference import Evaluation
from rows import encode, read_jsonl

# Rows are evaluated in padded batches here and one by one in the reference: other roundings, same result.
BATCH_SIZE = 4


class StandIn:
    """Has the methods of `CandlePeft`, and does all of it in Python."""

    name = "PEFT standing in"

    def __init__(self, ref):
        self.ref = ref

    def evaluate(self, data, adapter=None, base=None):
        examples = self._examples(data)
        model = self.ref.adapted(adapter, folder=base) if adapter else self.ref.base(base)
        rows = reference.evaluate(model, examples)
        batches = [examples[i:i + BATCH_SIZE] for i in range(0, len(examples), BATCH_SIZE)]
        with reference.torch.no_grad():
            total = sum(float(reference.batch_loss(model, batch)) * sum(example.targets for example in batch)
                        for batch in batches)
        return Evaluation(total / rows.tokens, rows.tokens, rows.row_losses, rows.row_tokens)

    def init(self, settings, out, method="tinylora"):
        self.ref.fresh(settings, method).save_pretrained(out, save_embedding_layers=False)

    def train(self, data, out, steps, batch_size, learning_rate, settings=None, adapter=None, method="tinylora"):
        model = self.ref.adapted(adapter, trainable=True) if adapter else self.ref.fresh(settings, method)
        losses = reference.train(model, self._examples(data), steps, batch_size, learning_rate)
        model.save_pretrained(out, save_embedding_layers=False)
        return losses

    def rewrite(self, adapter, out, data):
        self.ref.adapted(adapter).save_pretrained(out, save_embedding_layers=False)

    def generate(self, prompt, chat, count, adapter=None):
        model = self.ref.adapted(adapter) if adapter else self.ref.base()
        return self.ref.generate(model, prompt, chat, count)

    def merge(self, adapter, out):
        self.ref.adapted(adapter).merge_and_unload().save_pretrained(out)
        self.ref.tokenizer.save_pretrained(out)

    def convert(self, adapter, out, needs_base=False):
        save_as_lora(out, self.ref.adapted(adapter), rank=2)

    def _examples(self, data):
        return [encode(row, self.ref.tokenizer) for row in read_jsonl(data)]

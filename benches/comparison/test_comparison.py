"""Checks of the comparison with a stand-in for the program: `python3 -m unittest discover benches/comparison`."""

import contextlib
import io
import json
import sys
import tempfile
import unittest
import xml.etree.ElementTree as xml
from pathlib import Path
from unittest import mock

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "data")]

import ablation  # noqa: E402
import experiments  # noqa: E402
import make_forgetting  # noqa: E402
import make_metamath  # noqa: E402
import plot  # noqa: E402
import report  # noqa: E402
import results  # noqa: E402
import run  # noqa: E402
import training  # noqa: E402

# Trains nothing. Accuracy is best at a rate of 0.01, a rate of 1 fails, and seeds differ by a hundredth. It notes each training.
STAND_IN = f"""#!{sys.executable}
import json, math, os, sys
if sys.argv[1] == "--version":
    sys.exit(print("candle-peft 0.0.0"))
command, args = sys.argv[1], sys.argv[2:]
value = lambda name, other=None: args[args.index("--" + name) + 1] if "--" + name in args else other
adapter = value("out") or value("adapter")
if command == "init":
    print(json.dumps(dict(modules=["m"] * 28, total_parameters=1000)))
elif command == "eval" and value("data"):
    lines = range(1, 101)
    rows = [dict(line=n, loss=(2.0 if n % 2 else 3.0) + (0.5 if adapter else 0.0), tokens=n % 2 + 1) for n in lines]
    print(json.dumps(dict(loss=sum(r["loss"] * r["tokens"] for r in rows) / sum(r["tokens"] for r in rows), rows=rows)))
elif command == "eval":
    share = json.load(open(adapter + "/share.json")) if adapter else 0.5
    share -= 0.1 if value("eval-temperature") else 0.0
    print(json.dumps(dict(strict=share, strict_interval=[share - 0.05, share + 0.05], flexible=share)))
else:
    with open(os.environ["TRAININGS"], "a") as file:
        file.write(" ".join(args) + "\\n")
    rate, seed = float(value("learning-rate")), int(value("seed"))
    if rate >= 1:
        sys.exit(print(json.dumps(dict(error="the loss is NaN"))) or 1)
    share = 0.9 - 0.1 * abs(math.log10(rate) + 2) + 0.01 * seed
    os.makedirs(adapter)
    json.dump(share, open(adapter + "/share.json", "w"))
    open(adapter + "/adapter_model.safetensors", "wb").write(bytes(77))
    with open(adapter + "/metrics.jsonl", "w") as file:
        for step in range(1, int(value("steps")) + 1):
            line = dict(kind=command, step=step, loss=2 - share, tokens=10, seconds=0.5)
            line |= dict(strict=share, entropy=0.1, zero_advantage=0.2) if command == "grpo" else dict()
            file.write(json.dumps(line) + "\\n")
    print(json.dumps(dict(trainable_parameters=13)))
"""

CONFIG = {"peft_type": "TINYLORA", "r": 2, "u": 13, "weight_tying": 1.0, "target_modules": "all-linear"}


class Runs(unittest.TestCase):
    """A suite of one experiment, in a folder of its own."""

    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.root = Path(scratch.name)
        folder = self.root / "experiments" / "tiny-llama"
        self.params = folder / "tinylora" / "one" / "training_params.json"
        experiments.write(folder / experiments.DEFAULTS, experiments.defaults("tiny-llama"))
        experiments.write(self.params.with_name("adapter_config.json"), CONFIG)
        experiments.write(self.params, {"sft": {"learning_rates": [0.1, 0.01, 1.0]}, "grpo": {"learning_rates": [0.001, 0.01, 0.1]}})
        grid = {"config": "tinylora/one", "values": {"u": [1, 2], "r": [1], "weight_tying": [0.0, 1.0], "projection_seed": [0, 1]},
                "regime": "grpo", "steps": 4, "seed": 0, "rate_factors": [0.1, 1.0]}
        experiments.write(folder / "ablation.json", grid)
        self.binary = self.root / "candle-peft"
        self.binary.write_text(STAND_IN)
        self.binary.chmod(0o755)
        for module, name, value in ((experiments, "EXPERIMENTS", "experiments"), (ablation, "EXPERIMENTS", "experiments"),
                                    (run, "RESULTS", "results"), (run, "TEMPORARY", "temporary"), (run, "CANCELLED", "cancelled")):
            patch = mock.patch.object(module, name, self.root / value)
            patch.start()
            self.addCleanup(patch.stop)
        environment = mock.patch.dict("os.environ", TRAININGS=str(self.root / "trainings"))
        environment.start()
        self.addCleanup(environment.stop)

    def run_suite(self, *words):
        """Runs the suite; the trainings that it started."""
        notes = self.root / "trainings"
        notes.write_text("")
        words = ["run.py", "--jobs", "2", "--binary", str(self.binary), "--work", str(self.root / "work"), *words]
        with mock.patch.object(sys, "argv", words), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            run.main()
        return notes.read_text().splitlines()

    def result(self, regime, seed):
        return experiments.read(self.root / "results" / "tiny-llama" / regime / f"tinylora--one--seed{seed}.json")

    def test_everything_runs_once(self):
        # Two regimes with three rates and two seeds more each; four cells of two rates and one projection seed more each.
        self.assertEqual(len(self.run_suite("--all")), 2 * (3 + 2) + 4 * (2 + 1))
        self.assertEqual(self.run_suite("--all"), [])
        text = (self.root / "results" / "tiny-llama" / "results.md").read_text()
        self.assertIn("| TinyLoRA r 2 u 13 tied on all | 13 | 91.0 (90.0 to 92.0) | 91.0 (90.0 to 92.0) "
                      "| 81.0 (80.0 to 82.0) | 81.0 (80.0 to 82.0) | +0.0 |", text)
        self.assertIn("| u = 1 | u = 2 |", text)

    def test_the_best_rate_is_kept_with_what_was_tried(self):
        self.run_suite("tinylora/one")
        kept = experiments.read(self.params)
        self.assertEqual((kept["sft"]["learning_rate"], kept["grpo"]["learning_rate"]), (0.01, 0.01))
        self.assertEqual(kept["grpo"]["tried"][0], {"learning_rate": 0.001, "train accuracy": 0.8})
        self.assertEqual(kept["sft"]["tried"][1], {"learning_rate": 0.01, "train loss": 1.1})
        self.assertIn("the loss is NaN", kept["sft"]["tried"][2]["failed"])

    def test_a_result_says_what_was_measured(self):
        self.run_suite("tinylora/one")
        found = self.result("grpo", 2)
        info, last = found["train_info"], found["train_info"]["metrics"][-1]
        self.assertAlmostEqual(last["test accuracy"], 0.92)
        self.assertAlmostEqual(last["test accuracy sampled"], 0.82)
        self.assertEqual((last["step"], last["train samples"], last["train total tokens"]), (200, 200 * 128, 2000))
        for key in ("forgetting", "forgetting right", "forgetting wrong"):
            self.assertAlmostEqual(last[key], 0.5)
        self.assertEqual((info["file_size"], info["num_trainable_params"], info["num_total_params"]), (77, 13, 1000))
        self.assertEqual((info["train_time"], info["metrics"][0]["tokens / sec"]), (100.0, 20.0))
        self.assertEqual(len(info["metrics"]), results.WINDOWS + 1)
        self.assertGreater(info["accelerator_memory_max"], 1 << 20)

    def test_changed_settings_are_run_again(self):
        self.run_suite("tinylora/one")
        kept = experiments.read(self.params)
        experiments.write(self.params, {**kept, "grpo": {**kept["grpo"], "steps": 7}})
        self.assertEqual(len(self.run_suite("tinylora/one")), 3)
        self.assertEqual(self.result("grpo", 0)["train_info"]["metrics"][-1]["step"], 7)

    def test_a_trial_leaves_nothing_behind(self):
        before = self.params.read_text()
        self.run_suite("--all", "--steps", "3")
        self.assertEqual(self.params.read_text(), before)
        self.assertFalse((self.root / "results").exists())
        self.assertTrue((self.root / "temporary" / "tiny-llama" / "results.svg").exists())

    def test_failures_are_told(self):
        experiments.write(self.params, {"sft": {"learning_rate": 1.0}, "grpo": {"learning_rate": 0.01}})
        with self.assertRaisesRegex(SystemExit, "3 of the runs failed"):
            self.run_suite("tinylora/one")
        failed = experiments.read(self.root / "cancelled" / "tiny-llama" / "sft" / "tinylora--one--seed0.json")
        self.assertIn("the loss is NaN", failed["run_info"]["error_msg"])
        self.assertIn("| – | 91.0 (90.0 to 92.0)", (self.root / "results" / "tiny-llama" / "results.md").read_text())

    def test_unknown_names_are_refused(self):
        with self.assertRaisesRegex(SystemExit, "no experiment `lora/r9`; the choices are tinylora/one"):
            self.run_suite("lora/r9")
        with self.assertRaisesRegex(SystemExit, "no experiments for `gpt`; the choices are tiny-llama"):
            self.run_suite("--all", "--model", "gpt")

    def test_the_picture_shows_means_and_ranges(self):
        self.run_suite("tinylora/one")
        folder = self.root / "results" / "tiny-llama"
        base, rows = report.load(folder)
        svg = xml.fromstring(plot.picture(base, rows))
        titles = [element.text for element in svg.iter("{http://www.w3.org/2000/svg}title")]
        self.assertEqual(titles[0], "TinyLoRA r 2 u 13 tied on all, SFT: 81 (80 to 82)")
        self.assertEqual(len(titles), 4)


class Files(unittest.TestCase):
    """What is committed."""

    def test_the_forgetting_texts_are_those_of_the_script(self):
        self.assertEqual(make_forgetting.FILE.read_text(), make_forgetting.text())
        for row in make_forgetting.rows():
            wrong = {sum(map(int, left.split("+"))) - int(right) for left, right in (line.split("=") for line in row["text"].split("\n"))}
            self.assertEqual(wrong, {-1} if row["kind"] == "wrong" else {0})

    def test_experiments_have_settings(self):
        for model in sorted(path.name for path in experiments.EXPERIMENTS.iterdir() if path.is_dir()):
            for experiment in experiments.experiments(model):
                self.assertEqual(experiment.config()["peft_type"], experiment.method.upper().replace("-", "_"))
                params = experiment.params()
                for regime in experiments.REGIMES:
                    self.assertTrue(experiment.rate(regime) or len(experiment.rates(regime)) == 3, experiment.id)
                    self.assertIn("--steps", experiments.words(experiments.options(params, regime)))

    def test_metamath_rows_are_asked_as_gsm8k_is(self):
        entries = [{"query": "1+1?", "response": "2"}, {"query": "long", "response": "x" * 1301}]
        self.assertEqual(list(make_metamath.rows(entries)), [{"text": "Question: 1+1? Think step by step.\nAnswer: 2"}])

    def test_json_is_laid_out_and_read_back(self):
        value = {"a": [1, 2], "b": {"c": ["{ x }", None], "d": ["long" * 40, 1]}, "e": {}}
        text = experiments.layout(value)
        self.assertEqual(json.loads(text), value)
        self.assertIn('"a": [1, 2]', text)

    def test_kinds_of_texts_have_losses_of_their_own(self):
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
            file.write('{"text": "a", "kind": "x"}\n{"text": "b"}\n{"text": "c", "kind": "x"}\n')
            file.flush()
            rows = [{"line": 1, "loss": 1.0, "tokens": 3}, {"line": 2, "loss": 9.0, "tokens": 1}, {"line": 3, "loss": 5.0, "tokens": 1}]
            self.assertEqual(training.losses({"loss": 3.4, "rows": rows}, Path(file.name)), {"all": 3.4, "x": 2.0})

    def test_groups_round_half_to_even(self):
        self.assertEqual([ablation.groups(n, tying) for n, tying in ((7, 0.5), (5, 0.5), (28, 0.5), (28, 1.0), (28, 0.0))], [4, 2, 14, 1, 28])


if __name__ == "__main__":
    unittest.main()

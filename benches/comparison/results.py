"""Result files, with the fields of PEFT's method comparison."""

import datetime
import hashlib
import os
import platform
from pathlib import Path

from experiments import DATA, REGIMES, read

# A result has so many lines of metrics from its training.
WINDOWS = 10


def place(results, setting):
    """Where the result of a run belongs."""
    experiment = setting.experiment
    return results / experiment.model / setting.regime / f"{experiment.method}--{experiment.name}--seed{setting.seed}.json"


def base_place(results, model):
    """Where the result of the untouched model belongs."""
    return results / model / "base.json"


def is_current(file, train_config, peft_config):
    """Whether a result is there and comes from these very settings."""
    if not file.exists():
        return False
    info = read(file)["run_info"]
    return (info["train_config"], info["peft_config"], info["error_msg"]) == (train_config, peft_config, None)


def of_run(setting, trained, total, measured, before, program):
    """The result of a run; `before` is what was measured of the untouched model, which has `total` numbers with its adapter."""
    record, lines = trained.record, trained.metrics
    memory, report = record["memory"], record["report"]
    rows = rows_per_step(setting.options())
    last = {
        "step": lines[-1]["step"], **accuracies(measured), "train loss": lines[-1]["loss"], "train samples": lines[-1]["step"] * rows,
        "train total tokens": sum(line["tokens"] for line in lines), "eval time": measured["seconds"],
    }
    for kind, loss in measured["losses"].items():
        last["forgetting" if kind == "all" else f"forgetting {kind}"] = loss - before["losses"][kind]
    train_info = {
        "accelerator_memory_reserved_avg": memory["avg"], "accelerator_memory_max": memory["max"],
        "accelerator_memory_reserved_99th": memory["99th"], "train_time": sum(line["seconds"] for line in lines),
        "file_size": (trained.adapter / "adapter_model.safetensors").stat().st_size,
        "num_trainable_params": report["trainable_parameters"], "num_total_params": total, "status": "success",
        "metrics": [*windows(lines, rows), last],
    }
    info = run_info(setting.experiment.id, record["seconds"] + measured["seconds"], setting.train_config(), setting.experiment.config())
    return {"run_info": info, "train_info": train_info, "meta_info": meta_info(setting.experiment.params(), program)}


def of_base(model, params, measured, program):
    """The result of the untouched model."""
    train_info = {"num_trainable_params": 0, "status": "success", "metrics": [{"step": 0, **accuracies(measured)}],
                  "losses": measured["losses"]}
    info = run_info(f"{model}/base", measured["seconds"], base_config(params), None)
    return {"run_info": info, "train_info": train_info, "meta_info": meta_info(params, program)}


def base_config(params):
    """What decides the result of the untouched model."""
    return {key: params[key] for key in ("base", "eval", "sampled", "forgetting")}


def of_failure(setting, error, program):
    """The result of a run that ended with an error."""
    info = run_info(setting.experiment.id, None, setting.train_config(), setting.experiment.config(), str(error))
    return {"run_info": info, "train_info": {"status": "failed", "metrics": []},
            "meta_info": meta_info(setting.experiment.params(), program)}


def accuracies(measured):
    """The shares of right answers with their intervals over problems; strictly read where nothing else is said."""
    found = {}
    for name, answers in (("test accuracy", measured["greedy"]), ("test accuracy sampled", measured["sampled"])):
        found |= {name: answers["strict"], f"{name} interval": answers["strict_interval"], f"{name} flexible": answers["flexible"]}
    return found


def windows(lines, rows):
    """Means over parts of a training."""
    size, elapsed = max(1, -(-len(lines) // WINDOWS)), 0.0
    for start in range(0, len(lines), size):
        part = lines[start:start + size]
        seconds, tokens = (sum(line[key] for line in part) for key in ("seconds", "tokens"))
        elapsed += seconds
        mean = lambda key: sum(line[key] for line in part) / len(part)  # noqa: E731
        row = {"step": part[-1]["step"], "valid accuracy": None, "train loss": mean("loss"), "train samples": part[-1]["step"] * rows,
               "train time": seconds, "tokens / sec": tokens / seconds, "elapsed time": elapsed}
        if part[0]["kind"] == "grpo":
            row |= {"train accuracy": mean("strict"), "entropy": mean("entropy"), "zero advantage": mean("zero_advantage")}
        yield row


def rows_per_step(options):
    """Answers that an update is computed from."""
    if "group_size" in options:
        return options["prompts_per_step"] * options["group_size"]
    return options["batch_size"] * options.get("grad_accum", 1)


def run_info(name, seconds, train_config, peft_config, error=None):
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return {"created_at": now, "total_time": seconds, "experiment_name": name, "train_config": train_config, "peft_config": peft_config,
            "error_msg": error}


def meta_info(params, program):
    """What a result was made with."""
    texts = DATA / params["forgetting"]
    return {
        "model_info": {"name": params["base"] or "candle-peft/tiny-llama"},
        "dataset_info": {**{regime: params[regime].get("task") or params[regime].get("data") for regime in REGIMES},
                         "forgetting_sha256": hashlib.sha256(texts.read_bytes()).hexdigest()},
        "package_info": {"candle-peft": program.version, "python": platform.python_version()},
        "system_info": {"system": platform.system(), "machine": platform.machine(), "processor": processor(), "cpus": os.cpu_count(),
                        "threads": program.threads, "load_average": os.getloadavg()[0], "memory": "resident set of the training process"},
    }


def processor():
    """What the system calls the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())

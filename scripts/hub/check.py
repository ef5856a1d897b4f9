#!/usr/bin/env python3
"""Compares what candle-peft and huggingface_hub make of one Hub and one cache."""

import argparse
import filecmp
import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
TOKEN = "hf_secretSECRETsecret"
BASE, ADAPTER, PUSHED = "maker/base", "user/adapter", "me/pushed"
GENERATE = ["generate", "--prompt", "3+4=", "--max-new-tokens", "4", "--json", "--adapter"]


class Hub:
    """The server on loopback."""

    def __init__(self, binary, *repos):
        command = [str(binary), "--token", TOKEN, *repos]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.endpoint = self.process.stdout.readline().strip()

    def ask(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def requests(self):
        """The requests since the last call."""
        return json.loads(self.ask("requests"))


class Subject:
    """The candle-peft binary, with a cache of its own choice."""

    def __init__(self, binary, endpoint):
        self.binary, self.endpoint, self.output = binary, endpoint, ""

    def run(self, home, *arguments, **variables):
        environment = {**os.environ, "HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), **variables}
        environment = {name: value for name, value in environment.items() if value}
        done = subprocess.run([str(self.binary), *map(str, arguments)], env=environment, capture_output=True, text=True)
        self.output += done.stdout + done.stderr
        if done.returncode:
            raise RuntimeError(f"{' '.join(map(str, arguments))}: {done.stderr}")
        return json.loads(done.stdout) if "--json" in arguments else done.stdout


class Checks:
    def __init__(self):
        self.failed = 0

    def check(self, name, passed, detail=""):
        self.failed += not passed
        print(f"{'ok  ' if passed else 'FAIL'} {name}{': ' + str(detail) if detail or not passed else ''}", flush=True)


def files(requests):
    """Those for files and not for what they are."""
    return [r["line"] for r in requests if r["line"].startswith("GET") and (r["storage"] or "/resolve/" in r["line"])]


def python(home, endpoint, code, **variables):
    """Runs Python with a cache and a Hub, which it reads from its environment once."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **variables}
    command = [sys.executable, "-W", "error::UserWarning", "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1])


def same_files(snapshot, original, names):
    return all(filecmp.cmp(Path(snapshot) / name, Path(original) / name, shallow=False) for name in names)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candle-peft", metavar="BIN", type=Path, default=ROOT / "target/debug/candle-peft")
    parser.add_argument("--server", metavar="BIN", type=Path, default=ROOT / "target/debug/examples/loopback_hub")
    parser.add_argument("--peft", action="store_true", help="load with PEFT too")
    args = parser.parse_args()
    checks = Checks()
    with tempfile.TemporaryDirectory() as scratch:
        run(args, Path(scratch), checks)
    print(f"\n{checks.failed} failed")
    return 1 if checks.failed else 0


def run(args, scratch, checks):
    tiny = ROOT / "assets/tiny-llama"
    hub = Hub(args.server, f"{BASE}={tiny}")
    subject = Subject(args.candle_peft, hub.endpoint)
    made, home = scratch / "made", scratch / "home"
    subject.run(scratch / "first", "init", "--base", BASE, "--method", "tinylora", "--set", "u=13", "--set",
                "weight_tying=1.0", "--set", "target_modules=all-linear", "--set", "init_weights=uniform", "--out", made)
    adapter_commit = hub.ask(f"{ADAPTER}={made}")

    # The adapter pins its base model, and Python asks for what is pinned.
    pinned = json.loads((made / "adapter_config.json").read_text())["revision"]

    hub.requests()
    first = subject.run(home, *GENERATE, ADAPTER)
    fetched = files(hub.requests())
    second = subject.run(home, *GENERATE, ADAPTER)
    asked = hub.requests()
    checks.check("one command from an empty cache", first["tokens"] == second["tokens"] and len(fetched) > 4, first["text"].strip())
    checks.check("the second run asks for no file", not files(asked), [r["line"] for r in asked])

    code = f"""
import json
from huggingface_hub import snapshot_download, scan_cache_dir, try_to_load_from_cache
cache = scan_cache_dir()
print(json.dumps(dict(
    base=snapshot_download({BASE!r}, revision={pinned!r}, local_files_only=True),
    adapter=snapshot_download({ADAPTER!r}, local_files_only=True),
    absent=str(try_to_load_from_cache({BASE!r}, "chat_template.jinja", revision={pinned!r})),
    repos=sorted(repo.repo_id for repo in cache.repos), warnings=[str(w) for w in cache.warnings],
    commits=[r.commit_hash for repo in cache.repos for r in repo.revisions])))
"""
    hub.requests()
    found = python(home, hub.endpoint, code)
    checks.check("python finds it", found["repos"] == [BASE, ADAPTER] and adapter_commit in found["commits"], found["repos"])
    checks.check("python finds it without a request or a warning", not hub.requests() and not found["warnings"], found["warnings"])
    checks.check("python finds the same bytes",
                 same_files(found["adapter"], made, ["adapter_config.json", "adapter_model.safetensors"])
                 and same_files(found["base"], tiny, ["config.json", "model.safetensors", "tokenizer.json"]))
    checks.check("python knows what is not there", "object" in found["absent"] or "_CACHED_NO_EXIST" in found["absent"], found["absent"])

    other = scratch / "python"
    python(other, hub.endpoint, f"""
import json
from huggingface_hub import snapshot_download
print(json.dumps([snapshot_download({ADAPTER!r}), snapshot_download({BASE!r}, revision={pinned!r})]))
""")
    hub.requests()
    again = subject.run(other, *GENERATE, ADAPTER, HF_HUB_OFFLINE="1")
    checks.check("found from python, offline", again["tokens"] == first["tokens"] and not hub.requests())

    blob = next(p for p in (other / "hub/models--maker--base/blobs").iterdir() if p.stat().st_size == (tiny / "model.safetensors").stat().st_size)
    half = blob.read_bytes()[: blob.stat().st_size // 2]
    unfinished = scratch / "unfinished"
    target = unfinished / "hub/models--maker--base/blobs" / f"{blob.name}.incomplete"
    target.parent.mkdir(parents=True)
    target.write_bytes(half)
    hub.requests()
    resumed = subject.run(unfinished, *GENERATE, ADAPTER)
    checks.check("interrupted, and finished", resumed["tokens"] == first["tokens"] and not target.exists())

    hub.requests()
    pushed = subject.run(home, "push", made, PUSHED, "--json", HF_TOKEN=TOKEN)
    requests = hub.requests()
    checks.check("token: not to other hosts", all(r["token"] is None for r in requests if r["storage"]), len(requests))
    card = python(scratch / "card", hub.endpoint, f"""
import json
from huggingface_hub import ModelCard, snapshot_download, hf_hub_download
folder = snapshot_download({PUSHED!r})
data = ModelCard.load(folder + "/README.md").data.to_dict()
print(json.dumps(dict(folder=folder, data=data, commit=folder.split("/")[-1])))
""", HF_TOKEN=TOKEN)
    checks.check("pushed: the same bytes", same_files(card["folder"], made, ["adapter_config.json", "adapter_model.safetensors"]))
    checks.check("pushed: a valid card", card["data"]["base_model"] == BASE and card["data"]["library_name"] == "peft", card["data"])
    checks.check("pushed: the commit that was reported", card["commit"] == pushed["commit"], pushed["commit"])

    if args.peft:
        with_peft(hub, subject, scratch, checks)
    checks.check("token: in no output", TOKEN not in subject.output)


def with_peft(hub, subject, scratch, checks):
    ids = [[1, 20, 46, 22, 64, 24, 5, 9], [1, 21, 46, 30, 64, 26, 7, 2]]
    rows = scratch / "rows.jsonl"
    rows.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in ids))
    ours = subject.run(scratch / "eval", "eval", "--adapter", PUSHED, "--data", rows, "--json", HF_TOKEN=TOKEN)
    theirs = python(scratch / "peft", hub.endpoint, f"""
import json, torch
from peft import AutoPeftModelForCausalLM
model = AutoPeftModelForCausalLM.from_pretrained({PUSHED!r}).eval()
ids = torch.tensor({ids!r})
with torch.no_grad():
    loss = model(input_ids=ids, labels=ids).loss.item()
    with model.disable_adapter():
        base = model(input_ids=ids, labels=ids).loss.item()
print(json.dumps([loss, base]))
""", HF_TOKEN=TOKEN)
    checks.check("loaded by PEFT", abs(ours["loss"] - theirs[0]) < 1e-4, f"{ours['loss']:.6f} here, {theirs[0]:.6f} there")
    checks.check("loaded by PEFT: the adapter does something", abs(theirs[0] - theirs[1]) > 1e-3, f"{theirs[1]:.6f} without it")


if __name__ == "__main__":
    sys.exit(main())

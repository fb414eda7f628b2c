"""Whether a change of structure left every number alone: a record to make before it and after it.

    python benchmarks/same_numbers.py --cifar10 parquet:PATH/TO/cifar10 --runs DIR --out RECORD.json
    python benchmarks/same_numbers.py --compare BEFORE.json AFTER.json

A record holds the validation losses of the whole digits recipe and of the first steps of
`cifar10-shallow`, of a short ViT-MAE baseline and of a short fine-tuning, the features of the
models that come with the package (as SHA-256 of their bytes), and every number that `analyze`,
`probe` and `knn` tell of them. One thread, fixed seeds: equal means equal bit for bit. What is done
in DIR is not done again, so that a record that was cut off goes on. Names and words are left out of
the comparison: they are not results.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open

SHIPPED = ("cifar10-small", "cifar10-shallow", "cifar10-overcomplete")
STEPS = 200


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 0, or 1 when two records differ."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--cifar10", help="address of CIFAR-10, with splits train and test")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="folder for what is made")
    parser.add_argument("--out", type=Path, help="new file for the record")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("BEFORE", "AFTER"))
    given = parser.parse_args(arguments)
    if given.compare is not None:
        before, after = (json.loads(path.read_text(encoding="utf-8")) for path in given.compare)
        lines = differences(before["numbers"], after["numbers"])
        print("\n".join(lines) or f"all {len(before['numbers'])} numbers are equal")
        return 1 if lines else 0
    if given.cifar10 is None or given.out is None or given.runs is None:
        parser.error("a record needs --cifar10, --runs and --out")
    if given.out.exists():
        parser.error(f"{given.out} exists: name a new file")
    given.runs.mkdir(parents=True, exist_ok=True)
    numbers = recorded(given.cifar10, given.runs)
    facts = {
        "commit": _output("git", "rev-parse", "HEAD"),
        "python": sys.version.split()[0],
        "torch": _output(sys.executable, "-c", "import torch; print(torch.__version__)"),
        "processor": _processor(),
    }
    record = {"facts": facts, "numbers": dict(leaves(numbers))}
    given.out.write_text(json.dumps(record, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"wrote {given.out}")
    return 0


def recorded(cifar10: str, folder: Path) -> dict[str, Any]:
    """Every number, by what it is of."""
    data = ("--data.source", cifar10)
    numbers: dict[str, Any] = {
        "digits": _losses(folder / "digits", "pretrain", "--config", "digits"),
        "cifar10-shallow": _losses(
            folder / "shallow", "pretrain", "--config", "cifar10-shallow", *data,
            "--record.log_every", "10", "--stop-after", str(STEPS), ends=143,
        ),
        "vitmae": _losses(
            folder / "vitmae", "pretrain", "--config", "digits", "--vitmae", "configuration",
            "--optim.epochs", "4", "--optim.warmup_epochs", "1", "--optim.base_lr", "1e-3",
        ),
        "classifier": _losses(
            folder / "classes", "finetune", str(folder / "digits"),
            "--config", "finetune-cifar10-small", "--data.source", "digits",
            "--optim.epochs", "4", "--optim.warmup_epochs", "1",
        ),
    }  # fmt: skip
    for name in SHIPPED:
        numbers[name] = {
            "features": _features(folder, name, cifar10),
            "layers": _layers(folder, name, cifar10),
            "probe": _compared(folder, "probe", name, cifar10),
            "knn": _compared(folder, "knn", name, cifar10),
        }
    return numbers


def _losses(run: Path, *words: str, ends: int = 0) -> list[dict[str, float]]:
    """Every recorded metric of a run but its times and speeds."""
    _call(*words, "--out", str(run), ends=ends)
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    timed = ("time", "speed", "seconds", "per_second", "memory", "share")
    return [
        {key: value for key, value in json.loads(line).items() if not any(t in key for t in timed)}
        for line in lines
    ]


def _features(folder: Path, name: str, cifar10: str) -> dict[str, str]:
    digests = {}
    for pool in ("both", "tokens"):
        out = folder / f"{name}-{pool}.safetensors"
        _call(
            "extract", name, cifar10, "--split", "test", "--limit", "500",
            "--pool", pool, "--out", str(out),
        )  # fmt: skip
        with safe_open(out, "numpy") as opened:
            values = opened.get_tensor("values")
        digests[pool] = hashlib.sha256(values.tobytes()).hexdigest()
    return digests


def _layers(folder: Path, name: str, cifar10: str) -> list[dict[str, Any]]:
    out = folder / f"{name}-layers"
    _call("analyze", name, cifar10, "--split", "test", "--limit", "200", "--out", str(out))
    rows: list[dict[str, Any]] = json.loads((out / "layers.json").read_text())["rows"]
    return rows


def _compared(folder: Path, verb: str, name: str, cifar10: str) -> list[dict[str, Any]]:
    out = folder / f"{name}-{verb}.json"
    _call(
        verb, name, cifar10, "--test-split", "test", "--limit", "1000", "--test-limit", "500",
        "--json", str(out),
    )  # fmt: skip
    rows: list[dict[str, Any]] = json.loads(out.read_text())["rows"]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def _call(*words: str, ends: int = 0) -> None:
    """Run one command on one thread, once; RuntimeError unless it ends as it should."""
    target = next(words[i + 1] for i, word in enumerate(words) if word in ("--out", "--json"))
    done = Path(f"{target}.done")
    if done.exists():
        return
    print("crate-mae", *words, flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "crate_mae", *words]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode != ends:
        raise RuntimeError(f"ended with {ended.returncode}, not {ends}:\n{ended.stderr[-3000:]}")
    done.touch()


def leaves(values: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """(place, value) of every number and digest in nested lists and dictionaries."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield from leaves(value, f"{place}/{key}")
    elif isinstance(values, list):
        for number, value in enumerate(values):
            yield from leaves(value, f"{place}/{number}")
    elif isinstance(values, int | float | None) or re.fullmatch("[0-9a-f]{64}", values):
        yield place, values


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """A line for every place whose value is not the same in both records."""
    return [
        f"{place}: {before.get(place, 'missing')} -> {after.get(place, 'missing')}"
        for place in dict.fromkeys([*before, *after])
        if place not in before or place not in after or before[place] != after[place]
    ]


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"


if __name__ == "__main__":
    raise SystemExit(main())

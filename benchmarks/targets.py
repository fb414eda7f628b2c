"""The speed and memory this project promises on two CPU cores, measured and judged.

python benchmarks/targets.py           measures all; writes results/MACHINE-DATE.json and .md
python benchmarks/targets.py --docs    fills docs/speed.md from the newest result
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from crate_mae.common.files import write_atomically
from crate_mae.common.progress import progress_bar
from crate_mae.models.config import PRESETS
from promises import TARGETS, judged
from speed.run_bench import machine, run_bench
from speed.settings import Settings
from tables import fill_page, result_page

HERE = Path(__file__).parent
FORMAT = "crate-mae-targets/1"
Run = Callable[..., dict[str, Any]]


def parts(*, quick: bool) -> dict[str, Settings]:
    """What is measured, part by part; `quick` measures the same on next to nothing."""

    def settings(model: str, batch: int, subjects: str, rounds: int, **more: Any) -> Settings:
        if quick:
            model, batch, rounds = "debug", min(batch, 2), 1
        return Settings(
            config=PRESETS[model],
            model=model,
            subjects=tuple(subjects.split()),
            batch_sizes=(batch,),
            rounds=rounds,
            **more,
        )

    ours = "crate crate-reference"
    return {
        "base, training": settings(
            "base",
            32,
            f"{ours} crate-visible vitmae-twin vitmae-published",
            3,
            works=("train",),
            limit=True,
        ),
        "base, features": settings(
            "base", 32, f"{ours} timm-vit", 5, works=("encode",), limit=True
        ),
        "base, memory": settings("base", 32, ours, 1, works=("train",), memory=True),
        "base, growth": settings(
            "base", 1, "crate", 1, works=("train",), growth=40 if quick else 1024
        ),
        "cifar10": settings("px32-d128-l4", 256, ours, 7),
        "tiny, 32 px": settings("px32-d384-l12", 64, ours, 5),
    }


def measure(folder: Path, *, quick: bool = False, run: Run = run_bench) -> Path:
    """The JSON file of a new result; it and a page beside it grow with every part that is done.

    `run` measures the settings of one part. An interrupted run leaves what it has measured.
    """
    begun = datetime.now(UTC)
    result: dict[str, Any] = {
        "format": FORMAT,
        "quick": quick,
        "date": begun.isoformat(timespec="seconds"),
        "machine": machine(),
        "parts": {},
    }
    path = _free_path(folder, _slug(result["machine"], begun, quick=quick))

    def keep(name: str, part: dict[str, Any]) -> None:
        result["parts"][name] = part
        result["targets"] = judged(TARGETS, result["parts"])
        write_atomically(path, json.dumps(result, indent=1) + "\n")
        write_atomically(path.with_suffix(".md"), result_page(result))

    for name, settings in parts(quick=quick).items():
        print(name, file=sys.stderr)
        keep(
            name,
            run(settings, progress=progress_bar, keep=lambda part, name=name: keep(name, part)),
        )
    return path


def newest(folder: Path) -> Path:
    """The newest whole result in a folder, quick ones aside; FileNotFoundError without one."""
    found = []
    for path in folder.glob("*.json"):
        result = _result_in(path)
        if result is None or result["quick"]:
            continue
        rows = result.get("targets", [])
        if rows and all(row["measured"] is not None for row in rows):
            found.append((result["date"], path))
    if not found:
        raise FileNotFoundError(f"{folder} holds no whole result: run make bench")
    return max(found)[1]


def _result_in(path: Path) -> dict[str, Any] | None:
    """The result of `measure` in a file, or None for whatever else a file may hold."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    ours = isinstance(result, dict) and result.get("format") == FORMAT
    return result if ours else None


def _slug(facts: dict[str, Any], begun: datetime, *, quick: bool) -> str:
    """A name from processor, cores and day, such as amd-epyc-2-cores-2026-11-24."""
    processor = re.sub(r"\(r\)|\(tm\)|\bcpu\b|\bprocessor\b|@.*", " ", facts["processor"].lower())
    words = re.findall(r"[a-z0-9]+", processor)
    name = "-".join([*words, str(facts["cores"]), "cores", begun.date().isoformat()])
    return f"quick-{name}" if quick else name


def _free_path(folder: Path, name: str) -> Path:
    """A JSON file that is not there yet, nor its page; numbered where the name is taken."""
    tries = (folder / f"{name}{'' if i == 1 else f'-{i}'}.json" for i in range(1, 1000))
    return next(p for p in tries if not p.exists() and not p.with_suffix(".md").exists())


def main(words: Sequence[str] | None = None) -> int:
    """The exit status: 0 when every target is met (or the page is filled), else 1."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else None, allow_abbrev=False
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: no evidence, a try")
    parser.add_argument("--docs", action="store_true", help="fill docs/speed.md, measure nothing")
    parser.add_argument("--out", default=str(HERE / "results"), metavar="FOLDER")
    given = parser.parse_args(words)
    folder = Path(given.out)
    if given.docs:
        print(fill_page(newest(folder), HERE.parent))
        return 0
    path = measure(folder, quick=given.quick)
    print(path.with_suffix(".md").read_text(encoding="utf-8"))
    print(f"wrote {path} and {path.with_suffix('.md')}")
    rows = json.loads(path.read_text(encoding="utf-8"))["targets"]
    return 0 if given.quick or all(row["met"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())

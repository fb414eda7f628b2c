"""make campaign: changed files through every door, and runs that are killed, stopped and cramped.

    python tests/campaign/campaign.py --minutes 10 --seed 1

The same seed tries the same files in the same order. Each new fault is kept as a small file below
`--keep`, with what it did; the suite tries all that were kept again.
"""

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import monotonic

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "shared")]

import torch  # noqa: E402
from children import Outcome, tried  # noqa: E402
from doors import DOORS, Door, sound_files  # noqa: E402
from interruptions import INTERRUPTIONS, Interrupted, interrupted  # noqa: E402
from mutations import mutated  # noqa: E402

from crate_mae.common.text import duration  # noqa: E402
from crate_mae.common.text_tables import aligned  # noqa: E402

KEPT = HERE / "faults"
MAX_KEPT_BYTES = 1 << 16
COLUMNS = ("tried", "refused", "equal", "other", "silent", "traceback", "hang", "memory", "died")
FAULTS = ("silent", "traceback", "hang", "memory", "died")


def outcome_of(door: Door, path: Path, wanted: str) -> tuple[str, Outcome]:
    """(column, outcome) of a file that was put in the place of the sound one.

    An accepted file counts as equal, or as other: a silent difference where the format tells.
    """
    found = tried(door.read, path)
    if found.kind != "accepted":
        return found.kind, found
    if found.content == wanted:
        return "equal", found
    return ("silent" if door.told else "other"), found


def changed_files(
    folder: Path, *, seed: int, count: int | None = None, until: float = float("inf"),
    keep: Path | None = None,
) -> dict[str, Counter[str]]:  # fmt: skip
    """How often each thing came of the changed files of each door, door after door in turn."""
    figures = {door.name: Counter[str]() for door in DOORS}
    sound = {door.name: (folder / door.file).read_bytes() for door in DOORS}
    wanted = {door.name: tried(door.read, folder / door.file) for door in DOORS}
    for door in DOORS:
        if wanted[door.name].kind != "accepted":
            raise RuntimeError(f"the sound file of {door.name} is not read: {wanted[door.name]}")
    for number in range(count if count is not None else sys.maxsize):
        for door in DOORS:
            if monotonic() > until:
                return figures
            path, content = folder / door.file, mutated(sound[door.name], f"{seed}/{number}")
            try:
                path.write_bytes(content)
                column, found = outcome_of(door, path, wanted[door.name].content)
            finally:
                path.write_bytes(sound[door.name])
            figures[door.name].update(("tried", column))
            if column in FAULTS:
                print(f"{column}: {door.name}, seed {seed}/{number}: {found.told[-300:]}",
                      file=sys.stderr)  # fmt: skip
                if keep is not None:
                    _kept(keep, door, content, column, found)
    return figures


def _kept(folder: Path, door: Door, content: bytes, column: str, found: Outcome) -> None:
    if len(content) > MAX_KEPT_BYTES:
        return
    folder.mkdir(parents=True, exist_ok=True)
    number = len(list(folder.glob("*.json")))
    (folder / f"{number:04d}.bin").write_bytes(content)
    about = {"door": door.name, "came": column, "told": found.told}
    (folder / f"{number:04d}.json").write_text(json.dumps(about, indent=1) + "\n")


def kept_faults(folder: Path = KEPT) -> Iterator[tuple[Door, bytes]]:
    """(door, content) of every fault that was kept."""
    known = {door.name: door for door in DOORS}
    for path in sorted(folder.glob("*.json")):
        about = json.loads(path.read_text())
        yield known[about["door"]], path.with_suffix(".bin").read_bytes()


def table(figures: dict[str, Counter[str]]) -> str:
    """The figures of every door, and their sums, as text."""
    total = sum(figures.values(), Counter[str]())
    rows: list[Sequence[str]] = [("door", *COLUMNS)]
    for name, counts in (*figures.items(), ("all", total)):
        rows.append((name, *(str(counts[column] or "-") for column in COLUMNS)))
    return "\n".join(aligned(rows))


def main(words: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 1 where a fault was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="budget (10)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (0)")
    parser.add_argument("--keep", type=Path, default=KEPT, help=f"where faults go ({KEPT.name})")
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    begun = monotonic()
    seconds = 60 * given.minutes
    with tempfile.TemporaryDirectory() as place:
        folder = sound_files(Path(place))
        figures = changed_files(
            folder, seed=given.seed, until=begun + 0.6 * seconds, keep=given.keep
        )
        print(table(figures))
        runs = Interrupted()
        while monotonic() < begun + seconds:
            kind = INTERRUPTIONS[runs.tried % len(INTERRUPTIONS)]
            interrupted(kind, Path(place), f"{given.seed}/{runs.tried}", runs)
        print(runs.text())
    print(f"{duration(monotonic() - begun)}, seed {given.seed}")
    bad = sum(counts[column] for counts in figures.values() for column in FAULTS)
    return 1 if bad or runs.bad else 0


if __name__ == "__main__":
    raise SystemExit(main())

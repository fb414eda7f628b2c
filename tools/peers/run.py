"""The test suites of timm and transformers on the models of this package: `make peers`.

    python tools/peers/run.py timm|transformers|all [--few] [--work FOLDER] [pytest arguments]

The suites are those of the very versions that are installed. Their source distributions are
fetched from the package index into a temporary folder and run there as they are; nothing of theirs
is kept here. Without a network nothing can be run: that is said, and is no failure. `--few` takes
the smallest preset in timm, and in transformers the models with mask tokens in the encoder: about a
minute. Why tests were skipped is counted by reason at the end.
"""

import argparse
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
PEERS = ("timm", "transformers")
NEEDED = {"timm": ("timm",), "transformers": ("transformers", "parameterized", "accelerate")}
STAND_INS = {
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/test_configuration_utils.py": (
        'config_common_kwargs = {"return_dict": False, "output_hidden_states": True,'
        ' "output_attentions": True, "dtype": "float16", "architectures": ["Any"],'
        ' "id2label": {0: "label"}, "label2id": {"label": "0"}, "problem_type": "regression"}\n'
    ),
}
"""What transformers' mixins import and no source distribution holds."""
FEW = {"timm": ["-k", "crate_mae_debug_"], "transformers": ["-k", "not DecoderTokens"]}
"""Arguments that choose a small part of each suite."""


def main() -> int:
    """Exit status of both suites: 0 where all that could run has passed."""
    parser = argparse.ArgumentParser(description="The peers' own tests on our models.")
    parser.add_argument("peer", choices=[*PEERS, "all"])
    parser.add_argument("--work", metavar="FOLDER", help="where to keep what is fetched")
    parser.add_argument("--few", action="store_true", help="a part of each: about a minute")
    given, rest = parser.parse_known_args()
    failed = False
    for peer in PEERS if given.peer == "all" else (given.peer,):
        if missing := [name for name in NEEDED[peer] if not _installed(name)]:
            print(f"SKIPPED: {peer}'s tests need {', '.join(missing)}: pip install them")
            continue
        with tempfile.TemporaryDirectory() as temporary:
            work = Path(given.work or temporary).resolve()
            work.mkdir(parents=True, exist_ok=True)
            tests = _fetched(peer, work)
            if tests is None:
                continue
            run = _run_timm if peer == "timm" else _run_transformers
            print(f"{peer} {importlib.metadata.version(peer)}: its own tests on our models")
            failed |= run(tests, [*(FEW[peer] if given.few else []), *rest]) != 0
    return int(failed)


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _fetched(peer: str, work: Path) -> Path | None:
    """The folder `tests` of the source distribution of the installed version; None without one."""
    version = importlib.metadata.version(peer)
    root = work / f"{peer}-{version}"
    if not (root / "tests").is_dir():
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps",
                   "--no-binary=:all:", "--disable-pip-version-check", "-d", str(work),
                   f"{peer}=={version}"]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        archive = work / f"{peer}-{version}.tar.gz"
        if not archive.is_file():
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            print(f"SKIPPED: the tests of {peer} {version} could not be fetched: {reason}")
            return None
        with tarfile.open(archive) as packed:
            members = [m for m in packed if m.name.startswith(f"{root.name}/tests/")]
            packed.extractall(work, members, filter="data")
    return root / "tests"


def _run_timm(tests: Path, arguments: list[str]) -> int:
    return _pytest(
        [str(tests / "test_models.py"), "-p", "timm_plugin", *arguments],
        folder=tests.parent,
        path=[],
    )


def _run_transformers(tests: Path, arguments: list[str]) -> int:
    for name, text in STAND_INS.items():
        file = tests / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    (tests / "exporters").mkdir(exist_ok=True)
    shutil.copyfile(HERE / "exporting_mixin.py", tests / "exporters" / "test_export.py")
    suite = tests / "models" / "crate_mae"
    suite.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(HERE / "modeling_suite.py", suite / "test_modeling_crate_mae.py")
    for folder in (tests, tests / "models", suite, *(tests / n for n in
                   ("generation", "utils", "exporters"))):  # fmt: skip
        (folder / "__init__.py").touch()
    return _pytest(
        [str(suite / "test_modeling_crate_mae.py"), *arguments],
        folder=tests.parent,
        path=[tests.parent],
    )


def _pytest(arguments: list[str], *, folder: Path, path: list[Path]) -> int:
    """Exit status of a run of pytest in that folder, with no settings of ours."""
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": os.pathsep.join(map(str, [*path, HERE])),
    }
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", os.devnull,
               "--rootdir", str(folder), "-q", "-W", "ignore", "-p", "skip_reasons",
               *arguments]  # fmt: skip
    return subprocess.run(command, cwd=folder, env=environment, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())

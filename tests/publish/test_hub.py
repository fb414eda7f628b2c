"""A push, against a hub in memory: what is sent, what is refused, and that it loads again."""

import json
import shutil
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, EvalResult, ModelCard
from huggingface_hub.errors import RevisionNotFoundError
from model_cases import digits_model

from crate_mae import load_model, save_model
from crate_mae.cli import main
from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.classifier import CrateClassifier
from crate_mae.models.pools import Pool
from crate_mae.publish.card import Origin
from crate_mae.publish.hub import check_repository, push
from crate_mae.publish.package import Package, build_package, check_licence, write_folder
from crate_mae.training.parse import parse_finetune, parse_pretrain

REPO = "ann/small-crate"


@dataclass
class MemoryHub:
    """A hub that keeps branches of one repository in memory and notes what it was asked."""

    token: str | bool | None = "hf_of_a_test"
    branches: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: bool = False
    fails: str | None = None
    asked: list[str] = field(default_factory=list)
    message: str = ""

    def _note(self, what: str) -> None:
        self.asked.append(what)
        if what == self.fails:
            raise ConnectionError(f"no way to the hub\nat {what}")

    def whoami(self) -> dict[str, Any]:
        self._note("whoami")
        return {"name": "ann"}

    def repo_exists(self, repo_id: str) -> bool:
        self._note("repo_exists")
        assert repo_id == REPO
        return bool(self.branches)

    def model_info(
        self, repo_id: str, *, revision: str | None = None, files_metadata: bool = False
    ) -> Any:
        self._note("model_info")
        if (revision or "main") not in self.branches:
            request = SimpleNamespace(headers={}, request=None, url="", status_code=404)
            raise RevisionNotFoundError("no such branch", response=request)  # type: ignore[arg-type]
        files = self.branches[revision or "main"]
        return SimpleNamespace(
            private=self.private,
            siblings=[
                SimpleNamespace(
                    rfilename=name,
                    # The hub knows the SHA-256 of large files alone.
                    lfs=SimpleNamespace(sha256=sha256(content).hexdigest())
                    if files_metadata and name.endswith(".safetensors")
                    else None,
                )
                for name, content in files.items()
            ],
        )

    def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> str:
        self._note("create_repo")
        assert exist_ok
        if not self.branches:
            self.private = bool(private)
            self.branches["main"] = {".gitattributes": b""}
        return f"https://hub.example/{repo_id}"

    def create_branch(self, repo_id: str, *, branch: str, exist_ok: bool) -> None:
        self._note("create_branch")
        assert exist_ok
        self.branches.setdefault(branch, dict(self.branches["main"]))

    def create_commit(
        self,
        repo_id: str,
        operations: list[CommitOperationAdd | CommitOperationDelete],
        *,
        commit_message: str,
        revision: str | None,
    ) -> Any:
        self._note("create_commit")
        files = self.branches[revision or "main"]
        for operation in operations:
            if isinstance(operation, CommitOperationDelete):
                del files[operation.path_in_repo]
            else:
                with operation.as_file() as file:
                    files[operation.path_in_repo] = file.read()
        self.message = commit_message
        return SimpleNamespace(commit_url=f"https://hub.example/{repo_id}/commit/1")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return save_model(digits_model(0), tmp_path / "weights")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder as training leaves it, with private places in every file that has some."""
    folder = tmp_path / "home" / "ann" / "runs" / "mine"
    save_model(digits_model(1), folder / "weights")
    hashed = sha256((folder / "weights" / "model.safetensors").read_bytes()).hexdigest()
    config, _ = parse_pretrain(["--config", "digits"])
    values = config.to_dict()
    values["data"]["source"] = f"imagefolder:{folder}/pictures"
    rows = [
        {
            "subject": subject, "method": "probe", "pool": "mean", "layer": None, "dim": 16,
            "accuracy": accuracy, "interval": [accuracy - 0.01, accuracy + 0.01], "std": 0.005,
            "seeds": [0, 1], "num_train": 900, "num_test": 100, "num_classes": 10, "chance": 0.1,
            "tested_on": f"imagefolder:{folder}/pictures test", "runs": [{"secret": str(folder)}],
        }
        for subject, accuracy in (("model", 0.75), ("random | <twin>", 0.5))
    ]  # fmt: skip
    for name, content in {
        "data.json": {"source": f"imagefolder:{folder}/pictures", "split": "train", "images": 900},
        "environment.json": {"crate_mae": "0.1.0", "git": "abc1234", "torch": "2.15.0",
                             "platform": "HostName", "packages": {"secret-package": "1"}},
        "summary.json": {"step": 3960, "metrics": {}},
        "evaluation.json": {"sha256": hashed, "command": [str(folder)], "rows": rows},
        "reconstruction.json": {"sha256": hashed, "psnr": [12.0, 13.0]},
    }.items():  # fmt: skip
        (folder / name).write_text(json.dumps(content))
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    (folder / "command.txt").write_text(f"crate-mae pretrain --out {folder}\n")
    (folder / "log.txt").write_text(f"secret-log {folder}\n")
    (folder / "metrics.jsonl").write_text(
        '{"step": 3959, "time": 1.0, "val/loss": 0.328, "val/mean_colour": 0.991}\n'
    )
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"secret-checkpoint")
    return folder


def package_of(weights: Path, **options: Any) -> Package:
    return build_package(weights, name=REPO, **options)


def fetched(hub: MemoryHub, folder: Path, branch: str = "main") -> Path:
    """A branch as a folder on disk."""
    folder.mkdir()
    for name, content in hub.branches[branch].items():
        (folder / name).write_bytes(content)
    return folder


def assert_same(first: Path, second: Path) -> None:
    one, two = load_model(first), load_model(second)
    assert one.config == two.config
    assert one.preprocess == two.preprocess
    for key, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[key]), key


# --- what is sent -----------------------------------------------------------------------------


def test_what_was_sent_loads_bit_for_bit(weights: Path, tmp_path: Path) -> None:
    hub = MemoryHub()
    sent = push(package_of(weights, licence="MIT"), REPO, api=hub, message="first")
    assert sent.url == f"https://hub.example/{REPO}"
    assert sent.commit_url.endswith("/commit/1")
    assert hub.message == "first"
    assert not hub.private
    folder = fetched(hub, tmp_path / "fetched")
    assert_same(folder, weights)
    assert sent.sha256 == sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_a_folder_holds_exactly_what_would_be_sent(run: Path, tmp_path: Path) -> None:
    package, hub = package_of(run), MemoryHub()
    push(package, REPO, api=hub)
    folder = write_folder(package, tmp_path / "new" / "folder")
    held = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert held == {k: v for k, v in hub.branches["main"].items() if k != ".gitattributes"}
    assert set(held) == {"model.safetensors", "config.json", "preprocess.json", "README.md",
                         "preprocessor_config.json", "recipe.yaml", "metrics.json"}  # fmt: skip
    assert package.sizes() == {name: len(content) for name, content in held.items()}
    assert_same(folder, run)


def test_nothing_private_leaves_a_run(run: Path, tmp_path: Path) -> None:
    folder = write_folder(package_of(run), tmp_path / "out")
    for path in folder.iterdir():
        content = path.read_bytes()
        for word in (str(tmp_path), "home", "runs/mine", "secret", "HostName", "pictures"):
            assert word.encode() not in content, (path.name, word)


def test_nothing_private_leaves_a_fine_tuning_run(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names without a slash are places too, and what lies beside a run is no name of the Hub."""
    shutil.rmtree(run / "weights")
    (run / "evaluation.json").unlink()
    model = CrateClassifier(digits_model(0).config, num_classes=3, pool="mean")
    save_model(model, run / "weights")
    config, _ = parse_finetune(["secretfolder", "--config", "finetune-cifar10"])
    values = config.to_dict()
    values["data"] |= {
        "source": "hf:secret/pictures", "val_source": "secret.parquet", "test_source": "C:secret",
    }  # fmt: skip
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    (run / "data.json").write_text(json.dumps({"source": "hf:secret/pictures", "images": 9}))
    (run.parent.parent / "secret" / "pictures").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    folder = write_folder(package_of(run), tmp_path / "out")
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text("utf-8"))
    assert recipe["weights"] == "PATH"
    assert [recipe["data"][key] for key in ("source", "val_source", "test_source")] == [
        "hf:PATH", "PATH", "PATH",
    ]  # fmt: skip
    for path in folder.iterdir():
        for word in (str(tmp_path), "home", "secret", "HostName", "pictures"):
            assert word.encode() not in path.read_bytes(), (path.name, word)


def test_the_recipe_trains_again(run: Path, tmp_path: Path) -> None:
    folder = write_folder(package_of(run), tmp_path / "out")
    recipe = ["--config", str(folder / "recipe.yaml"), "--data.source", "digits"]
    config, _ = parse_pretrain(recipe)
    assert config.to_dict() == parse_pretrain(["--config", "digits"])[0].to_dict()
    assert yaml.safe_load((folder / "recipe.yaml").read_text("utf-8"))["data"]["source"] == (
        "imagefolder:PATH"
    )


# --- the card ---------------------------------------------------------------------------------


class Card(NamedTuple):
    """A card as the Hub reads it."""

    metadata: dict[str, Any]
    text: str


def card_of(package: Package) -> Card:
    content = package.files["README.md"]
    assert isinstance(content, bytes)
    before, block, text = content.decode().split("---\n", 2)
    assert before == ""
    assert ModelCard(content.decode()).text.strip() == text.strip(), "the library reads it alike"
    return Card(metadata=yaml.safe_load(block), text=text)


def test_the_card_tells_what_is_known(run: Path) -> None:
    package = package_of(run, licence="cc-by-4.0", data_name="photographs of my garden")
    card = card_of(package)
    assert card.metadata.get("license") == "cc-by-4.0"
    assert card.metadata.get("library_name") == "transformers"
    assert card.metadata.get("pipeline_tag") == "image-feature-extraction"
    assert "masked-autoencoder" in card.metadata["tags"]
    text = card.text
    count = sum(p.numel() for p in load_model(run).parameters())
    for words in (
        "# small-crate", f'load_model("{REPO}")', package.sha256, f"{count / 1e6:.2f} million",
        "photographs of my garden, `imagefolder:PATH train`, 900 images", "3,960 optimiser steps",
        "50 %, random", "abc1234", "0.328 (the one best colour 0.991)", "12.50 dB, mean over 2",
        "| model | probe | **75.00% ± 0.50%** | 74.0% to 76.0% | final | mean | 16 |",
        "random \\| &lt;twin&gt;", "**For**", "**Not for**", "## Licence\n\ncc-by-4.0",
    ):  # fmt: skip
        assert words in text, words
    assert "one seed" not in text, "two seeds are behind these numbers"
    kept = json.loads(package.files["metrics.json"])  # type: ignore[arg-type]
    assert kept["rows"][0]["accuracy"] == 0.75
    assert kept["validation"] == {"val/loss": 0.328, "val/mean_colour": 0.991}


@pytest.mark.parametrize("name", ["photos64", "runs/mine"])
def test_the_card_tells_which_weights_came_first(run: Path, name: str) -> None:
    start = {"weights": name, "sha256": "12ab" * 16}
    (run / "start.json").write_text(json.dumps(start))
    package = package_of(run)
    text = " ".join(card_of(package).text.split())
    shipped = name == "photos64"
    named = f"{'`photos64`, ' if shipped else ''}weights of SHA-256 `{start['sha256']}`"
    assert f"| started from | {named} |" in text
    command = f"--init-from {'photos64' if shipped else 'WEIGHTS'} --data.source ADDRESS"
    assert command in text
    assert ("without them it makes another model" in text) is not shipped
    kept = json.loads(package.files["metrics.json"])  # type: ignore[arg-type]
    assert kept["start"] == start | ({} if shipped else {"weights": "PATH"})
    (run / "start.json").unlink()
    assert "init-from" not in card_of(package_of(run)).text.split("**For**")[0]


def results_in(package: Package) -> dict[str | None, EvalResult]:
    """The results that the Hub's client reads in a card, by the name of their metric."""
    content = package.files["README.md"]
    assert isinstance(content, bytes)
    results = ModelCard(content.decode()).data.get("eval_results", [])
    return {result.metric_name: result for result in results}


def test_the_hub_shows_the_numbers(run: Path) -> None:
    results = results_in(package_of(run))
    loss = results["mean squared error on removed patches, in units of normalised pixels"]
    probe = results["accuracy, linear probe"]
    assert set(results) == {loss.metric_name, probe.metric_name}, "what was measured, no more"
    assert (loss.metric_type, loss.metric_value) == ("mse", 0.328)
    assert (loss.task_type, loss.dataset_split) == ("image-feature-extraction", "validation")
    assert (probe.metric_type, probe.metric_value) == ("accuracy", 0.75)
    assert (probe.task_type, probe.dataset_split) == ("image-classification", "test")
    assert probe.dataset_name == "imagefolder:PATH", "no place of this machine"
    package = package_of(run, dataset="My Garden, 2nd")
    named = results_in(package)[probe.metric_name]
    assert (named.dataset_name, named.dataset_type) == ("My Garden, 2nd", "my-garden-2nd")
    assert "100 test images (My Garden, 2nd, test)" in card_of(package).text
    index = card_of(package).metadata["model-index"]
    assert [model["name"] for model in index] == ["small-crate"]


def test_the_hub_shows_the_test_of_a_classifier(run: Path) -> None:
    shutil.rmtree(run / "weights")
    model = CrateClassifier(digits_model(0).config, num_classes=3, pool="mean")
    save_model(model, run / "weights")
    config, _ = parse_finetune([str(run), "--config", "finetune-cifar10"])
    (run / "config.yaml").write_text(yaml.safe_dump(config.to_dict()))
    hashed = sha256((run / "weights" / "model.safetensors").read_bytes()).hexdigest()
    tested = {"sha256": hashed, "accuracy": 0.625, "tested_on": "hf:ann/flowers test"}
    (run / "evaluation.json").write_text(json.dumps(tested))
    package = package_of(run)
    (result,) = results_in(package).values()
    assert (result.metric_name, result.metric_value) == ("test accuracy", 0.625)
    assert (result.dataset_type, result.dataset_split) == ("ann/flowers", "test")
    assert "Test, made once at the end: 62.50%" in card_of(package).text


def test_the_hub_is_told_where_a_model_comes_from(run: Path, tmp_path: Path) -> None:
    origin = Origin(base_model="ann/older", trained_on=("ann/flowers", "mnist"))
    package = package_of(run, origin=origin)
    content = package.files["README.md"]
    assert isinstance(content, bytes)
    data = ModelCard(content.decode()).data
    assert (data.get("base_model"), data.get("datasets")) == ("ann/older", ["ann/flowers", "mnist"])
    folder = write_folder(package, tmp_path / "out")
    again = card_of(package_of(folder, title="Anew"))
    assert "# Anew" in again.text
    for key in ("base_model", "datasets", "license"):
        assert again.metadata.get(key) == card_of(package).metadata.get(key), key
    other = card_of(package_of(folder, origin=Origin(base_model="ann/newer"))).metadata
    assert (other["base_model"], other["datasets"]) == ("ann/newer", ["ann/flowers", "mnist"])
    plain = card_of(package_of(run)).metadata
    assert not {"base_model", "datasets"} & set(plain), "no place of this machine is a data set"
    source = json.loads((run / "data.json").read_text())
    (run / "data.json").write_text(json.dumps({**source, "source": "torchvision:MNIST:/home/ann"}))
    assert card_of(package_of(run)).metadata["datasets"] == ["ylecun/mnist"]


@pytest.mark.parametrize(
    "block",
    ["base_model: ../ann", "base_model: 3", "datasets: [a/b/c]", "datasets: {a: b}",
     "model-index: 7", "model-index: [{name: x}]"],
)  # fmt: skip
def test_metadata_that_the_hub_could_not_take_are_refused(
    block: str, run: Path, tmp_path: Path
) -> None:
    card = tmp_path / "card.md"
    card.write_text(f"---\nlicense: mit\n{block}\n---\nMine.\n")
    with pytest.raises(ValueError, match=r"metadata cannot be read|is no name"):
        package_of(run, card=card)
    with pytest.raises(ValueError, match=r"'a b/c' is no name on the Hub: write OWNER/NAME"):
        Origin(trained_on=("a b/c",))


def test_weights_alone_claim_nothing(weights: Path) -> None:
    package = package_of(weights)
    card = card_of(package)
    assert set(package.files) == {"model.safetensors", "config.json", "preprocess.json",
                                  "preprocessor_config.json", "README.md"}  # fmt: skip
    assert card.metadata.get("license") is None
    assert "Nothing that was measured" in card.text
    assert "None has been named" in card.text
    assert "How it was made" not in card.text
    assert "model-index" not in card.metadata


def test_results_of_other_weights_are_left_out_or_refused(run: Path, weights: Path) -> None:
    stale = run / "evaluation.json"
    values = json.loads(stale.read_text("utf-8"))
    stale.write_text(json.dumps(values | {"sha256": "0" * 64}))
    package = package_of(run)
    assert "other weights" in package.left_out[0]
    assert "75.00%" not in card_of(package).text
    with pytest.raises(ValueError, match="measured on other weights"):
        package_of(weights, results=[stale])
    stale.write_text("{}")
    with pytest.raises(ValueError, match="holds no results"):
        package_of(weights, results=[stale])
    with pytest.raises(FileNotFoundError, match="no result file"):
        package_of(weights, results=[run / "none.json"])


def test_results_from_files_go_into_the_card(run: Path, tmp_path: Path) -> None:
    results = shutil.copy(run / "evaluation.json", tmp_path / "probe.json")
    (run / "evaluation.json").unlink()
    assert "75.00%" not in card_of(package_of(run)).text
    assert "75.00%" in card_of(package_of(run, results=[results])).text


def test_an_unfinished_run_says_so(run: Path) -> None:
    (run / "summary.json").unlink()
    package = package_of(run)
    assert "not finished" in package.left_out[0]
    assert "a checkpoint on the way" in card_of(package).text


def test_a_classifier_is_called_one(tmp_path: Path) -> None:
    config = digits_model(0).config
    folder = save_model(
        CrateClassifier(config, num_classes=3, pool="mean"), tmp_path / "classifier"
    )
    card = card_of(package_of(folder))
    assert card.metadata.get("pipeline_tag") == "image-classification"
    assert "A classifier on a CRATE encoder" in card.text
    assert "predicts" not in card.text


@pytest.mark.parametrize(
    "changes",
    [{"positions": "learned"}, {"embedding": "norm-linear-norm"}, {"head_norm": "pooled"}],
)
def test_only_what_timm_can_build_is_called_its_own(changes: Any, tmp_path: Path) -> None:
    plain = card_of(package_of(save_model(digits_model(), tmp_path / "plain")))
    assert {"timm", "safetensors"} <= set(plain.metadata["tags"])
    model = CrateMAE(replace(digits_model().config, **changes))
    other = card_of(package_of(save_model(model, tmp_path / "other")))
    assert "timm" not in other.metadata["tags"]
    assert other.metadata.get("library_name") == "transformers"


def test_a_head_on_a_wide_pool_is_not_called_timms(tmp_path: Path) -> None:
    for pool, in_timm in (("mean", True), ("layers", False)):
        model = CrateClassifier(digits_model(0).config, num_classes=3, pool=cast("Pool", pool))
        card = card_of(package_of(save_model(model, tmp_path / pool)))
        assert ("timm" in card.metadata["tags"]) == in_timm
        assert card.metadata.get("library_name") == "transformers"


def test_layers_that_are_not_the_papers_are_called_so(tmp_path: Path) -> None:
    config = replace(digits_model(0).config, overcomplete=2)
    text = card_of(package_of(save_model(CrateMAE(config), tmp_path / "weights"))).text
    assert "A CRATE-MAE with overcomplete dictionaries (not the paper's layers)" in text
    assert f"| dictionaries | 2 x {config.dim} atoms, two ISTA steps from 0 and a skip" in text
    classifier = CrateClassifier(config, num_classes=3, pool="mean")
    text = card_of(package_of(save_model(classifier, tmp_path / "classifier"))).text
    assert "A classifier on a CRATE encoder with overcomplete dictionaries" in text
    plain = card_of(package_of(save_model(digits_model(0), tmp_path / "plain"))).text
    assert "atoms" not in plain


def test_own_words_and_own_cards(run: Path, tmp_path: Path) -> None:
    words = tmp_path / "words.md"
    words.write_text("It likes **tulips**.\n")
    text = card_of(package_of(run, notes=words)).text
    assert text.index("75.00%") < text.index("It likes **tulips**.") < text.index("**For**")
    card = card_of(package_of(run, card=words, licence="mit"))
    assert card.metadata.get("license") == "mit"
    assert card.text.strip() == "It likes **tulips**."
    words.write_text("---\nlicense: other\n---\nMine.\n")
    assert package_of(run, card=words).files["README.md"] == words.read_bytes()
    words.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="no text in UTF-8"):
        package_of(run, card=words)
    with pytest.raises(FileNotFoundError, match="no text file"):
        package_of(run, notes=tmp_path / "none.md")


def test_a_written_folder_is_pushed_with_its_edited_card(run: Path, tmp_path: Path) -> None:
    first = package_of(run)
    folder = write_folder(first, tmp_path / "out")
    again = package_of(folder)
    assert write_folder(again, tmp_path / "again").is_dir()
    for path in folder.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name
    card = folder / "README.md"
    card.write_text(card.read_text("utf-8") + "\nAnd one word more.\n", "utf-8")
    assert package_of(folder).files["README.md"] == card.read_bytes()
    save_model(digits_model(5), tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", folder)
    with pytest.raises(ValueError, match=r"metrics.json was measured on other weights"):
        package_of(folder)
    (folder / "metrics.json").unlink()
    with pytest.raises(ValueError, match="does not name the SHA-256"):
        package_of(folder)


def test_a_pushed_folder_is_called_by_its_new_name(run: Path, tmp_path: Path) -> None:
    folder = write_folder(build_package(run, name="published"), tmp_path / "published")
    assert 'load_model("published")' in (folder / "README.md").read_text("utf-8")
    package = package_of(folder)
    text = card_of(package).text
    assert card_of(package) == card_of(package_of(run)), "as if it had been made for the Hub"
    assert f'load_model("{REPO}")' in text
    assert package.doubts == ()
    card = folder / "README.md"
    edited = card.read_text("utf-8").replace("# published\n", "# My crate\n") + (
        "\nCompare load_model('published').\n"
    )
    card.write_text(edited, "utf-8")
    package = package_of(folder)
    assert package.files["README.md"] == (
        edited.replace('load_model("published")', f'load_model("{REPO}")')
        .replace("- name: published\n", "- name: small-crate\n")
        .encode()
    )
    assert package.doubts == (f"The card loads published; these weights will be {REPO}.",)
    package = build_package(tmp_path / "published", name=REPO, card=card)
    assert package.files["README.md"] == edited.encode(), "a card that is named is not touched"
    assert "published" in package.doubts[0]


def test_a_shipped_name_stays_only_for_the_shipped_weights(run: Path, tmp_path: Path) -> None:
    shipped = card_of(package_of(Path("cifar10-small"))).text
    assert 'load_model("cifar10-small")' in shipped
    folder = write_folder(build_package(run, name="cifar10-small"), tmp_path / "cifar10-small")
    assert f'load_model("{REPO}")' in card_of(package_of(folder)).text, "it would load others"


def test_a_licence_takes_effect_on_a_written_folder_or_is_refused(
    run: Path, tmp_path: Path
) -> None:
    bare = write_folder(package_of(run), tmp_path / "bare")
    assert card_of(package_of(bare, licence="MIT")) == card_of(package_of(run, licence="mit"))
    licensed = write_folder(package_of(run, licence="cc-by-4.0"), tmp_path / "licensed")
    with pytest.raises(ValueError, match=r"names another licence, cc-by-4.0: change it there, or"):
        package_of(licensed, licence="mit")
    card = licensed / "README.md"
    for option in (None, "cc-by-4.0", "CC-BY-4.0"):
        assert package_of(licensed, licence=option).files["README.md"] == card.read_bytes()
    remade = package_of(licensed, data_name="my garden")
    assert card_of(remade).metadata["license"] == "cc-by-4.0", "a card made anew keeps it"
    assert "made anew" in remade.doubts[0]
    remade = package_of(licensed, data_name="my garden", licence="mit")
    assert card_of(remade).metadata["license"] == "mit"
    card.write_text(card.read_text("utf-8").split("---\n", 2)[2], "utf-8")  # its metadata are gone
    assert card_of(package_of(licensed)).metadata["license"] == "cc-by-4.0"
    with pytest.raises(ValueError, match=r"names another licence, cc-by-4.0"):
        package_of(licensed, licence="mit")


def test_a_licence_and_a_card_of_ones_own(weights: Path, tmp_path: Path) -> None:
    card = tmp_path / "card.md"
    for before, after in (
        ("---\ntags: [a]\n---\nMine.\n", "---\nlicense: mit\ntags: [a]\n---\nMine.\n"),
        ("---\nlicense: MIT\n---\nMine.\n", "---\nlicense: MIT\n---\nMine.\n"),
        ("---\n---\nMine.\n", "---\nlicense: mit\n---\nMine.\n"),
    ):
        card.write_text(before, "utf-8")
        package = package_of(weights, card=card, licence="mit")
        assert package.files["README.md"] == after.encode()
    card.write_text("---\nno metadata, a line alone\n", "utf-8")
    assert card_of(package_of(weights, card=card, licence="mit")).metadata["license"] == "mit"
    for text, message in (
        ("---\nlicense: other\n---\nMine.\n", "another licence, other: .* leave --licence out"),
        ("---\nlicense:\n---\nMine.\n", "an empty one"),
        ("---\na: b: c\n---\nMine.\n", "no YAML"),
        ("---\nmodel-index:\n- name: x\n---\nMine.\n", "metadata cannot be read"),
    ):
        card.write_text(text, "utf-8")
        with pytest.raises(ValueError, match=message):
            package_of(weights, card=card, licence="mit")


@pytest.mark.parametrize("wrong", ["many", [1], {}, True, None])
def test_edited_metrics_of_a_wrong_kind_are_left_out(wrong: Any, run: Path, tmp_path: Path) -> None:
    folder = write_folder(package_of(run), tmp_path / "out")
    (folder / "README.md").unlink()
    path = folder / "metrics.json"
    values = json.loads(path.read_text("utf-8"))
    values["steps"] = values["data"]["images"] = values["psnr"]["images"] = wrong
    values["validation"] = {"val/loss": 0.5, "val/accuracy": wrong, "val/mean_colour": wrong}
    for key in values["rows"][0].keys() - {"accuracy", "subject", "method"}:
        values["rows"][0][key] = wrong
    path.write_text(json.dumps(values))
    text = card_of(package_of(folder)).text
    assert "12.50 dB, mean over held-out images." in text
    assert "fixed masks: 0.5, in units" in text
    assert "Frozen features: " in text
    assert "| model |" in text
    values["psnr"]["mean"] = values["rows"][0]["accuracy"] = wrong
    path.write_text(json.dumps(values))
    text = card_of(package_of(folder)).text
    assert "dB" not in text
    assert "| model |" not in text


# --- what is refused --------------------------------------------------------------------------


def test_another_model_is_not_replaced(weights: Path, run: Path) -> None:
    hub = MemoryHub()
    push(package_of(run), REPO, api=hub)
    before = dict(hub.branches["main"])
    with pytest.raises(FileExistsError, match="ann/small-crate holds other weights"):
        push(package_of(weights), REPO, api=hub)
    assert hub.branches["main"] == before
    push(package_of(run, licence="mit"), REPO, api=hub)  # the same weights, a better card
    assert hub.branches["main"]["README.md"] != before["README.md"]
    push(package_of(weights), REPO, api=hub, overwrite=True)
    assert set(hub.branches["main"]) == {".gitattributes", "model.safetensors", "config.json",
                                         "preprocess.json", "preprocessor_config.json",
                                         "README.md"}  # fmt: skip


def test_a_model_that_is_not_ours_is_not_replaced(weights: Path) -> None:
    hub = MemoryHub(branches={"main": {"pytorch_model.bin": b"theirs", "README.md": b""}})
    with pytest.raises(FileExistsError, match=r"something else \(pytorch_model.bin\)"):
        push(package_of(weights), REPO, api=hub)
    push(package_of(weights), REPO, api=hub, overwrite=True)
    assert hub.branches["main"]["pytorch_model.bin"] == b"theirs", "not ours to delete"


def test_a_new_branch_stands_beside(weights: Path, run: Path, tmp_path: Path) -> None:
    hub = MemoryHub()
    push(package_of(run), REPO, api=hub)
    main_branch = dict(hub.branches["main"])
    push(package_of(weights), REPO, api=hub, revision="narrow")
    assert hub.branches["main"] == main_branch
    assert "recipe.yaml" in main_branch
    assert "recipe.yaml" not in hub.branches["narrow"], "that of other weights does not come along"
    assert_same(fetched(hub, tmp_path / "narrow", "narrow"), weights)
    with pytest.raises(FileExistsError, match="ann/small-crate@narrow holds other weights"):
        push(package_of(run), REPO, api=hub, revision="narrow")


def test_private_means_private(weights: Path) -> None:
    hub = MemoryHub()
    push(package_of(weights), REPO, api=hub, private=True)
    assert hub.private
    public = MemoryHub(branches={"main": {}})
    with pytest.raises(PermissionError, match="public already"):
        push(package_of(weights), REPO, api=public, private=True)
    assert "create_commit" not in public.asked


def test_without_a_token_nothing_is_asked(
    weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("crate_mae.publish.hub.get_token", lambda: None)
    hub = MemoryHub(token=None)
    with pytest.raises(PermissionError, match=r"hf auth login.*HF_TOKEN"):
        push(package_of(weights), REPO, api=hub)
    assert hub.asked == []
    assert main(["push", str(weights / "nothing-here"), REPO]) == 1  # before weights are looked at
    assert "hf auth login" in capsys.readouterr().err


@pytest.mark.parametrize("step", ["whoami", "repo_exists", "create_repo", "create_commit"])
def test_a_hub_that_fails_is_told_of_in_one_line(step: str, weights: Path) -> None:
    with pytest.raises(RuntimeError, match=r"\(no way to the hub\)$"):
        push(package_of(weights), REPO, api=MemoryHub(fails=step))


def test_weights_that_are_not_finite_are_not_published(tmp_path: Path) -> None:
    model = digits_model(0)
    with torch.no_grad():
        model.prediction.bias[0] = torch.nan
    folder = save_model(model, tmp_path / "broken")
    with pytest.raises(ValueError, match="not finite"):
        package_of(folder)


@pytest.mark.parametrize(
    "name", ["small", "a/b/c", "../x", "a/", "a b/c", "a/b--c", "a/b.git", "änn/crate", "a/٣"]
)
def test_names_of_repositories(name: str) -> None:
    assert check_repository("Ann_1/crate.mae-2") == "Ann_1/crate.mae-2"
    with pytest.raises(ValueError, match="OWNER/REPO"):
        check_repository(name)


def test_licences() -> None:
    assert check_licence(None) is None
    assert check_licence("Apache-2.0") == "apache-2.0"
    with pytest.raises(ValueError, match="no licence identifier"):
        check_licence("do what you like")


# --- the command line -------------------------------------------------------------------------


def test_the_verb_lists_and_writes(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["push", str(run), REPO, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "model.safetensors" in told
    assert "nothing was sent" in told
    assert not out.exists()
    assert main(["push", str(run), "--out", str(out), "--licence", "mit"]) == 0
    assert f"wrote {out}" in capsys.readouterr().out
    assert 'load_model("out")' in (out / "README.md").read_text("utf-8")
    assert_same(out, run)
    assert main(["push", str(run), "--out", str(out)]) == 1
    assert "not overwritten" in capsys.readouterr().err


def test_an_empty_folder_is_filled_and_stays_itself(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, linked = tmp_path / "here", tmp_path / "linked"
    for folder in (here, linked):
        folder.mkdir()
    (tmp_path / "link").symlink_to(linked)
    before = here.stat().st_ino
    monkeypatch.chdir(here)
    assert main(["push", str(weights), "--out", "."]) == 0
    assert here.stat().st_ino == before, "whoever stands in it sees the files"
    assert main(["push", str(weights), "--out", str(tmp_path / "link")]) == 0
    assert (tmp_path / "link").is_symlink()
    for folder in (here, linked):
        assert f'load_model("{folder.name}")' in (folder / "README.md").read_text("utf-8")
        assert {path.name for path in folder.iterdir()} == set(package_of(weights).files)
        assert_same(folder, weights)


def test_a_folder_is_written_whole_or_not_at_all(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = package_of(weights)
    monkeypatch.setattr(shutil, "copyfile", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.iterdir())
    for name in ("new", "empty"):
        with pytest.raises(OSError, match="disk full"):
            write_folder(package, tmp_path / name)
    assert sorted(tmp_path.iterdir()) == before
    assert not list((tmp_path / "empty").iterdir())
    with pytest.raises(NotADirectoryError, match="is a file"):
        write_folder(package, weights / "config.json" / "below")


def test_doubts_are_told(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = tmp_path / "card.md"
    card.write_text('Mine.\n\n    load_model("elsewhere")\n', "utf-8")
    assert main(["push", str(weights), REPO, "--dry-run", "--card", str(card)]) == 0
    assert "note: The card loads elsewhere; these weights" in capsys.readouterr().err


def test_the_verb_sends(
    weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = MemoryHub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    assert main(["push", str(weights), REPO, "--private", "--revision", "v1"]) == 0
    told = capsys.readouterr().out
    assert f"sent to https://hub.example/{REPO}" in told
    assert sha256((weights / "model.safetensors").read_bytes()).hexdigest() in told
    assert hub.private
    assert "model.safetensors" in hub.branches["v1"]


def test_words_that_do_not_go_together(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        ([], "name OWNER/REPO"),
        ([REPO, "--card", "a", "--notes", "b"], "--card is the whole card"),
        ([REPO, "--card", "a", "--base-model", "b"], "--card is the whole card"),
    ):
        with pytest.raises(SystemExit):
            main(["push", str(weights), *words])
        assert message in capsys.readouterr().err

"""A package of weights to the Hugging Face Hub, in one commit, without replacing another model."""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, cast

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, get_token
from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError

from crate_mae.publish.package import OURS, Package
from crate_mae.weights.shipped import CARD, HUB_NAME, TENSORS

NO_MODEL = (".gitattributes", CARD, "LICENSE")
"""Files that may lie in a repository which holds no model yet."""

# The base of the Hub's own error is that of whichever HTTP client the installed version uses.
_FAILURES = cast(tuple[type[Exception], ...], (OSError, *HfHubHTTPError.__bases__))


class HubApi(Protocol):
    """The part of `huggingface_hub.HfApi` that a push needs."""

    @property
    def token(self) -> str | bool | None:
        """The token it was given, None for the one that is stored on this machine."""
        ...

    def whoami(self) -> dict[str, Any]:
        """Whose token it is."""
        ...

    def repo_exists(self, repo_id: str) -> bool:
        """Whether there is such a model repository for this token."""
        ...

    def model_info(
        self, repo_id: str, *, revision: str | None = None, files_metadata: bool = False
    ) -> Any:
        """`private`, and `siblings` with name and LFS hash."""
        ...

    def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> Any:
        """The address of the repository, made where it was not there."""
        ...

    def create_branch(self, repo_id: str, *, branch: str, exist_ok: bool) -> None:
        """Make a branch from main."""

    def create_commit(
        self,
        repo_id: str,
        operations: list[CommitOperationAdd | CommitOperationDelete],
        *,
        commit_message: str,
        revision: str | None,
    ) -> Any:
        """The commit, with `commit_url`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What became of a push."""

    url: str
    """Of the repository."""
    commit_url: str
    sha256: str


def check_repository(repo: str) -> str:
    """The name, if it is one that `load_model` fetches again: OWNER/REPO; else ValueError."""
    if not re.fullmatch(HUB_NAME, repo, re.ASCII) or re.search(r"--|\.\.|[.-]$|\.git$", repo):
        raise ValueError(
            f"{repo!r} is no repository name: write OWNER/REPO in letters, digits, '.', '_' and '-'"
        )
    return repo


def check_token(api: HubApi) -> str:
    """The name of the account that the token belongs to.

    Raises PermissionError when there is no token, and RuntimeError when the Hub does not take it or
    cannot be reached.
    """
    if not (api.token if isinstance(api.token, str) else get_token()):
        raise PermissionError(
            "no Hugging Face token was found: log in with `hf auth login`, or set HF_TOKEN to a"
            " token that may write"
        )
    with _asking("the Hub did not accept the token, or could not be reached"):
        return str(api.whoami()["name"])


def push(
    package: Package,
    repo: str,
    *,
    api: HubApi,
    private: bool = False,
    message: str | None = None,
    revision: str | None = None,
    overwrite: bool = False,
) -> Pushed:
    """What became of sending a package to OWNER/REPO, made where it is missing, in one commit.

    `revision` is a branch, made from main where it is missing. A repository that holds other
    weights, or a model that is not ours, is left alone unless `overwrite` is set; the same weights
    may be sent again with a better card. Recipe and metrics of older weights do not stay.

    Raises PermissionError as `check_token` and for a repository that others can see when `private`
    is asked for, FileExistsError for another model, and RuntimeError when the Hub refuses.
    """
    check_repository(repo)
    check_token(api)
    with _asking(f"{repo} could not be looked at"):
        there = api.repo_exists(repo)
        if there and private and not api.model_info(repo).private:
            raise PermissionError(
                f"{repo} is public already: --private cannot hide it; name another"
            )
        held = _held(api, repo, revision) if there else {}
    if not overwrite:
        _check_no_other_model(held, package, repo if revision is None else f"{repo}@{revision}")
    with _asking(f"{repo} could not be written"):
        url = str(api.create_repo(repo, private=private or None, exist_ok=True))
        if revision is not None and revision != "main":
            api.create_branch(repo, branch=revision, exist_ok=True)
            held = _held(api, repo, revision)  # a new branch begins with what main holds
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
            for name, content in package.files.items()
        ]
        operations += [
            CommitOperationDelete(path_in_repo=name)
            for name in OURS
            if name in held and name not in package.files
        ]
        commit = api.create_commit(
            repo,
            operations,
            commit_message=message or f"CRATE-MAE weights {package.sha256[:12]}",
            revision=revision,
        )
    return Pushed(url=url, commit_url=str(commit.commit_url), sha256=package.sha256)


def _held(api: HubApi, repo: str, revision: str | None) -> dict[str, str | None]:
    """SHA-256, where the Hub knows it, by the names of the files of a branch or of main."""
    try:
        info = api.model_info(repo, revision=revision, files_metadata=True)
    except RevisionNotFoundError:
        return {}
    return {
        file.rfilename: None if file.lfs is None else file.lfs.sha256
        for file in info.siblings or []
    }


def _check_no_other_model(held: dict[str, str | None], package: Package, place: str) -> None:
    foreign = sorted(name for name in held if name not in (*OURS, *NO_MODEL))
    other = TENSORS in held and held[TENSORS] != package.sha256
    if other or foreign:
        what = "other weights" if other else f"something else ({', '.join(foreign[:3])})"
        raise FileExistsError(
            f"{place} holds {what}: name another repository or branch (--revision), or pass"
            " --overwrite to replace them"
        )


@contextlib.contextmanager
def _asking(what: str) -> Iterator[None]:
    """Failures of the Hub and of the way to it as one line of a RuntimeError."""
    try:
        yield
    except PermissionError:
        raise
    except _FAILURES as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RuntimeError(f"{what} ({reason})") from error

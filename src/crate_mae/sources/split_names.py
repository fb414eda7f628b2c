"""Names that mean a split: `train`, `Training`, `seg_train`, `train2017`, `x_val`, `TestSet`, ...

A name is cut into words. One of them says the split; what is left, without words that say nothing
of the images (`data`, `images`, numbers), is what the name is about: `train_station` is about a
station, `seg_train` and `seg_test` are about the same.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

TRAIN, VALIDATION, TEST = "train", "validation", "test"

_MEANINGS = {
    word: meaning
    for meaning, words in (
        (TRAIN, "train training trn trainval entrenamiento entraînement entrainement apprentissage"
                " treino treinamento addestramento trening eğitim обучение обучающая обучающий"
                " тренировка тренировочная 训练 訓練 学習 훈련 학습"),
        (VALIDATION, "val valid validation validate dev devel development eval evaluation evaluate"
                     " doğrulama валидация валидационная validación validacion validação validacao"
                     " validierung 验证 驗證 検証 검증"),
        (TEST, "test testing tests tst testdev holdout heldout prueba pruebas teste"
               " тест тестовая тестовый 测试 測試 テスト 테스트"),
    )
    for word in words.split()
}  # fmt: skip
_EMPTY = (
    "data|dataset|set|sets|images?|imgs?|pictures?|pics?|photos?|frames?|samples?|files?|folder"
    "|dir|split|part|raw|all|full|subset|shards?|of|the|and|new|final|[xy]|jpe?g|png"
    "|s?daten|集|数据集?|數據集?|データ|セット"
)
_SAID = "|".join(sorted(_MEANINGS, key=len, reverse=True))
_JOINED = re.compile(f"(?:mini)?(?P<word>{_SAID})(?:{_EMPTY}|用)?|[xy](?P<behind>{_SAID}|tr|te)")
_SHORT = {"tr": "train", "te": "test"}
"""Only behind an x or y, as in `Xtr`: alone they may be languages."""
_WORD = re.compile(r"[A-Z]+(?![^\W\d_A-Z])|[A-Z]?[^\W\d_A-Z]+")


class SplitName(NamedTuple):
    """What a name says of a split."""

    word: str
    """The word that says it, in lower case: `val`, `valid`, `validation`, ..."""
    meaning: str
    """`train`, `validation` or `test`."""
    about: tuple[str, ...]
    """The other words that say something."""


def words_of(name: str) -> list[str]:
    """The words of a name in lower case: `trainX_2` has `train` and `x`."""
    return [word.lower() for word in _WORD.findall(name)]


def words_beside_split(name: str) -> list[str]:
    """The words of a name without what says a split: `x_train` and `Xtrain` have `x`."""
    words = []
    for word in words_of(name):
        joined = _JOINED.fullmatch(word)
        if joined and joined["behind"]:
            words.append(word[0])
        elif split_name(word) is None:
            words.append(word)
    return words


@lru_cache(maxsize=4096)
def split_name(name: str) -> SplitName | None:
    """What a name of a file (without suffix) or folder says of a split; None for nothing."""
    found: SplitName | None = None
    about: list[str] = []
    for word in words_of(name):
        joined = _JOINED.fullmatch(word)
        said = (joined["word"] or joined["behind"]) if joined else word
        said = _SHORT.get(said, said) if joined else said
        if said in _MEANINGS and found is None:
            found = SplitName(said, _MEANINGS[said], ())
        elif found is not None and (found.meaning, _MEANINGS.get(said)) == (TRAIN, VALIDATION):
            found = SplitName("trainval", TRAIN, ())
        elif not re.fullmatch(_EMPTY, word) and said not in _MEANINGS:
            about.append(word)
    return None if found is None else found._replace(about=tuple(about))


def meaning_of(split: str) -> str:
    """The split that a name asks for: its meaning, or the name itself in lower case."""
    said = split_name(split)
    return said.meaning if said is not None and not said.about else split.lower()


def split_folders(folders: Iterable[str]) -> dict[str, str]:
    """The folders beside each other that are splits, with their meanings; empty for classes.

    Two meanings of names about the same make splits (`train` and `test`, `seg_train` and
    `seg_test`), beside other folders if one of them is for training; so do two meanings where every
    folder has one and some say nothing else (`train-clean`, `train-noisy` and `test`). A single
    meaning makes a split only where all folders have it and say nothing else: one class may well be
    called `train`.
    """
    names = list(folders)
    said = {name: split_name(name) for name in names}
    known = {name: split for name, split in said.items() if split is not None}
    found: dict[str, str] = {}
    for about in {split.about for split in known.values()}:
        alike = {name: split.meaning for name, split in known.items() if split.about == about}
        if len(set(alike.values())) > 1:
            found |= alike
    whole = len(known) == len(names) and any(not split.about for split in known.values())
    if whole and len({split.meaning for split in known.values()}) > 1:
        return {name: split.meaning for name, split in known.items()}
    if found:
        return found if len(found) == len(names) or TRAIN in found.values() else {}
    if known and len(known) == len(names) and len({split.about for split in known.values()}) == 1:
        single = next(iter(known.values()))
        # `train_station` alone is a class; `seg_train` alone is not: names of splits end so.
        if not single.about or all(_ends_in_split(name) for name in names):
            return {name: split.meaning for name, split in known.items()}
    return {}


def _ends_in_split(name: str) -> bool:
    words = words_of(name)
    return bool(words) and words[-1] in _MEANINGS

"""Which mask values are classes: what is said, what is found, what cannot be."""

import pytest

from crate_mae.models.mask_classes import VOID, ClassChoice, MaskClasses


def test_classes_that_occur_unless_others_are_named() -> None:
    found = ClassChoice().of([0, 1, 2, 255], beside_void=True)
    assert found == MaskClasses(values=(0, 1, 2), names=("0", "1", "2"), ignored=(255,))
    whole = ClassChoice().of([0, 255], beside_void=False)
    assert (whole.values, whole.ignored) == ((0, 255), ()), "255 is foreground where it is alone"
    three = ClassChoice(ignored=[]).of([0, 128, 255], beside_void=True)
    assert (three.values, three.ignored) == ((0, 128, 255), ()), "a trimap's three values"
    border = ClassChoice(ignored=[3], names=["pet", "ground"]).of([1, 2, 3], beside_void=False)
    assert border == MaskClasses(values=(1, 2), names=("pet", "ground"), ignored=(3,))
    said = ClassChoice(classes=4).of([0, 2, 255], beside_void=False)
    assert (said.values, said.ignored) == ((0, 1, 2, 3), (VOID,))
    listed = ClassChoice(classes=[0, 255]).of([0, 255], beside_void=True)
    assert (listed.values, listed.ignored) == ((0, 255), ())


@pytest.mark.parametrize(
    ("choice", "found", "message"),
    [
        (ClassChoice(), [0, 255], "hold 1 class that counts"),
        (ClassChoice(ignored=[1]), [0, 1], "values found: 0, 1, ignored: 1"),
        (ClassChoice(), list(range(60)), "hold 60 values, which look like soft edges"),
        (ClassChoice(classes=2), [0, 1, 2, 7], "values 2, 7, which are neither among the 2"),
        (ClassChoice(classes=3), [0], "hold 1 class that counts"),
        (ClassChoice(names=["a", "b", "c"]), [0, 1], "3 class names for the 2 classes"),
    ],
)
def test_masks_that_do_not_fit(choice: ClassChoice, found: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choice.of(found, beside_void=255 in found)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": 1}, "2 to 255 classes, not 1"),
        ({"classes": 10**12}, "2 to 255 classes, not 1000000000000"),
        ({"classes": []}, "2 to 255 classes, not 0"),
        ({"classes": [0, 0]}, "two classes have one mask value"),
        ({"classes": [0, -1]}, "from 0 to 65534, not -1"),
        ({"classes": [0, 65_535]}, "from 0 to 65534, not 65535"),
        ({"classes": 2, "ignored": [1]}, r"\[1\] are classes and ignored at once"),
        ({"classes": 2, "names": ["a"]}, "1 class names for 2 classes"),
        ({"classes": 2, "names": ["a", "a"]}, "two classes have one name"),
        ({"classes": 2, "names": ["a", ""]}, "class names are words"),
        ({"ignored": [70_000]}, "from 0 to 65534, not 70000"),
    ],
)
def test_choices_that_cannot_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassChoice(**settings)  # type: ignore[arg-type]


def test_facts_come_back() -> None:
    classes = MaskClasses(values=(0, 7), names=("sky", "cat"), ignored=(255, 254))
    assert MaskClasses.from_facts(classes.facts()) == classes
    assert classes.same_pixels(MaskClasses(values=(0, 7), names=("sky", "cat")))
    assert not classes.same_pixels(MaskClasses.numbered(2))
    for wrong in ({}, {**classes.facts(), "values": 3}, {**classes.facts(), "values": [0, "7"]}):
        with pytest.raises(ValueError, match=r"must be a list|whole number"):
            MaskClasses.from_facts(wrong)

"""SimDINO's losses, head and teacher against numbers of the authors' code, loops and bounds."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

from crate_mae.models.coding_rate import rate_share
from crate_mae.models.simdino import (
    ProjectionHead,
    SimDINOTerms,
    compression,
    expanded_features,
    expansion,
    expansion_of_covariances,
    global_compression,
    largest_expansion,
    patch_compression,
    simdino_loss,
    simdinov2_loss,
)
from crate_mae.training.average import RunningAverage

GOLDEN = Path(__file__).parents[1] / "shared" / "golden" / "simdino.safetensors"
with safe_open(GOLDEN, "pt") as file:
    TENSORS: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    CONFIG: dict[str, Any] = json.loads(file.metadata()["config"])
PRECISIONS = [(torch.float64, 1e-10), (torch.float32, 1e-5)]


def given_tensor(key: str, dtype: torch.dtype) -> Tensor:
    return TENSORS[key].to(dtype, copy=True)


def close(found: Tensor, key: str, within: float) -> None:
    expected = TENSORS[key]
    torch.testing.assert_close(found.double(), expected, atol=within, rtol=within)


def inputs(case: dict[str, Any], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    raw = "_raw" if case.get("raw") or case.get("normalized") is False else ""
    student = given_tensor(f"v1.in.student{raw}", dtype).requires_grad_()
    return student, given_tensor(f"v1.in.teacher{raw}", dtype)


@pytest.mark.parametrize(("dtype", "within"), PRECISIONS)
@pytest.mark.parametrize("index", range(len(CONFIG["v1_cases"])))
def test_the_first_loss_and_its_gradient_are_the_authors(
    index: int, dtype: torch.dtype, within: float
) -> None:
    case = CONFIG["v1_cases"][index]
    student, teacher = inputs(case, dtype)
    found = simdino_loss(
        student,
        teacher,
        eps=case["eps"],
        expa_type=case["expa_type"],
        coefficient=case["coeff"],
    )
    torch.autograd.backward(found.loss)
    for name, value in zip(("loss", "comp", "expa"), found, strict=True):
        close(value.detach(), f"v1.case{index}.{name}", within)
    assert student.grad is not None
    close(student.grad.flatten(0, 1), f"v1.case{index}.grad.student", within)


@pytest.mark.parametrize(("dtype", "within"), PRECISIONS)
@pytest.mark.parametrize("index", range(len(CONFIG["v2_cases"])))
def test_the_second_loss_and_its_gradient_are_the_authors(
    index: int, dtype: torch.dtype, within: float
) -> None:
    case = CONFIG["v2_cases"][index]
    student, teacher = inputs(case, dtype)
    found = simdinov2_loss(
        student,
        teacher,
        eps=case["eps"],
        expa_type=case["expa_type"],
        coefficient=case["coeff"],
        normalised=case["normalized"],
        same_crop=not case["no_diag"],
    )
    torch.autograd.backward(found.loss)
    for name, value in zip(("loss", "comp_loss", "expa_loss"), found, strict=True):
        close(value.detach(), f"v2.case{index}.{name}", within)
    assert student.grad is not None
    close(student.grad, f"v2.case{index}.grad.student", within)


@pytest.mark.parametrize("index", range(len(CONFIG["v2_cases"])))
def test_what_global_views_contribute_is_the_authors(index: int) -> None:
    case = CONFIG["v2_cases"][index]
    student, teacher = inputs(case, torch.float64)
    if not case["normalized"]:
        student, teacher = F.normalize(student, dim=-1), F.normalize(teacher, dim=-1)
    found = global_compression(student, teacher, cosine=False, same_crop=not case["no_diag"])
    # Theirs sums two products over 2, ours over the 2 pairs of two views: the same.
    close(found.detach(), f"v2.case{index}.global_comp_loss", 1e-10)


@pytest.mark.parametrize(("dtype", "within"), PRECISIONS)
def test_the_patch_loss_and_its_gradient_are_the_authors(dtype: torch.dtype, within: float) -> None:
    student = given_tensor("patch.in.student", dtype).requires_grad_()
    mask = TENSORS["patch.in.mask"].bool()
    assert not mask[-1].any()
    loss = -patch_compression(student, given_tensor("patch.in.teacher", dtype), mask)
    torch.autograd.backward(loss)
    assert student.grad is not None
    # The authors' weights are of float32.
    close(loss.detach(), "patch.forward.loss", max(within, 1e-8))
    close(student.grad, "patch.forward.grad.student", max(within, 1e-8))
    close(student.grad[mask], "patch.masked.grad.student", max(within, 1e-8))


@pytest.mark.parametrize(("dtype", "within"), PRECISIONS)
@pytest.mark.parametrize("index", [0, 1])
def test_both_splits_of_a_batch_over_two_processes_are_the_authors(
    index: int, dtype: torch.dtype, within: float
) -> None:
    """The covariances of one process's images, or of both; the gradient reaches its own alone."""
    case = CONFIG["ddp_cases"][index]
    students = [
        given_tensor(f"ddp.in.student.rank{rank}", dtype).requires_grad_() for rank in (0, 1)
    ]
    teachers = [given_tensor(f"ddp.in.teacher.rank{rank}", dtype) for rank in (0, 1)]
    features = [
        expanded_features(s, t, expa_type=case["expa_type"])
        for s, t in zip(students, teachers, strict=True)
    ]
    for rank in (0, 1):
        agreed = compression(students[rank], teachers[rank])
        both = torch.cat(
            [part if i == rank else part.detach() for i, part in enumerate(features)], 1
        )
        taken = both if case["reduce_cov"] else features[rank]
        spread = expansion(taken, eps=case["eps"], images=both.shape[1])
        weight = 2 if case["reduce_cov"] else 1  # gradients are averaged over processes afterwards
        of_views = torch.autograd.grad(-agreed, students[rank], retain_graph=True)[0]
        of_rate = torch.autograd.grad(-spread, students[rank], retain_graph=True)[0]
        name = f"ddp.case{index}.rank{rank}"
        close(agreed.detach(), f"{name}.comp", within)
        close(spread.detach(), f"{name}.expa", within)
        close((of_views + weight * of_rate).flatten(0, 1), f"{name}.grad.student", within)


def head_of(who: str) -> ProjectionHead:
    sizes = CONFIG["head"]
    head = ProjectionHead(
        sizes["in_dim"], hidden=sizes["hidden_dim"], out=CONFIG["dim"], layers=sizes["nlayers"]
    ).double()
    prefix = f"head.{who}.param."
    head.load_state_dict(
        {k.removeprefix(prefix): v.double() for k, v in TENSORS.items() if k.startswith(prefix)}
    )
    return head


def test_heads_and_a_step_of_the_teacher_are_the_authors() -> None:
    student, teacher = head_of("student"), head_of("teacher")
    tokens = given_tensor("head.in.student_features", torch.float64).requires_grad_()
    found = student(tokens)
    with torch.no_grad():
        taught = teacher(given_tensor("head.in.teacher_features", torch.float64))
    close(found.detach(), "head.out.student", 1e-10)
    close(taught, "head.out.teacher", 1e-10)
    batch = CONFIG["batch"]
    terms: SimDINOTerms = simdino_loss(
        found.unflatten(0, (-1, batch)), taught.unflatten(0, (-1, batch)), eps=0.05
    )
    torch.autograd.backward(terms.loss)
    for name, value in zip(("loss", "comp", "expa"), terms, strict=True):
        close(value.detach(), f"head.out.{name}", 1e-10)
    assert tokens.grad is not None
    close(tokens.grad, "head.grad.in.student_features", 1e-10)
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None
        close(parameter.grad, f"head.grad.student.{name}", 1e-10)

    average = RunningAverage(teacher, from_start=True)
    average.follow(student, 0.996)
    for name, parameter in average.module.named_parameters():
        close(parameter, f"head.teacher_after_ema_0.996.{name}", 1e-10)


@given(st.integers(2, 5), st.integers(1, 4), st.integers(1, 6), st.integers(0, 1), st.booleans())
def test_the_loss_is_its_definition(
    views: int, images: int, width: int, expa_type: int, same_crop: bool
) -> None:
    """Loops in float64, with more images than values and the other way round."""
    generator = torch.Generator().manual_seed(views * 100 + images * 10 + width)
    student = torch.randn(views, images, width, generator=generator, dtype=torch.float64)
    teacher = torch.randn(2, images, width, generator=generator, dtype=torch.float64)
    total = 0.0
    for g in range(2):
        for c in range(views):
            if c == g and not same_crop:
                continue
            for n in range(images):
                a, b = teacher[g, n], student[c, n]
                total += float(a @ b / (a.norm() * b.norm())) / images
    expected = total / (2 * views - 2)
    found = compression(student, teacher, same_crop=same_crop)
    assert float(found) == pytest.approx(expected, rel=1e-9, abs=1e-12)

    rates = []
    for g in range(2):
        features = student[g] if expa_type == 0 else (student[g] + teacher[g]) / 2
        gram = torch.eye(width, dtype=torch.float64)
        for row in features:
            gram += width / (images * 0.3) * torch.outer(row, row)
        rates.append(0.5 * float(torch.logdet(gram)))
    gamma = (width + images) / (width * images)
    chosen = expanded_features(student, teacher, expa_type=expa_type)
    spread = expansion(chosen, eps=0.3)
    assert float(spread) == pytest.approx(gamma * sum(rates) / 2, rel=1e-9, abs=1e-12)
    covariances = chosen.mT @ chosen
    again = expansion_of_covariances(covariances, images=images, eps=0.3)
    assert float(again) == pytest.approx(float(spread), rel=1e-9, abs=1e-12)


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 3))
def test_no_features_expand_beyond_the_largest(images: int, width: int, devices: int) -> None:
    """Orthogonal features reach it where there are as few as values; it is that of the rate."""
    features = F.normalize(torch.randn(2, images, width, dtype=torch.float64), dim=-1)
    count = images * devices
    most = largest_expansion(images, width, eps=0.05, images=count)
    assert float(expansion(features, eps=0.05, images=count)) <= most * (1 + 1e-9)
    if images <= width:
        apart = torch.eye(width, dtype=torch.float64)[:images].expand(2, -1, -1)
        assert float(expansion(apart, eps=0.05, images=count)) == pytest.approx(most, rel=1e-9)
    rate, share = rate_share(features, eps_squared=0.05, dtype=torch.float64)
    gamma = (width + images) / (width * images)
    assert float(expansion(features, eps=0.05)) == pytest.approx(gamma * float(rate.mean()))
    assert largest_expansion(images, width, eps=0.05) == pytest.approx(
        gamma * float((rate / share)[0])
    )


def test_the_published_batch_can_reach_what_its_devices_allow() -> None:
    """8 devices of 64 images, 256 values: rank 64 a device."""
    expected = (256 + 512) / (256 * 512) * 32 * math.log1p(256 / (8 * 64 * 0.05))
    assert largest_expansion(64, 256, eps=0.05, images=512) == pytest.approx(expected)
    assert expected == pytest.approx(0.4496, abs=1e-4)


def test_the_teacher_gets_no_gradient() -> None:
    student = torch.randn(3, 4, 5, requires_grad=True)
    teacher = torch.randn(2, 4, 5, requires_grad=True)
    mask = torch.ones(4, 3, dtype=torch.bool)
    patches = torch.randn(4, 3, 5, requires_grad=True)
    loss = simdino_loss(student, teacher, eps=0.1).loss
    loss = loss + simdinov2_loss(student, teacher, eps=0.1).loss
    torch.autograd.backward(loss - patch_compression(student.mean() * patches, patches, mask))
    assert teacher.grad is None
    assert student.grad is not None


@pytest.mark.parametrize(
    ("width", "count"), [(192, 5_116_160), (384, 5_509_376), (768, 6_295_808), (1024, 6_820_096)]
)
def test_the_published_head_is_as_large_as_published(width: int, count: int) -> None:
    with torch.device("meta"):
        head = ProjectionHead(width)
    assert sum(p.numel() for p in head.parameters()) == count


@pytest.mark.parametrize(("m", "p"), [(1024, 256), (256, 256), (64, 512)])
def test_equal_features_expand_little_however_small_eps_is(m: int, p: int) -> None:
    """In float32 rounding alone would fill the other directions."""
    direction = F.normalize(torch.randn(p, generator=torch.Generator().manual_seed(0)), dim=0)
    found = expansion(direction.expand(2, m, p), eps=1e-4)
    wanted = (p + m) / (p * m) * 0.5 * math.log1p(p / 1e-4)
    assert float(found) == pytest.approx(wanted, rel=1e-5)


def test_bfloat16_features_are_compared_in_float32() -> None:
    student, teacher = torch.randn(3, 4, 5).bfloat16(), torch.randn(2, 4, 5).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = simdino_loss(student, teacher, eps=0.1)
    expected = simdino_loss(student.double(), teacher.double(), eps=0.1)
    assert found.compression.dtype == torch.float32
    # The mean of student and teacher is taken in their own precision.
    for value, wanted in zip(found, expected, strict=True):
        assert float(value) == pytest.approx(float(wanted), rel=1e-2, abs=1e-3)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ((1, 4, 5), (2, 4, 5)),
        ((3, 4, 5), (2, 3, 5)),
        ((3, 4, 5), (3, 4, 5)),
        ((3, 0, 5), (2, 0, 5)),
    ],
)
def test_other_shapes_are_refused(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least 2 views, with 2 of the teacher"):
        compression(torch.zeros(student), torch.zeros(teacher))


def test_heads_and_types_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="expa_type must be 0 or 1, not 2"):
        expanded_features(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), expa_type=2)
    with pytest.raises(ValueError, match="not 0 layers of 4"):
        ProjectionHead(4, layers=0)
    with pytest.raises(ValueError, match="eps_squared must be a finite number above 0"):
        largest_expansion(3, 4, eps=0.0)

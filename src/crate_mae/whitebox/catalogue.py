"""What each white-box measure is: every number that an analysis writes is described here, once.

Tables of the report, the summary of `crate-mae analyze` and the titles of the figures are made from
it. docs/whitebox.md explains how to read the numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from crate_mae.models.layers import Side
from crate_mae.whitebox.table import Measurement

HALF_STEPS: Mapping[Side, tuple[str, str, str]] = {
    "encoder": ("input", "compress", "sparsify"),
    "decoder": ("input", "expand", "decompress"),
}
"""The three points of a layer: its input, and the tokens after each half step."""
POINTS = ("input", "expand", "compress", "decompress", "sparsify", "features", "weights")
"""All points, in the order in which tokens come to them; those of the weights last."""

Places = Mapping[Side, tuple[str, ...]]
TOKENS: Places = HALF_STEPS
COMPRESSION: Places = {"encoder": ("compress",), "decoder": ("decompress",)}
CODES: Places = {"encoder": ("sparsify",), "decoder": ("expand",)}
"""The decoder has codes only with overcomplete dictionaries."""
MIRRORED: Places = {"decoder": HALF_STEPS["decoder"]}
POOLED: Places = {"encoder": ("sparsify", "features")}
WEIGHTS: Places = {"encoder": ("weights",), "decoder": ("weights",)}
DECODER_WEIGHTS: Places = {"decoder": ("weights",)}


@dataclass(frozen=True)
class Scale:
    """What a measure counts in, and the ends of its range; None where it has none."""

    unit: str = ""
    lowest: float | None = None
    highest: float | None = None

    def __str__(self) -> str:
        ends = [f"{end:g}" for end in (self.lowest, self.highest) if end is not None]
        span = " to ".join(ends)
        if len(ends) == 1:
            span = f"at {'least' if self.highest is None else 'most'} {span}"
        return ", ".join(filter(None, (self.unit, span)))


NATS, ANY_NATS = Scale("nats", 0), Scale("nats")
SHARE, FALL, PART = Scale("share", 0, 1), Scale("share", None, 1), Scale("ratio", 0, 1)
COSINE, ABS_COSINE = Scale("cosine", -1, 1), Scale("cosine", 0, 1)
RATIO, INDEX, FACTOR = Scale("ratio", 0), Scale("index", 0, 1), Scale("factor", 0)
OBJECTIVE, DISTANCE, LENGTH = Scale("objective", 0), Scale("distance", 0), Scale("length", 0)
DIRECTIONS, COLUMNS = Scale("directions", 0), Scale("columns", 0)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One measure of an analysis."""

    name: str
    """As the column `measure` of the table has it."""
    title: str
    meaning: str
    """What a number of it says, in sentences."""
    points: Places
    """Where it is taken: points by side."""
    scale: Scale
    better: Literal["higher", "lower"] | None = None
    """What the theory asks for; None for controls and for what is no merit by itself."""
    panel: str = ""
    """Title of its panel in a figure, with formulas; empty where it has none."""
    column: str = ""
    """Head of its column in a narrow table of text; empty where it has none."""


_MEASURES = (
    Measure(
        name="subspace_coding_rate",
        title="Rate within the subspaces, R^c",
        points=TOKENS,
        scale=NATS,
        better="lower",
        panel="$R^c$ against the layer's own subspaces (nats)",
        column="R^c",
        meaning="Nats it takes to code the tokens inside the layer's own subspaces. The first half"
        " step of an encoder layer (compress) is derived to make it smaller: falling from"
        " input to compress is what the theory promises. Attention that averages tokens"
        " lowers it, too: a fall counts only where it is deeper than the random baseline's.",
    ),
    Measure(
        name="zero_fraction",
        title="Zeros after ISTA",
        points=CODES,
        scale=SHARE,
        better="higher",
        panel="zeros after ISTA (share)",
        column="zeros",
        meaning="Share of the numbers in the codes that are exactly zero after the second half"
        " step (sparsify). Sparser is what the step is for; but random weights give zeros"
        " too, so only the distance to the random baseline says that training did it.",
    ),
    Measure(
        name="lasso_fall",
        title="Fall of the LASSO objective",
        points=CODES,
        scale=FALL,
        better="higher",
        panel="fall of the LASSO objective (share)",
        column="LASSO fall",
        meaning="Share by which the ISTA step lowers the objective it is derived from. Above 0 the"
        " step does its work; below 0 it made the objective larger.",
    ),
    Measure(
        name="mssa_shift_gradient_cosine",
        title="Agreement of the compression step with its gradient",
        points=COMPRESSION,
        scale=COSINE,
        better="higher",
        panel=r"cosine of MSSA($x$)$-x$, $-\partial R^c$; thin: $-x$",
        column="cos shift",
        meaning="Cosine between MSSA(x) - x and the direction in which R^c falls fastest. 1: the"
        " step goes straight downhill; 0: it has nothing to do with it; below 0: uphill."
        " It must beat mere shrinking, in the next table, to mean anything.",
    ),
    Measure(
        name="shrink_gradient_cosine",
        title="What mere shrinking reaches",
        points=COMPRESSION,
        scale=COSINE,
        meaning="The same cosine for scaling all tokens down: the mark that the step should beat.",
    ),
    Measure(
        name="coding_rate",
        title="Rate of all tokens, R",
        points=TOKENS,
        scale=NATS,
        better="higher",
        panel="$R$ of all tokens (nats)",
        meaning="Nats it takes to code all tokens together. Larger means more varied tokens; the"
        " model is to keep this large while R^c becomes small.",
    ),
    Measure(
        name="rate_difference",
        title="R - R^c",
        points=TOKENS,
        scale=ANY_NATS,
        better="higher",
        meaning="The objective without its sparsity term, to be made large. R^c adds up tokens"
        " that were scaled to length 1 in every subspace, so the two are not on one scale:"
        " read its change, not its sign.",
    ),
    Measure(
        name="effective_rank",
        title="Effective rank in a subspace",
        points=TOKENS,
        scale=DIRECTIONS,
        panel="effective rank in a subspace",
        meaning="How many directions of a subspace the tokens use, mean over subspaces. Small"
        " means strong compression; 1 would be a collapse.",
    ),
    Measure(
        name="effective_rank_of_head",
        title="Effective rank in each subspace",
        points=TOKENS,
        scale=DIRECTIONS,
        meaning="The same, subspace by subspace.",
    ),
    Measure(
        name="mssa_gradient_cosine",
        title="Agreement of MSSA(x) itself with the gradient",
        points=COMPRESSION,
        scale=COSINE,
        better="higher",
        panel=r"cosine of MSSA($x$) and $-\partial R^c$",
        column="cos MSSA",
        meaning="Cosine between MSSA(x), which the layer adds to its tokens, and the direction in"
        " which R^c falls fastest. Near 0: what the layer adds is no step of the"
        " derivation.",
    ),
    Measure(
        name="mssa_gradient_ratio",
        title="Length of the step",
        points=COMPRESSION,
        scale=RATIO,
        meaning="Length of MSSA(x) divided by that of the gradient: how large a step the layer"
        " takes.",
    ),
    Measure(
        name="nonzero_fraction",
        title="Not zero after ISTA",
        points=CODES,
        scale=SHARE,
        better="lower",
        meaning="One minus the share of zeros.",
    ),
    Measure(
        name="small_fraction",
        title="Nearly zero after ISTA",
        points=CODES,
        scale=SHARE,
        better="higher",
        meaning="Share of numbers up to one per cent of their token's largest; unlike exact zeros"
        " it does not depend on where a ReLU cuts.",
    ),
    Measure(
        name="hoyer_sparsity",
        title="Hoyer's sparsity",
        points=CODES,
        scale=INDEX,
        better="higher",
        meaning="0 when all entries of a code are equally large, 1 when a single one is not zero.",
    ),
    Measure(
        name="gini_sparsity",
        title="Gini index of the codes",
        points=CODES,
        scale=INDEX,
        better="higher",
        meaning="0 when all entries of a code are equally large, close to 1 when very few carry"
        " all.",
    ),
    Measure(
        name="lasso_start",
        title="LASSO objective before ISTA",
        points=CODES,
        scale=OBJECTIVE,
        meaning="The value at the point where ISTA starts.",
    ),
    Measure(
        name="lasso_start_nonnegative",
        title="LASSO objective before ISTA, without negative entries",
        points=CODES,
        scale=OBJECTIVE,
        meaning="The value at the nearest codes that are allowed: a fairer start to compare the"
        " end with.",
    ),
    Measure(
        name="lasso_end",
        title="LASSO objective after ISTA",
        points=CODES,
        scale=OBJECTIVE,
        better="lower",
        meaning="Lower than at the start is better.",
    ),
    Measure(
        name="ista_residual",
        title="What the dictionary misses",
        points=CODES,
        scale=RATIO,
        better="lower",
        meaning="Length of token minus its coded version, as a share of the token: 0 is a perfect"
        " code, about 1 says that the codes do not rebuild the token.",
    ),
    Measure(
        name="atoms_used",
        title="Dictionary columns in use",
        points=CODES,
        scale=COLUMNS,
        better="higher",
        column="atoms",
        meaning="How many columns are used by at least one token; unused ones are wasted.",
    ),
    Measure(
        name="mirror_error",
        title="Distance from the mirrored encoder layer",
        points=MIRRORED,
        scale=RATIO,
        better="lower",
        meaning="How far a decoder layer's tokens are from those its mirrored encoder layer"
        " started with, as a share: 0 would be a perfect inverse.",
    ),
    Measure(
        name="mirror_error_scaled",
        title="The same after the best rescaling",
        points=MIRRORED,
        scale=PART,
        better="lower",
        meaning="Distance from the mirrored tokens when one factor may be chosen freely.",
    ),
    Measure(
        name="mirror_cka",
        title="Likeness to the mirrored encoder tokens (CKA)",
        points=MIRRORED,
        scale=INDEX,
        better="higher",
        panel="CKA with the mirrored encoder tokens",
        meaning="1: the same up to rotation and scale; 0: unrelated. Decoder layers are meant to"
        " undo encoder layers, so higher fits the theory better.",
    ),
    Measure(
        name="class_rate_reduction",
        title="Rate reduction between classes",
        points=POOLED,
        scale=NATS,
        better="higher",
        panel=r"$\Delta R$ between classes (nats); thin: control",
        meaning="How much the classes spread apart, in nats; labels are used for measuring only."
        " With few images any grouping looks compact, so only what is above the next table"
        " counts.",
    ),
    Measure(
        name="class_rate_reduction_dealt",
        title="The same with labels dealt out at random",
        points=POOLED,
        scale=NATS,
        meaning="The control: what groups reach that mean nothing.",
    ),
    Measure(
        name="rate_of_all_classes",
        title="Rate of all classes together",
        points=POOLED,
        scale=NATS,
        meaning="First part of the rate reduction.",
    ),
    Measure(
        name="rate_within_classes",
        title="Rate within the classes",
        points=POOLED,
        scale=NATS,
        meaning="Second part of the rate reduction.",
    ),
    Measure(
        name="orthonormality_error",
        title="Subspace bases: distance from orthonormal",
        points=WEIGHTS,
        scale=DISTANCE,
        better="lower",
        panel="columns of $U_k$: distance from orthonormal",
        meaning="0 when the columns of every U_k have length 1 and right angles, as is derived.",
    ),
    Measure(
        name="orthogonality_error",
        title="Subspace bases: distance from orthogonal",
        points=WEIGHTS,
        scale=DISTANCE,
        better="lower",
        panel="columns of $U_k$: distance from orthogonal",
        meaning="The same with their lengths evened out: angles only.",
    ),
    Measure(
        name="tied_cosine",
        title="Likeness of the output map W to U transposed",
        points=WEIGHTS,
        scale=COSINE,
        better="higher",
        panel="cosine of $W$ and $U^T$",
        meaning="The derivation has them equal (1); the model may learn them apart, and 0 says it"
        " did.",
    ),
    Measure(
        name="tied_distance",
        title="Distance of W from U transposed",
        points=WEIGHTS,
        scale=PART,
        better="lower",
        meaning="0 when they are equal up to a factor.",
    ),
    Measure(
        name="subspace_overlap",
        title="Overlap of the subspaces",
        points=WEIGHTS,
        scale=INDEX,
        better="lower",
        panel="overlap between subspaces",
        meaning="Mean squared cosine between subspaces: 0 when they are at right angles, as the"
        " theory wants; compare with the value of random subspaces.",
    ),
    Measure(
        name="subspace_overlap_random",
        title="Overlap of random subspaces",
        points=WEIGHTS,
        scale=INDEX,
        meaning="What subspaces drawn at random have on average: the mark to be below.",
    ),
    Measure(
        name="subspace_largest_cosine",
        title="Largest cosine between subspaces",
        points=WEIGHTS,
        scale=ABS_COSINE,
        better="lower",
        panel="largest cosine between subspaces",
        meaning="1 when two subspaces share a direction.",
    ),
    Measure(
        name="dictionary_coherence",
        title="Coherence of the dictionary",
        points=WEIGHTS,
        scale=ABS_COSINE,
        better="lower",
        panel="coherence of $D$",
        meaning="Largest cosine between two columns of D: 0 is a dictionary of right angles, which"
        " one of more columns than rows cannot have, 1 has a duplicate.",
    ),
    Measure(
        name="dictionary_coherence_rms",
        title="Coherence, root mean square",
        points=WEIGHTS,
        scale=ABS_COSINE,
        better="lower",
        meaning="The same over all pairs.",
    ),
    Measure(
        name="atom_length",
        title="Length of the dictionary's columns",
        points=WEIGHTS,
        scale=LENGTH,
        meaning="Mean length; 1 is a unit dictionary.",
    ),
    Measure(
        name="atom_length_std",
        title="Spread of these lengths",
        points=WEIGHTS,
        scale=LENGTH,
        meaning="0 when all columns are equally long.",
    ),
    Measure(
        name="ista_step_bound",
        title="Size of the ISTA step",
        points=WEIGHTS,
        scale=FACTOR,
        panel=r"$\eta\,|D|^2$",
        meaning="Up to 2 a step from non-negative codes cannot raise its objective; above, it may.",
    ),
    Measure(
        name="mirror_dictionary_cosine",
        title="Likeness of the decoder's dictionary to the mirrored one",
        points=DECODER_WEIGHTS,
        scale=COSINE,
        better="higher",
        panel="cosine of $A$ and mirrored $D$",
        meaning="1 when a decoder layer uses the dictionary of the encoder layer it mirrors.",
    ),
    Measure(
        name="return_cosine",
        title="Likeness of the returning matrix to the dictionary",
        points=WEIGHTS,
        scale=COSINE,
        better="higher",
        meaning="Of decoupled sparse steps: 1 when codes return to tokens by the dictionary they"
        " are codes in, as the derivation has it; 0 when D1 has nothing to do with D.",
    ),
    Measure(
        name="membership_entropy",
        title="Entropy of the memberships in heads",
        points=COMPRESSION,
        scale=INDEX,
        better="lower",
        meaning="Of attention tssa, whose tokens belong to heads and attend to none: 1 when a token"
        " belongs to all heads alike, 0 when it belongs to one, as the derivation has it.",
    ),
)

MEASURES: Mapping[str, Measure] = {measure.name: measure for measure in _MEASURES}
"""The measures by name, the most telling first."""


def measure_of(name: str) -> Measure:
    """The measure of that name; one that says nothing more for a name that is not ours."""
    unknown = Measure(name=name, title=name.replace("_", " "), meaning="", points={}, scale=Scale())
    return MEASURES.get(name, unknown)


def place_order(row: Measurement) -> tuple[bool, int, int, str]:
    """The key by which rows stand in the order in which tokens pass them, the encoder first."""
    known = row.point in POINTS
    return (
        row.side != "encoder",
        row.layer,
        POINTS.index(row.point) if known else len(POINTS),
        row.point,
    )

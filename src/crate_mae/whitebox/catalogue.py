"""What each white-box measure is, and where in a layer it is taken: told once."""

MEASURES: dict[str, tuple[str, str]] = {
    "subspace_coding_rate": (
        "Rate within the subspaces, R^c",
        "Nats it takes to code the tokens inside the layer's own subspaces. The first half step of"
        " an encoder layer (compress) is derived to make it smaller: falling from input to compress"
        " is what the theory promises. Attention that averages tokens lowers it, too: a fall counts"
        " only where it is deeper than the random twin's.",
    ),
    "zero_fraction": (
        "Zeros after ISTA",
        "Share of the numbers in the codes that are exactly zero after the second half step"
        " (sparsify). Sparser is what the step is for; but random weights give zeros too, so only"
        " the distance to the random twin says that training did it.",
    ),
    "lasso_fall": (
        "Fall of the LASSO objective",
        "Share by which the ISTA step lowers the objective it is derived from. Above 0 the step"
        " does its work; below 0 it made the objective larger.",
    ),
    "mssa_shift_gradient_cosine": (
        "Agreement of the compression step with its gradient",
        "Cosine between MSSA(x) - x and the direction in which R^c falls fastest. 1: the step goes"
        " straight downhill; 0: it has nothing to do with it; below 0: uphill. It must beat mere"
        " shrinking, in the next table, to mean anything.",
    ),
    "shrink_gradient_cosine": (
        "What mere shrinking reaches",
        "The same cosine for scaling all tokens down: the mark that the step should beat.",
    ),
    "coding_rate": (
        "Rate of all tokens, R",
        "Nats it takes to code all tokens together. Larger means more varied tokens; the model is"
        " to keep this large while R^c becomes small.",
    ),
    "rate_difference": (
        "R - R^c",
        "The objective without its sparsity term, to be made large. R^c adds up tokens that were"
        " scaled to length 1 in every subspace, so the two are not on one scale: read its"
        " change, not its sign.",
    ),
    "effective_rank": (
        "Effective rank in a subspace",
        "How many directions of a subspace the tokens use, mean over subspaces. Small means strong"
        " compression; 1 would be a collapse.",
    ),
    "mssa_gradient_cosine": (
        "Agreement of MSSA(x) itself with the gradient",
        "Cosine between MSSA(x), which the layer adds to its tokens, and the direction in which R^c"
        " falls fastest. Near 0: what the layer adds is no step of the derivation.",
    ),
    "mssa_gradient_ratio": (
        "Length of the step",
        "Length of MSSA(x) divided by that of the gradient: how large a step the layer takes.",
    ),
    "nonzero_fraction": ("Not zero after ISTA", "One minus the share of zeros."),
    "small_fraction": (
        "Nearly zero after ISTA",
        "Share of numbers up to one per cent of their token's largest; unlike exact zeros it does"
        " not depend on where a ReLU cuts.",
    ),
    "hoyer_sparsity": (
        "Hoyer's sparsity",
        "0 when all entries of a code are equally large, 1 when a single one is not zero.",
    ),
    "gini_sparsity": (
        "Gini index of the codes",
        "0 when all entries of a code are equally large, close to 1 when very few carry all.",
    ),
    "lasso_start": ("LASSO objective before ISTA", "The value at the point where ISTA starts."),
    "lasso_start_nonnegative": (
        "LASSO objective before ISTA, without negative entries",
        "The value at the nearest codes that are allowed: a fairer start to compare the end with.",
    ),
    "lasso_end": ("LASSO objective after ISTA", "Lower than at the start is better."),
    "ista_residual": (
        "What the dictionary misses",
        "Length of token minus its coded version, as a share of the token: 0 is a perfect code,"
        " about 1 says that the codes do not rebuild the token.",
    ),
    "atoms_used": (
        "Dictionary columns in use",
        "How many columns are used by at least one token; unused ones are wasted.",
    ),
    "mirror_error": (
        "Distance from the mirrored encoder layer",
        "How far a decoder layer's tokens are from those its mirrored encoder layer started with,"
        " as a share: 0 would be a perfect inverse.",
    ),
    "mirror_error_scaled": (
        "The same after the best rescaling",
        "Distance from the mirrored tokens when one factor may be chosen freely.",
    ),
    "mirror_cka": (
        "Likeness to the mirrored encoder tokens (CKA)",
        "1: the same up to rotation and scale; 0: unrelated. Decoder layers are meant to undo"
        " encoder layers, so higher fits the theory better.",
    ),
    "class_rate_reduction": (
        "Rate reduction between classes",
        "How much the classes spread apart, in nats; labels are used for measuring only. With few"
        " images any grouping looks compact, so only what is above the next table counts.",
    ),
    "class_rate_reduction_dealt": (
        "The same with labels dealt out at random",
        "The control: what groups reach that mean nothing.",
    ),
    "rate_of_all_classes": ("Rate of all classes together", "First part of the rate reduction."),
    "rate_within_classes": ("Rate within the classes", "Second part of the rate reduction."),
    "orthonormality_error": (
        "Subspace bases: distance from orthonormal",
        "0 when the columns of every U_k have length 1 and right angles, as is derived.",
    ),
    "orthogonality_error": (
        "Subspace bases: distance from orthogonal",
        "The same with their lengths evened out: angles only.",
    ),
    "tied_cosine": (
        "Likeness of the output map W to U transposed",
        "The derivation has them equal (1); the model may learn them apart, and 0 says it did.",
    ),
    "tied_distance": ("Distance of W from U transposed", "0 when they are equal up to a factor."),
    "subspace_overlap": (
        "Overlap of the subspaces",
        "Mean squared cosine between subspaces: 0 when they are at right angles, as the theory"
        " wants; compare with the value of random subspaces.",
    ),
    "subspace_overlap_random": (
        "Overlap of random subspaces",
        "What subspaces drawn at random have on average: the mark to be below.",
    ),
    "subspace_largest_cosine": (
        "Largest cosine between subspaces",
        "1 when two subspaces share a direction.",
    ),
    "dictionary_coherence": (
        "Coherence of the dictionary",
        "Largest cosine between two columns of D: 0 is a dictionary of right angles, which one of"
        " more columns than rows cannot have, 1 has a duplicate.",
    ),
    "dictionary_coherence_rms": ("Coherence, root mean square", "The same over all pairs."),
    "atom_length": ("Length of the dictionary's columns", "Mean length; 1 is a unit dictionary."),
    "atom_length_std": ("Spread of these lengths", "0 when all columns are equally long."),
    "ista_step_bound": (
        "Size of the ISTA step",
        "Up to 2 a step from non-negative codes cannot raise its objective; above, it may.",
    ),
    "mirror_dictionary_cosine": (
        "Likeness of the decoder's dictionary to the mirrored one",
        "1 when a decoder layer uses the dictionary of the encoder layer it mirrors.",
    ),
}
"""Title and explanation of the measures of a layer analysis, the most telling first."""


POINTS = {"input": 0, "expand": 1, "compress": 1, "decompress": 2, "sparsify": 2, "features": 3}
"""The order of the points in a layer."""

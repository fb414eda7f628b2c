"""The geometry of every layer's weights as rows of the table, beside the subspace overlaps."""

from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.crate_encoder import CrateEncoder
from crate_mae.models.ista import SparseStep
from crate_mae.models.mssa import Attention
from crate_mae.whitebox import geometry
from crate_mae.whitebox.table import Measurement

Overlaps = dict[str, list[list[list[float]]]]


def weight_measurements(
    model: CrateMAE | CrateEncoder, *, name: str, precision: str
) -> tuple[list[Measurement], Overlaps]:
    """Rows at the point "weights" of every layer, and the K x K subspace overlaps by side."""
    rows: list[Measurement] = []
    overlaps: Overlaps = {}
    for side, layers in model.stacks.items():
        overlaps[side] = []
        for index, layer in enumerate(layers):
            found = _of_mssa(layer.mssa)
            if layer.sparse_step is not None:
                found |= _of_dictionary(layer.sparse_step)
            elif side == "decoder" and layer.sparsifies and model.config.depth == len(layers):
                # Rows of D and A are dimensions of tokens, and so are their columns: an order that
                # both share. Atoms of an overcomplete dictionary have none.
                mirror = model.config.depth - 1 - index
                D = model.stacks["encoder"][mirror].dictionary.detach()
                found["mirror_dictionary_cosine"] = (
                    geometry.matrix_cosine(layer.dictionary.detach(), D),
                    f"A and D of encoder layer {mirror}",
                )
            rows += [
                Measurement(
                    model=name,
                    side=side,
                    layer=index,
                    point="weights",
                    measure=measure,
                    mean=value,
                    images=0,
                    tensor=words,
                    precision=precision,
                )
                for measure, (value, words) in found.items()
            ]
            bases = geometry.subspace_bases(layer.mssa)
            overlaps[side].append(geometry.subspace_overlap(bases).tolist())
    return rows, overlaps


def _of_mssa(mssa: Attention) -> dict[str, tuple[float, str]]:
    U = geometry.subspace_bases(mssa)
    cosine, distance = geometry.tied_distance(mssa)
    found = {
        "orthonormality_error": (
            float(geometry.orthonormality_error(U).mean()),
            "|U_k^T U_k - I|_F / sqrt(p), mean over k",
        ),
        "orthogonality_error": (
            float(geometry.orthogonality_error(U).mean()),
            "the same with each U_k scaled to columns of mean squared length 1",
        ),
        "tied_cosine": (cosine, "W and U^T (bias left out)"),
        "tied_distance": (distance, "|W - c U^T|_F / |W|_F with the best c"),
    }
    if len(U) > 1:
        cosines = geometry.principal_cosines(U)
        others = ~cosines.new_ones(len(U), len(U)).triu().bool()  # each pair once
        largest, overlap = cosines[..., 0][others], cosines.square().mean(dim=-1)[others]
        found |= {
            "subspace_largest_cosine": (
                float(largest.max()),
                "cosine of the smallest principal angle, largest over pairs of U_k",
            ),
            "subspace_overlap": (
                float(overlap.mean()),
                "mean squared cosine of principal angles, mean over pairs of U_k",
            ),
            "subspace_overlap_random": (
                U.shape[-1] / U.shape[-2],
                "what the overlap is on average for random subspaces, p / d",
            ),
        }
    return found


def _of_dictionary(ista: SparseStep) -> dict[str, tuple[float, str]]:
    D = ista.dictionary.detach()
    largest, typical = geometry.coherence(D)
    lengths = D.double().norm(dim=0)
    back = ista.returning
    returned = (
        {}
        if back is None
        else {
            "return_cosine": (
                geometry.matrix_cosine(D, back.detach()),
                "D and D1, by which codes return to tokens",
            )
        }
    )
    return returned | {
        "dictionary_coherence": (largest, "largest |cosine| between two columns of D"),
        "dictionary_coherence_rms": (typical, "root mean square |cosine| between columns of D"),
        "atom_length": (float(lengths.mean()), "length of the columns of D, mean"),
        "atom_length_std": (float(lengths.std(unbiased=False)), "length of the columns of D, std"),
        "ista_step_bound": (
            ista.step_size * geometry.spectral_norm(D) ** 2,
            "eta |D|_2^2: up to 2 an ISTA step cannot raise its objective from z >= 0",
        ),
    }

"""The sizes of the other white-box families, as values of a `ModelConfig`.

Sources of every number stand in docs/family.md.
"""

from typing import Any

_WIDTHS = {
    "tiny": (384, 12, 6, 16), "small": (576, 12, 12, 16), "base": (768, 12, 12, 16),
    "large": (1024, 24, 16, 16),
}  # fmt: skip
"""Width, layers, heads and patch by size; so the next two."""
_ALPHA_WIDTHS = {
    "tiny": (192, 12, 3, 16), "small": (576, 12, 12, 16), "base": (768, 12, 12, 16),
    "base-p32": (768, 12, 12, 32), "base-p8": (768, 12, 12, 8), "large": (1024, 24, 16, 14),
    "large-p32": (1024, 24, 16, 32), "large-p8": (1024, 24, 16, 8), "huge": (1280, 32, 16, 14),
}  # fmt: skip
_TOST_WIDTHS = {
    "tiny": (192, 12, 4, 16), "small": (384, 12, 8, 16), "medium": (512, 24, 8, 16),
    "large": (768, 24, 16, 16),
}  # fmt: skip

_CRATE = {
    "embedding": "norm-linear-norm", "positions": "learned", "sparsity": 0.1,
    "final_norm_eps": 1e-5, "initial_values": "crate", "head_norm": "pooled",
}  # fmt: skip
_ALPHA = {
    "positions": "learned", "sparsity": 0.1, "layer_norm_eps": 1e-6, "overcomplete": 4,
    "sparse_step": "decoupled", "output_projection": "free-no-bias",
    "initial_values": "crate-alpha", "head_norm": "pooled",
}  # fmt: skip
_TOST = {
    "attention": "tssa", "subspace_bias": True, "layer_norm_eps": 1e-6, "sparsity": 0.1,
    "initial_values": "tost", "head_norm": "pooled",
}  # fmt: skip
_AOT = {"sparse_step": "none", "initial_values": "crate", "head_norm": "pooled"}


def family_presets() -> dict[str, dict[str, Any]]:
    """The fields of every preset of the other families, by name.

    Only the masked autoencoder has a decoder: theirs is as deep as the encoder, with as many heads.
    """
    found = {}
    for family, facts, rows in (
        ("crate", _CRATE, _WIDTHS),
        ("crate-alpha", _ALPHA, _ALPHA_WIDTHS),
        ("tost", _TOST, _TOST_WIDTHS),
        ("aot", _AOT, _WIDTHS),
    ):
        for size, (dim, depth, heads, patch) in rows.items():
            sizes = {"dim": dim, "depth": depth, "num_heads": heads, "patch_size": patch}
            sides = {"decoder_depth": depth, "decoder_num_heads": heads}
            found[f"{family}-{size}"] = {**sizes, **sides, **facts}
    return found

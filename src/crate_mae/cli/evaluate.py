"""Verbs that measure frozen features: probe, knn."""

from typing import TYPE_CHECKING

from crate_mae.cli.common import (
    add_device,
    counter_for,
    device_of,
    new_file,
    verb_parser,
    write_json,
)

if TYPE_CHECKING:
    from crate_mae.evaluation.compare import Method


def probe(words: list[str]) -> int:
    """The exit status of `crate-mae probe`."""
    return _compare("probe", "Linear probe on frozen features, beside baselines.", words)


def knn(words: list[str]) -> int:
    """The exit status of `crate-mae knn`."""
    return _compare("knn", "k-nearest neighbours on frozen features, beside baselines.", words)


def _compare(method: "Method", summary: str, words: list[str]) -> int:
    parser = verb_parser(method, summary)
    parser.add_argument("weights", help="weights folder, run folder or Hub repository")
    parser.add_argument("address", help="labelled images, such as parquet:PATH")
    parser.add_argument("--train-split", help="split to learn from (the source's training split)")
    parser.add_argument("--test-address", help="labelled test images (the same address)")
    parser.add_argument("--test-split", default=None, help="split to test on (test)")
    parser.add_argument("--limit", type=int, help="use this many training images")
    parser.add_argument("--test-limit", type=int, help="use this many test images")
    parser.add_argument("--pool", default="mean", choices=["cls", "mean"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-baselines", action="store_true", help="the model alone")
    parser.add_argument("--json", metavar="FILE", help="also write the results as JSON (new file)")
    add_device(parser)
    given = parser.parse_args(words)

    from crate_mae.evaluation.compare import compare, comparison_table, open_pair
    from crate_mae.models.weights import load_model, weights_hash

    target = new_file(given.json)
    model = load_model(given.weights).to(device_of(given.device))
    train, test = open_pair(
        given.address,
        train_split=given.train_split,
        test_address=given.test_address,
        test_split=given.test_split,
        limit=given.limit,
        test_limit=given.test_limit,
        seed=given.seed,
    )
    rows = compare(
        model,
        train,
        test,
        methods=(method,),
        pool=given.pool,
        seed=given.seed,
        baselines=not given.no_baselines,
        progress=counter_for,
    )
    print(comparison_table(rows))
    facts = {
        "weights": str(given.weights),
        "sha256": weights_hash(given.weights),
        "rows": [row.to_dict() for row in rows],
    }
    write_json(target, facts)
    return 0

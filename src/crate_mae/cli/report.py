"""The verb that tells a whole run: report."""

from crate_mae.cli.common import add_device, counter_for, device_of, verb_parser


def report(words: list[str]) -> int:
    """The exit status of `crate-mae report`."""
    parser = verb_parser("report", "One HTML file that tells a whole run, complete in itself.")
    parser.add_argument("run", help="folder of a run")
    parser.add_argument("--out", metavar="FILE", help="the page (RUN/report.html)")
    parser.add_argument(
        "--no-measure", action="store_true", help="only gather what has been measured already"
    )
    parser.add_argument(
        "--limit", type=int, help="measure with at most this many training images (50000)"
    )
    parser.add_argument(
        "--test-limit", type=int, help="measure with at most this many test images (10000)"
    )
    add_device(parser)
    given = parser.parse_args(words)

    from crate_mae.report.page import write_report

    made = write_report(
        given.run,
        given.out,
        measure=not given.no_measure,
        limit=given.limit,
        test_limit=given.test_limit,
        device=device_of(given.device),
        progress=counter_for,
    )
    for sentence in made.left_out:
        print(sentence)
    print(f"wrote {made.path} ({made.path.stat().st_size / 1e6:.1f} MB)")
    return 0

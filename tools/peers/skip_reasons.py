"""A plugin of pytest: the reasons why tests were skipped, each with how often it was given."""

from collections import Counter


def pytest_terminal_summary(terminalreporter):
    """Print them, the most frequent first."""
    reports = terminalreporter.stats.get("skipped", ())
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ")
        for report in reports
        if isinstance(report.longrepr, tuple)
    )
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"skipped {count:>3}: {reason}")

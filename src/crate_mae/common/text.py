"""Times, sizes and counts as people read them."""


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, such as 1h02m, 3m20s or 7s."""
    whole = round(max(0.0, seconds))
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{left:02d}s" if minutes else f"{left}s"


def time_text(seconds: float) -> str:
    """Seconds with three digits, in ms below one second: 12.3 s, 1.23 ms."""
    return f"{seconds * 1e3:.3g} ms" if seconds < 0.9995 else f"{seconds:.3g} s"


def bytes_text(count: float | None) -> str:
    """Bytes with three digits or more, in GiB, MiB or KiB: 2.35 GiB; "-" for None."""
    if count is None:
        return "-"
    for unit, step in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= step:
            value = count / step
            return f"{value:.3g} {unit}" if value < 999.5 else f"{value:,.0f} {unit}"
    return f"{count / 1024:.3g} KiB" if count < 1023.5 * 1024 else "1 MiB"


def count_text(count: int) -> str:
    """A count of parameters with two decimals in millions, or one in thousands: 1.65 M, 170.2 k."""
    return f"{count / 1e6:.2f} M" if count >= 1e6 else f"{count / 1e3:.1f} k"


def printable(text: str) -> str:
    """The text with whatever could steer a terminal, or cannot be written at all, escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)

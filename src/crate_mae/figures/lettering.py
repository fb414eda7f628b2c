"""Names in any script and of any bytes: what cannot be drawn is escaped, fonts are looked for."""

import logging
from functools import lru_cache

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

from crate_mae.common.escaping import printable

logger = logging.getLogger(__name__)

WIDE_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK TC", "Noto Sans CJK KR",
    "Noto Sans SC", "Noto Sans JP", "Noto Sans KR", "Source Han Sans SC", "Source Han Sans",
    "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback", "IPAGothic", "TakaoGothic",
    "NanumGothic", "UnDotum", "Microsoft YaHei", "SimHei", "MS Gothic", "Yu Gothic",
    "Malgun Gothic", "PingFang SC", "Hiragino Sans", "Heiti TC", "Arial Unicode MS",
    "Noto Sans Arabic", "Noto Sans Devanagari", "Noto Sans Thai", "Noto Sans Bengali",
    "Noto Sans Tamil", "Noto Sans Symbols2", "Lohit Devanagari", "FreeSans", "Unifont",
)  # fmt: skip
"""Fonts with letters that the usual one lacks, the first that is installed and has them is used."""


def make_legible(figure: Figure) -> None:
    """Give every text of a figure fonts that have its letters.

    Control characters and bytes that are no text are escaped. Letters that no font here has are
    drawn as boxes; the log names them, and what to install, once for a figure.
    """
    lost: set[str] = set()
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        shown = text.get_text()
        escaped = printable(shown, keep="\n")
        if escaped != shown:
            text.set_text(escaped)
        if escaped.isascii():
            continue
        own = list(text.get_fontfamily())
        missing = _missing(escaped, text.get_fontname())
        fonts = []
        for name in WIDE_FONTS if missing else ():
            if missing and (found := missing - _missing("".join(missing), name)):
                fonts.append(name)
                missing -= found
        if fonts:
            text.set_fontfamily([*own, *fonts])
        lost |= missing
    if lost:
        letters = " ".join(sorted(lost)[:10])
        logger.warning(
            "no font here has %s: drawn as boxes; install one that has, such as Noto Sans CJK"
            " (fonts-noto-cjk)", letters,
        )  # fmt: skip


def _missing(text: str, family: str) -> set[str]:
    """The letters of a text that no installed font of that name has."""
    font = _font(family)
    if font is None:
        return set(text)
    return {letter for letter in text if letter != "\n" and not font.get_char_index(ord(letter))}


@lru_cache(maxsize=64)
def _font(family: str) -> FT2Font | None:
    names = {entry.name for entry in font_manager.fontManager.ttflist}
    if family not in names:
        return None
    return font_manager.get_font(font_manager.findfont(family, fallback_to_default=False))

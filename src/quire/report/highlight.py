"""Python source as HTML lines, with keywords, comments, strings and numbers marked."""

from __future__ import annotations

import io
import keyword
import tokenize

from markupsafe import Markup, escape

CLASSES = {tokenize.COMMENT: "c", tokenize.STRING: "s", tokenize.NUMBER: "n"}
for _part in ("FSTRING_START", "FSTRING_MIDDLE", "FSTRING_END"):
    if hasattr(tokenize, _part):  # Python 3.12 and later cut f-strings into pieces
        CLASSES[getattr(tokenize, _part)] = "s"


def highlight(source: str) -> list[Markup]:
    """One piece of markup a line. Text that is not Python comes back plain."""
    lines = source.splitlines()
    spans: list[list[tuple[int, int, str]]] = [[] for _ in lines]
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            kind = CLASSES.get(token.type, "")
            if token.type == tokenize.NAME and keyword.iskeyword(token.string):
                kind = "k"
            if kind:
                _mark(spans, token.start, token.end, kind)
    except (tokenize.TokenError, SyntaxError):
        spans = [[] for _ in lines]
    return [_line(text, marks) for text, marks in zip(lines, spans, strict=True)]


def _mark(
    spans: list[list[tuple[int, int, str]]], start: tuple[int, int], end: tuple[int, int], kind: str
) -> None:
    """A token may run over several lines; each gets its stretch."""
    for row in range(start[0], end[0] + 1):
        first = start[1] if row == start[0] else 0
        last = end[1] if row == end[0] else 1 << 30
        if row <= len(spans):
            spans[row - 1].append((first, last, kind))


def _line(text: str, marks: list[tuple[int, int, str]]) -> Markup:
    out, at = Markup(""), 0
    for first, last, kind in marks:
        out += escape(text[at:first]) + Markup('<i class="{}">{}</i>').format(
            kind, text[first:last]
        )
        at = min(last, len(text))
    return out + escape(text[at:])

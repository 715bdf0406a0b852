"""A page of HTML that stands alone: styles, drawings and pictures are inside it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any, NewType

# What may stand in the page as it is; every other text is escaped on its way in.
Html = NewType("Html", str)


class Page:
    """Sections under one title, with a list of them on top where there are several.

    Args:
        title: of the page and of the browser's tab.
        lead: what the page is, in a sentence.
    """

    def __init__(self, title: str, lead: str) -> None:
        self.title, self.lead = title, lead
        self._sections: list[tuple[str, str, Sequence[Html]]] = []

    def section(self, title: str, parts: Sequence[Html]) -> None:
        """Adds a section; one without parts is left out."""
        if parts:
            self._sections.append((self._anchor(title), title, parts))

    def _anchor(self, title: str) -> str:
        base = re.sub(r"\W+", "-", title.lower()).strip("-") or "section"
        taken = {anchor for anchor, *_ in self._sections}
        number, anchor = 2, base
        while anchor in taken or anchor == "top":
            anchor, number = f"{base}-{number}", number + 1
        return anchor

    def html(self) -> str:
        """The whole document."""
        links = "".join(
            f'<li><a href="#{anchor}">{escape(title)}</a></li>'
            for anchor, title, _ in self._sections
        )
        contents = f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n'
        body = "\n".join(
            f'<section aria-labelledby="{anchor}">\n<h2 id="{anchor}">{escape(title)}</h2>\n'
            + "\n".join(parts)
            + "\n</section>"
            for anchor, title, parts in self._sections
        )
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            # Nothing may be fetched, whatever a name in the data holds.
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
            "img-src data:; style-src 'unsafe-inline'\">\n"
            '<meta name="color-scheme" content="light dark">\n'
            f"<title>{escape(self.title)}</title>\n<style>\n{_style()}</style>\n</head>\n<body>\n"
            f'<a class="skip" href="#main">Skip to the content</a>\n<header>\n'
            f'<h1 id="top">{escape(self.title)}</h1>\n<p class="lead">{escape(self.lead)}</p>\n'
            f"{contents if len(self._sections) > 2 else ''}</header>\n"
            f'<main id="main">\n{body}\n</main>\n</body>\n</html>\n'
        )


def _style() -> str:
    return files(__package__).joinpath("style.css").read_text(encoding="utf-8")


def paragraph(text: str) -> Html:
    """A paragraph of plain text."""
    return Html(f"<p>{escape(text)}</p>")


def verdict(text: str, holds: bool | None) -> Html:
    """A claim's outcome: it holds, it does not, or (None) holds in part."""
    word, kind = {
        True: ("Holds", "yes"),
        False: ("Does not hold here", "no"),
        None: ("Holds in part", "open"),
    }[holds]
    return Html(f'<p class="verdict {kind}"><strong>{word}.</strong> {escape(text)}</p>')


def figure(picture: Html, caption: str, *, wide: bool = False) -> Html:
    """A picture above its caption; a wide one takes the whole width."""
    kind = ' class="wide"' if wide else ""
    return Html(f"<figure{kind}>{picture}<figcaption>{escape(caption)}</figcaption></figure>")


def grid(figures: Iterable[Html]) -> Html:
    """Figures side by side, as many as the screen has room for."""
    return Html('<div class="grid">' + "\n".join(figures) + "</div>")


def strips(rows: Iterable[tuple[str, Html]]) -> Html:
    """Wide pictures one under the other, each with a label at its side."""
    items = "".join(f"<li><span>{escape(label)}</span>{picture}</li>" for label, picture in rows)
    return Html(f'<ol class="strips">{items}</ol>')


def table(head: Sequence[str], rows: Sequence[Sequence[object]], caption: str) -> Html:
    """A table whose first column names the rows; the others are aligned as numbers."""
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{escape(str(row[0]))}</th>'
        + "".join(f"<td>{escape(show(value))}</td>" for value in row[1:])
        + "</tr>"
        for row in rows
    )
    # A table wider than a phone scrolls in its own box, by keyboard too.
    return Html(
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{top}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def details(title: str, parts: Iterable[Html], *, open: bool = False) -> Html:
    """Parts that unfold where asked for."""
    state = " open" if open else ""
    return Html(
        f"<details{state}><summary>{escape(title)}</summary>\n" + "\n".join(parts) + "</details>"
    )


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, object]]:
    """The leaves of a nested mapping, each by its path in words."""
    rows: list[tuple[str, object]] = []
    for name, value in values.items():
        path = f"{prefix}{str(name).replace('_', ' ')}"
        if isinstance(value, Mapping):
            rows += flat(value, f"{path}: ")
        else:
            rows.append((path, value))
    return rows


def show(value: object) -> str:
    """A number to four digits, and anything else as it is written."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 or value != value else f"{value:.6g}"
    if value is None:
        return "–"
    if isinstance(value, (list, tuple)):
        if len(value) > 8:
            return f"{len(value)} values"
        return (", " if any(isinstance(v, str) for v in value) else " × ").join(map(show, value))
    return str(value)

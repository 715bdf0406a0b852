"""What a reader, a screen reader and a browser without a network ask of a page."""

from __future__ import annotations

import itertools
import re
from html.parser import HTMLParser

_VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """A page as its tags, `[(tag, attributes)]`, its text, and its faults."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.faults: list[str] = []
        self._open: list[str] = []
        self._text: list[str] = []
        self.feed(text)
        self.faults += [f"<{tag}> is not closed" for tag in self._open]
        self.text = " ".join("".join(self._text).split())
        self._check(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag):
        if not self._open or self._open.pop() != tag:
            self.faults.append(f"</{tag}> closes another")

    def handle_data(self, data):
        if not self._open or self._open[-1] not in ("style", "script"):
            self._text.append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def _check(self, text):
        ids = [a["id"] for _, a in self.tags if "id" in a]
        twice = {name for name in ids if ids.count(name) > 1}
        self.faults += [f"id {name} is there twice" for name in twice]
        for tag, attributes in self.tags:
            link = attributes.get("href") or attributes.get("xlink:href") or ""
            if link.startswith("#") and link[1:] not in ids:
                self.faults.append(f"{link} leads nowhere")
            for name in ("src", "href", "xlink:href"):
                target = attributes.get(name, "#")
                if not target.startswith(("#", "data:")):
                    self.faults.append(f"{tag} {name} leaves the page")
        # Of drawings' clips and markers.
        named = re.findall(r"url\(#([^)]*)\)", text)
        self.faults += [f"url(#{name}) leads nowhere" for name in named if name not in ids]
        self.faults += ["an image has no alt" for a in self.of("img") if not a.get("alt")]
        self.faults += [
            "a drawing has no label"
            for a in self.of("svg")
            if a.get("role") != "img" or not a.get("aria-label")
        ]
        if len(self.of("table")) != len(self.of("caption")):
            self.faults.append("a table has no caption")
        if not self.of("html") or self.of("html")[0].get("lang") != "en":
            self.faults.append("the page has no language")
        levels = [int(tag[1]) for tag, _ in self.tags if re.fullmatch(r"h\d", tag)]
        if levels[:1] != [1] or any(b > a + 1 for a, b in itertools.pairwise(levels)):
            self.faults.append(f"headings go {levels}")
        if re.search(r"@import|url\((?!#)", text) or "<script" in text:
            self.faults.append("the page loads something, or runs a script")

"""A page of a report, taken apart, and what must hold of every page."""

from __future__ import annotations

import base64
import itertools
import re
from collections import Counter
from html.parser import HTMLParser
from io import BytesIO

from PIL import Image

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Text, tags and attributes of a page, which must be well nested."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.source = text
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.elements: list[tuple[str, dict[str, str], list[dict[str, str]]]] = []
        self.words: list[str] = []
        self._around: list[dict[str, str]] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.elements.append((tag, dict(attrs), list(self._around)))
        if tag not in VOID:
            self.open.append(tag)
            self._around.append({"tag": tag} | dict(attrs))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self._around.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] not in {"style", "script"}:
            self.words.append(data)

    @property
    def text(self) -> str:
        return "\n".join(self.words)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes, _ in self.elements if name == tag]


def check_page(page: Page) -> None:
    """Assert what holds of every page: self-contained, reachable, and nothing of our errors."""
    _check_self_contained(page)
    _check_places(page)
    _check_pictures(page)
    _check_tables(page)
    words = set(re.findall(r"[\w.]+", page.text))
    assert not words & {"nan", "NaN", "inf", "None", "Traceback", "Undefined"}
    assert not re.search(r"\w+Error\b|<\w+ object at", page.text)


def _check_self_contained(page: Page) -> None:
    assert not {"script", "link", "iframe"} & set(page.tags)
    loaded = [v for n, v in page.attributes if n in {"src", "srcset", "href", "data"}]
    assert loaded
    assert all(value.startswith(("data:image/png;base64,", "#")) for value in loaded)
    assert not re.search(r"https?://", page.source)
    assert "url(" not in page.source
    assert "@import" not in page.source


def _check_places(page: Page) -> None:
    """Ids are unique, links within the page lead somewhere, headings skip no level."""
    ids = Counter(value for name, value in page.attributes if name == "id")
    assert max(ids.values()) == 1
    named = {v for n, v in page.attributes if n in {"aria-labelledby", "aria-describedby"}}
    assert {v[1:] for n, v in page.attributes if n == "href"} | named <= set(ids)
    levels = [int(tag[1]) for tag in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    first_link = page.all("a")[0]
    assert first_link == {"class": "skip", "href": "#main"}


def _check_pictures(page: Page) -> None:
    pictures = page.all("img")
    for one in pictures:
        assert len(one["alt"]) > 10
        code = one["src"].removeprefix("data:image/png;base64,")
        image = Image.open(BytesIO(base64.b64decode(code, validate=True)))
        image.load()
        shown = int(one["width"]) / int(one["height"])
        assert abs(image.width / image.height / shown - 1) < 0.02
    assert len({one["alt"] for one in pictures}) == len(pictures)


def _check_tables(page: Page) -> None:
    """Each table scrolls in a region that the keyboard reaches; rows begin with a heading."""
    for tag, attributes, around in page.elements:
        if tag == "table":
            region = around[-1]
            assert region["class"] == "wide"
            assert region["tabindex"] == "0"
            assert region["role"] == "region"
            assert region["aria-label"]
        if tag == "th":
            assert attributes["scope"] in {"col", "row", "colgroup"}
    rows = [around[-2]["tag"] for tag, _, around in page.elements if tag in {"td", "th"}]
    headings = [a for t, a, _ in page.elements if t == "th" and a["scope"] == "row"]
    assert rows.count("tbody") == 0 or headings
    style = page.source[: page.source.index("</style>")]
    assert re.search(r"th:first-child, td:first-child \{[^}]*position: sticky; left: 0", style)
    assert re.search(r"\.wide \{[^}]*overflow-x: auto", style)
    assert "prefers-color-scheme: dark" in style
    assert "@media print" in style

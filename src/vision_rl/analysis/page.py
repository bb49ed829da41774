"""A page of HTML in one file that asks nobody for anything: no scripts, no fonts, no links, pictures inside.

Captions, file names and settings come from data, models and other people. So text is escaped unless it is `Html`, which
only the functions here make, and the page's own policy forbids a browser to run or fetch anything.
"""

import base64
import io
from html import escape
from pathlib import Path

from PIL import Image


POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
VOID = ("img", "meta")  # elements without an end
WIDEST = 720  # pixels of a picture: sharp at half of that on a phone

STYLE = """
:root { --ink: #0f172a; --soft: #475569; --line: #e2e8f0; --good: #15803d; --bad: #b91c1c; --paper: #fff; }
* { box-sizing: border-box; }
body { margin: 0; background: #f1f5f9; color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1280px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: .2em 0 .3em; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.2em 0 .6em; }
h3 { font-size: 1.02rem; margin: 1.6em 0 .6em; }
p, li { max-width: 75ch; overflow-wrap: anywhere; }
.soft { color: var(--soft); }
.good { color: var(--good); } .bad { color: var(--bad); }
.verdict { font-size: 1.12rem; }
.cards, .charts, .gallery { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 235px), 1fr)); }
.charts { grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); }
.gallery { grid-template-columns: repeat(auto-fill, minmax(min(100%, 560px), 1fr)); }
.card, .charts > svg, .shown { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 14px; }
.charts > svg { width: 100%; height: auto; padding: 8px; display: block; }
.card b { display: block; font-size: 1.4rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.bar { display: flex; height: 10px; border-radius: 5px; overflow: hidden; margin: 8px 0 6px; background: var(--line); }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 10px; margin-top: 8px; }
.pair figure, .sheet { margin: 0; min-width: 0; }
.single { grid-template-columns: 1fr; }
figcaption { font-size: .85rem; color: var(--soft); }
img { display: block; width: 100%; height: auto; border-radius: 4px; }
@media (hover: hover) { .pair img { transition: transform .15s; } .pair img:hover { transform: scale(1.7); position: relative; z-index: 1; } }
.scroll { overflow-x: auto; background: var(--paper); border: 1px solid var(--line); border-radius: 10px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 12px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 9ch; }
td.text { text-align: left; white-space: normal; overflow-wrap: anywhere; }
tr:last-child td { border-bottom: 0; }
th { font-size: .85rem; color: var(--soft); font-weight: 600; }
pre { background: #0f172a; color: #e2e8f0; padding: 12px 14px; border-radius: 10px; white-space: pre-wrap; overflow-wrap: anywhere; }
details { margin: .8em 0; } summary { cursor: pointer; font-weight: 600; padding: 4px 0; }
@media (max-width: 560px) { .pair { grid-template-columns: 1fr; } h1 { font-size: 1.35rem; } th, td { padding: 6px 8px; } }
@media print { body { background: #fff; } .shown, .charts > svg, .card { break-inside: avoid; } }
""".strip()


class Html(str):
    """Markup that stands in a page as it is; any other string is text, and escaped."""


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """An element; an attribute `class_` is written `class`, one that is None is left out."""
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Html(f"<{name}{said}>")
    return Html(f"<{name}{said}>{joined(*children)}</{name}>")


def joined(*children: object) -> Html:
    return Html("".join(child if isinstance(child, Html) else escape(str(child)) for child in children))


def table(head: list[object], rows: list[list[object]]) -> Html:
    """Numbers to the right; a row's first cell, and one that is a `td` already, as they are."""
    cells = [
        tag("tr", *(one if isinstance(one, Html) and one.startswith("<td") else tag("td", one) for one in row))
        for row in rows
    ]
    inner = tag("table", tag("thead", tag("tr", *(tag("th", one) for one in head))), tag("tbody", *cells))
    return tag("div", inner, class_="scroll")


def facts(pairs: dict[str, object]) -> Html:
    """Names and values below each other."""
    rows = [tag("tr", tag("td", name), tag("td", value, class_="text")) for name, value in pairs.items()]
    return tag("div", tag("table", tag("tbody", *rows)), class_="scroll")


def picture(image: Image.Image, text: str, widest: int = WIDEST) -> Html:
    """The picture itself, no wider than `widest`, in the shorter of PNG and JPEG; `text` is for who cannot see it."""
    image = image.convert("RGB")
    if image.width > widest:
        size = (widest, max(1, round(image.height * widest / image.width)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    coded = {}
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 88})):
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        coded[kind] = buffer.getvalue()
    kind = min(
        coded, key=lambda each: len(coded[each]) * (1.0 if each == "png" else 1.5)
    )  # sharp where it costs little
    source = f"data:image/{kind};base64,{base64.b64encode(coded[kind]).decode()}"
    return tag("img", src=source, alt=text, width=image.width, height=image.height)


def page(title: str, *sections: Html) -> str:
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        Html(f"<style>\n{STYLE}\n</style>"),
    )
    return f'<!doctype html>\n<html lang="en">\n{head}\n{tag("body", tag("main", *sections))}\n</html>\n'


def write_page(path: Path, content: str) -> None:
    """The file is whole or as it was before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.part")
    aside.write_text(content, encoding="utf-8", errors="replace")  # half of a surrogate pair is no text
    aside.replace(path)

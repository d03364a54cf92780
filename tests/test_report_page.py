"""A report opened in a browser: quiet, alone, readable on a phone, in the dark and on paper."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import CHROMIUM, Browser, Page, browser
from tests.planted import ATTACKS, WHOLE, looking, planted_run
from tests.run_builder import CROWD, PRETENDS, Run, sampled

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium executable is installed")

_RATIO = """(() => {
  const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = rgb => rgb.map(v => linear(v / 255))
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const parse = text => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const behind = el => {
    for (; el; el = el.parentElement) {
      const colour = getComputedStyle(el).backgroundColor;
      if (!colour.endsWith(', 0)')) return parse(colour);
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll(SELECTOR)].map(el => {
    const style = getComputedStyle(el), back = light(behind(el));
    const front = light(parse(el instanceof SVGElement ? style.fill : style.color));
    return (Math.max(front, back) + .05) / (Math.min(front, back) + .05);
  });
})()"""
_TOLD = """[...document.querySelectorAll('figure.chart')].map(chart => {
  const svg = chart.querySelector(':scope > svg'), box = svg.getBoundingClientRect();
  const [title, summary] = svg.getAttribute('aria-labelledby').split(' ')
    .map(id => document.getElementById(id).textContent);
  const rows = chart.querySelectorAll('details tbody tr').length;
  return [title, summary, rows, box.width, box.height];
})"""
# (attention shades its words: tests/attention_view)
_TAGS = ("p", "li", "td", "th", "dt", "dd", "summary", "figcaption", "h1", "h2", "h3", ".alarm")
_TEXTS = ", ".join(f"{tag}:not(.heat *)" for tag in (*_TAGS, ".said", ".keys"))


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def plain(chromium: Browser, folder: Path) -> Page:
    """A hypothetical run with attention: it has every part that a page can have."""
    pretended = sampled(hypothetical=PRETENDS)
    run = Run(folder / "plain", pretended, devices=CROWD, report=looking).write()
    return chromium.open(run / "report.html")


@pytest.fixture(scope="module")
def planted(chromium: Browser, folder: Path) -> Page:
    return chromium.open(planted_run(folder / "planted") / "report.html")


def overflow(page: Page) -> int:
    return int(
        page.value("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    )


def contrasts(page: Page, selector: str) -> list[float]:
    found = page.value(_RATIO.replace("SELECTOR", repr(selector)))
    assert found, selector
    return list(found)


@pytest.mark.parametrize("which", ["plain", "planted"])
def test_the_console_is_silent_and_nothing_is_fetched(
    which: str, request: pytest.FixtureRequest
) -> None:
    page: Page = request.getfixturevalue(which)
    page.prefer(scheme="dark")
    page.resize(375, phone=True)
    page.prefer()
    page.resize(1100)
    assert page.complaints == []
    assert len(page.requests) == 1
    assert page.requests[0].startswith("file:///")
    assert page.requests[0].endswith("/report.html")


def test_what_a_page_must_not_do_would_be_noticed(chromium: Browser, folder: Path) -> None:
    stored = (folder / "planted" / "report.html").read_text()
    bad = folder / "bad.html"
    bad.write_text(stored.replace("</body>", f"{ATTACKS[0]}<img src=http://127.0.0.1:9/></body>"))
    page = chromium.open(bad)
    assert any("Content Security Policy" in said for said in page.complaints)
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    bad.write_text(policy.sub("", bad.read_text()))
    page = chromium.open(bad)
    assert "http://127.0.0.1:9/" in page.requests
    assert page.value("document.title") == "owned"


def test_texts_that_try_to_be_markup_are_shown_as_they_are(planted: Page) -> None:
    made = "script, img, iframe, object, link, [onload], [onerror], [onfocus], [autofocus]"
    assert planted.value(f"document.querySelectorAll({made!r}).length") == 0
    assert (
        planted.value(
            "document.querySelectorAll('svg svg, style:not(head style, .heat style)').length"
        )
        == 0
    )
    assert planted.value("getComputedStyle(document.body).display") == "block"
    assert planted.value("document.title").startswith(WHOLE[:20])
    planted.value("document.querySelectorAll('details').forEach(each => each.open = true)")
    shown = planted.value("document.body.innerText")
    # sample: context, before, after, person; claim, sentences, notes, title line, config
    assert shown.count(WHOLE) >= 12
    for attack in ATTACKS:
        assert attack in shown


@pytest.mark.parametrize("width", [375, 320])
@pytest.mark.parametrize("which", ["plain", "planted"])
def test_a_phone_never_scrolls_sideways(
    which: str, width: int, request: pytest.FixtureRequest
) -> None:
    page: Page = request.getfixturevalue(which)
    page.value("document.querySelectorAll('details').forEach(each => each.open = true)")
    page.resize(width, 800, phone=True)
    assert page.value("innerWidth") == width
    assert overflow(page) <= 0
    page.resize(1100)
    assert overflow(page) <= 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(plain: Page, scheme: str) -> None:
    plain.prefer(scheme=scheme)
    backdrop = [int(n) for n in re.findall(r"\d+", plain.value(
        "getComputedStyle(document.body).backgroundColor"))]  # fmt: skip
    assert (max(backdrop) < 64) == (scheme == "dark")
    for selector in (_TEXTS, ".chart text"):
        assert min(contrasts(plain, selector)) >= 4.5, selector
    plain.prefer()


def test_the_colours_of_lines_follow_the_scheme(plain: Page) -> None:
    colour = "getComputedStyle(document.querySelector('.series.row-outsider .line')).stroke"
    plain.prefer()
    light = plain.value(colour)
    plain.prefer(scheme="dark")
    dark = plain.value(colour)
    plain.prefer()
    assert "none" not in (light, dark)
    assert light != dark


@pytest.mark.parametrize(("which", "count"), [("plain", 2), ("planted", 3)])
def test_every_chart_is_named_described_and_has_its_table(
    which: str, count: int, request: pytest.FixtureRequest
) -> None:
    page: Page = request.getfixturevalue(which)
    told = page.value(_TOLD)
    assert len(told) == count  # (clients that are drawn in secret are not counted)
    for title, summary, rows, width, height in told:
        assert len(title) > 10
        assert len(summary) > 10
        assert rows >= 2
        assert width > 300
        assert height > 150
    ids = "[...document.querySelectorAll('[id]')].map(each => each.id)"
    assert page.value(f"new Set({ids}).size === {ids}.length")


def test_a_mark_says_its_value_when_pointed_at(plain: Page) -> None:
    hints = (
        "[...document.querySelectorAll('.row-outsider .dot title')].map(each => each.textContent)"
    )
    assert "round 1: outsider 0.08" in " ".join(plain.value(hints))


def test_it_prints(plain: Page) -> None:
    assert plain.pdf().startswith(b"%PDF-")
    plain.prefer(scheme="dark", media="print")
    assert plain.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    shown = "[...document.querySelectorAll('.screen')].every(each => each.offsetHeight === 0)"
    assert plain.value(shown)
    assert plain.value("document.querySelectorAll('.screen').length") >= 3
    plain.prefer()


def test_the_profile_is_left_to_nobody(tmp_path: Path) -> None:
    with browser(tmp_path / "profile") as opened:
        opened.open(tmp_path)
    shutil.rmtree(tmp_path / "profile")  # nothing writes there any more
    assert not (tmp_path / "profile").exists()

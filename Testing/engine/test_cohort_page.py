"""The cohort's page, in a real browser where one is installed: sorting, filters, pictures, and nothing from outside."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import cohort_samples as samples
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from MedZeroSegLib.cohort.case_record import CaseRecord
from MedZeroSegLib.cohort.report import write_cohort_report

pytest.importorskip("jinja2", reason="the cohort's page needs Jinja2 (pip install 'medzeroseg[cohort]')")

EVIL = "<script>document.title='taken'</script> Ö肺 \"'&amp; </table>"
SIZES = (90.0, 1500.0, 1450.0, 1600.0, 1520.0, 1480.0, 1555.0, 1490.0, 1510.0)


def records() -> list[CaseRecord]:
    """Nine livers, one far too small; a spleen that is missing once; a failure; and names that want to break out."""
    made = []
    for n, size in enumerate(SIZES):
        segments = (
            samples.statistics("liver", size, score=0.5 + n / 20, doubt=0.5 - n / 20, expected_dice=0.5 + n / 20),
            samples.statistics("spleen", None if n == 3 else 200.0 + n, warnings=(EVIL,) if n == 4 else ()),
        )
        files = {"labels": f"{n}.seg.nrrd", "mosaic": f"a b/{n}#.png", "thumbnail": f"{n}.jpg"}
        name = EVIL if n == 0 else f"case {n}"
        made.append(samples.record(name, {}, segments=segments, files=files, warnings=("The modality was guessed.",)))
    return [*made, samples.failed(f"broken {EVIL}", f"'{EVIL}' is cut short; copy it again.")]


def page(folder: Path) -> Path:
    for n in range(len(SIZES)):
        Image.new("RGB", (96, 128), (20 * n, 40, 200)).save(folder / f"{n}.jpg")
    return write_cohort_report(records(), folder)


class Reader(HTMLParser):
    """The tags of a page, the text outside scripts and styles, and every attribute."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(text)
        self.text = " ".join("".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] not in (["script"], ["style"]):
            self.texts.append(data)


def test_page_is_one_file_without_links_to_elsewhere_or_patient_data(tmp_path):
    text = page(tmp_path).read_text(encoding="utf-8")
    read = Reader(text)
    for name, value in read.attributes:
        if name in ("src", "href"):
            assert value.startswith(("data:", "a%20b/")), value
    assert not re.search(r"https?://|//cdn|@import|url\(", text)
    assert "default-src 'none'" in text
    assert "/scans/" not in text  # images' paths often hold names
    for expected in ("ab" * 32, "preset", "lite on cpu", "1.2.3", "2026-05-04", "For research use"):
        assert expected.lower() in text.lower(), expected


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.text(st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), min_size=1) | st.just("</script>")
)
def test_names_and_sentences_are_text_and_nothing_else(tmp_path, name):
    plain = Reader(
        write_cohort_report([samples.record("x", {"y": 1.0}), samples.failed("x", "z")], tmp_path).read_text()
    )
    file = write_cohort_report([samples.record(name, {name: 1.0}), samples.failed(name, name)], tmp_path)
    read = Reader(file.read_text(encoding="utf-8"))
    assert read.tags == plain.tags
    assert read.text.count(name) >= 4


def test_a_cohort_of_failures_only_has_a_page(tmp_path):
    text = write_cohort_report([samples.failed("a", "'a' is empty.")], tmp_path).read_text(encoding="utf-8")
    assert "No case was segmented." in text and "&#39;a&#39; is empty." in text


@pytest.fixture(scope="module")
def browser() -> Iterator:
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    api = pytest.importorskip(
        "playwright.sync_api", reason="the browser is driven by playwright (pip install playwright)"
    )
    if program is None:
        pytest.skip("no Chromium is installed, in which the page would be tried (apt install chromium)")
    with api.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def shown(browser, tmp_path) -> Iterator:
    """The page, opened, with what it asked for and complained about; both have to stay empty."""
    file = page(tmp_path)
    view = browser.new_page()
    complaints, requests = [], []
    view.on("console", lambda message: complaints.append(message.text))
    view.on("pageerror", lambda error: complaints.append(str(error)))
    view.on("request", lambda request: requests.append(request.url))
    view.goto(file.as_uri())
    view.wait_for_selector("#filters:not([hidden])")
    yield view
    view.wait_for_timeout(100)
    assert complaints == []
    assert [url for url in requests if not url.startswith("data:")] == [file.as_uri()]
    assert view.title() == "MedZeroSeg cohort: 9 cases"
    view.close()


def column(view, number: int) -> list[str]:
    return view.eval_on_selector_all(
        "#table tbody tr:not([hidden])", f"rows => rows.map(row => row.cells[{number}].textContent)"
    )


def test_a_click_sorts_and_another_turns_the_order(shown):
    scores = [f"{0.5 + n / 20:.2f}" for n in range(9)] + ["0.90"] * 9
    shown.click("button:has-text('Score')")
    assert column(shown, 5) == sorted(scores, reverse=True)
    shown.click("button:has-text('Score')")
    assert column(shown, 5) == sorted(scores)
    assert shown.get_attribute("th:has(button:has-text('Score'))", "aria-sort") == "ascending"
    shown.click("button:has-text('Size')")
    assert column(shown, 3)[:2] == ["1600 ml", "1555 ml"] and column(shown, 3)[-1] == "not found"
    shown.click("button:has-text('Size')")
    assert column(shown, 3)[0] == "90 ml" and column(shown, 3)[-1] == "not found"
    shown.focus("button:has-text('Case')")
    shown.keyboard.press("Enter")
    assert column(shown, 1)[-1] == "case 8"


def test_the_most_doubtful_stand_first(shown):
    assert column(shown, 2)[:2] == ["spleen", "liver"]  # missing though usual; far too small
    remarks = column(shown, 9)
    assert "not found, though it was in 89 %" in remarks[0] and "unusually small" in remarks[1]


def test_filters_combine(shown):
    shown.fill("#search", "case")
    assert shown.inner_text("#shown") == "16 of 18 segments"
    shown.select_option("#structure", "spleen")
    assert set(column(shown, 2)) == {"spleen"}
    shown.select_option("#kind", "missing")
    assert column(shown, 1) == ["case 3"]
    shown.fill("#search", "")
    shown.select_option("#structure", "")
    shown.select_option("#kind", "outlier")
    assert column(shown, 1) == [EVIL]
    shown.select_option("#kind", "warned")
    assert column(shown, 9) == [EVIL]


def test_pictures_come_into_view_and_lead_to_the_mosaic(shown):
    for row in shown.locator("#table tbody tr").all():
        row.scroll_into_view_if_needed()
    sizes: list[int] = []
    for _ in range(50):
        sizes = shown.eval_on_selector_all("td.picture img", "images => images.map(image => image.naturalWidth)")
        if sizes == [96] * 18:
            break
        shown.wait_for_timeout(100)
    assert sizes == [96] * 18
    links = shown.eval_on_selector_all("td.picture a", "links => links.map(link => link.getAttribute('href'))")
    assert sorted(set(links)) == [f"a%20b/{n}%23.png" for n in range(9)]


def test_the_outlier_is_marked_in_its_histogram(shown):
    titles = shown.eval_on_selector_all("circle.odd title", "marks => marks.map(mark => mark.textContent)")
    assert len(titles) == 1 and EVIL in titles[0] and "90 ml" in titles[0]


def test_it_prints(shown):
    assert shown.pdf(format="A4")[:5] == b"%PDF-"

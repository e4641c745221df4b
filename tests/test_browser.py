"""The three pages in a real browser: what a reader sees, and can do."""

import contextlib
import json
import re
import shutil
import threading

import numpy as np
import pytest
from made_up import ACTIONS, METHODS, comparison

from optax_meta.reports import folder as reports
from optax_meta.reports import watching

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PAGES = ("comparison", "run", "meta-training")
SEEDS, STEPS = 10, 500
PAPER = 680
DRAWN = "paths => paths.map(path => path.getTotalLength() > 100)"
CUT_OFF = """svg => {
  const frame = svg.getBoundingClientRect();
  const isOut = (box) => box.left < frame.left - 1 || box.right > frame.right + 1
    || box.top < frame.top - 1 || box.bottom > frame.bottom + 1;
  const texts = [...svg.querySelectorAll("text")];
  const cut = texts.filter((text) => isOut(text.getBoundingClientRect()));
  return cut.map((text) => text.textContent);
}"""


def log_rows(updates):
    generator = np.random.default_rng(0)
    for update in range(1, updates + 1):
        noise = generator.lognormal(0.0, 0.2, 10)
        yield {
            "update": update,
            **{f"fall/family-{i}": i + x for i, x in enumerate(noise)},
            **{f"spread/family-{i}": x / (i + 1.0) for i, x in enumerate(noise)},
            "entropy": 1.6 * np.exp(-update / 900),
            "grad_norm": noise[0],
            "inner_steps_per_second": 8e5 * noise[1],
        }


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    paths = {
        "comparison": reports.write_report(
            comparison(seeds=SEEDS, steps=STEPS), folder / "comparison"
        )
    }
    lines = (folder / "comparison" / "records" / "learned.jsonl").read_text().splitlines()
    texts = {
        "run": lines[:STEPS],
        "meta-training": map(json.dumps, log_rows(1500)),
        "young": [json.dumps({"update": i, f"fall/family-{i}": 1.0 * i}) for i in (1, 2, 3)],
    }
    for name, rows in texts.items():
        (folder / name).mkdir()
        file = folder / name / ("mine.jsonl" if name == "run" else "log.jsonl")
        file.write_text("\n".join(rows) + "\n")
        paths[name] = reports.rebuild_report(folder / name)
    return paths


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as api:
        chromium = api.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(pages, browser):
    """Open a page; at the end, check that it complained of nothing and asked nobody."""
    tabs, problems, requests = [], [], []

    def open_page(name, **options):
        tab = browser.new_context(**options).new_page()
        tabs.append(tab)
        tab.on("console", lambda message: problems.append(message.text))
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(pages[name].as_uri(), wait_until="load")
        return tab

    yield open_page
    for tab in tabs:
        tab.context.close()
    assert problems == []
    addresses = {page.as_uri() for page in pages.values()}
    assert [url for url in requests if url not in addresses and not url.startswith("data:")] == []


def chart_of(tab, name):
    return tab.locator(f"#chart-{name}")


def ticks(chart):
    """Return the numbers below a chart, its left end first."""
    return chart.locator("svg[role=group] > text[text-anchor=middle]").all_text_contents()


def press(chart, name):
    chart.get_by_role("button", name=name, exact=True).click()


def load_time(tab):
    """Return the milliseconds until a page is loaded again."""
    tab.reload(wait_until="load")
    return tab.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")


@pytest.mark.parametrize("name", PAGES)
def test_every_picture_is_there_and_soon(name, pages, visit):
    assert pages[name].stat().st_size < 6e6
    tab = visit(name)
    assert min(load_time(tab) for _ in range(3)) < 2000
    assert tab.locator(".chart").count() == {"comparison": 4, "run": 4, "meta-training": 5}[name]
    for figure in tab.locator("figure").all():
        shown = figure.locator(".chart .plot > svg, img").filter(visible=True)
        assert shown.count() >= 1
        assert (figure.locator(".chart").count() > 0) != (figure.locator("img").count() > 0)
        for picture in shown.all():
            box = picture.bounding_box()
            assert min(box["width"], box["height"]) > 100
        assert figure.locator("figcaption b").text_content() == "What to read from this."
    for chart in tab.locator(".chart").all():
        assert all(chart.locator("path[data-series]").evaluate_all(DRAWN))
        assert chart.locator(".plot > svg").evaluate(CUT_OFF) == []
    loaded = "images => images.every(i => i.complete && i.naturalWidth > 0 && i.alt)"
    assert tab.locator("img").evaluate_all(loaded)


def test_a_name_hides_its_line_and_shows_it_again(visit):
    tab = visit("comparison")
    for name, count in (("loss", 7), ("learning_rate", 7), ("weight_decay", 3)):
        chart = chart_of(tab, name)
        lines = chart.locator("path[data-series]")
        assert lines.count() == count
        press(chart, "random")
        assert chart.locator("path[data-series=random]").count() == 0
        assert lines.count() == count - 1
        button = chart.get_by_role("button", name="random", exact=True)
        assert button.get_attribute("aria-pressed") == "false"
        press(chart, "random")
        assert lines.count() == count


def test_the_other_seeds_and_the_scale_can_be_switched(visit):
    tab = visit("comparison")
    chart = chart_of(tab, "learning_rate")
    press(chart, "all seeds")
    assert chart.locator("path.other").count() == 7 * 9
    labels = chart.locator("svg[role=group] > text[text-anchor=end]")
    before = labels.all_text_contents()
    press(chart, "log axis")
    assert labels.all_text_contents() != before
    run = visit("run")
    assert run.get_by_role("button", name="all seeds").count() == 0
    assert chart_of(visit("meta-training"), "entropy").locator("path.other").count() == 1


def test_pointing_at_a_line_explains_its_decision(visit, pages):
    tab = visit("comparison")
    chart = chart_of(tab, "learning_rate")
    for name in METHODS:
        if name != "learned":
            press(chart, name)
    plot = chart.locator(".plot > svg")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    tip = chart.locator(".tip")
    assert not tip.is_visible()
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert tip.is_visible()
    text = tip.inner_text()
    (step,) = map(int, re.findall(r"Decision at step (\d+)", text))
    text_of_row = (pages["comparison"].parent / "records" / "learned.jsonl").read_text()
    row = json.loads(text_of_row.splitlines()[step - 1])
    assert f"{ACTIONS[row['action']].replace('_', ' ')}. Reward: " in text
    taken = float(tip.locator("dt.taken + dd").text_content())
    assert taken == pytest.approx(row["probabilities"][row["action"]], abs=1e-3)
    values = [float(x) for x in tip.locator("dl").nth(1).locator("dd").all_text_contents()]
    np.testing.assert_allclose(values, row["observation"], atol=1e-3)
    assert "feature a" in text
    tab.mouse.move(0, 0)
    assert not tip.is_visible()


def test_keys_walk_from_decision_to_decision(visit):
    tab = visit("run")
    chart = chart_of(tab, "learning_rate")
    chart.locator(".plot > svg").focus()
    steps = []
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
        tab.keyboard.press(key)
        steps += re.findall(r"Decision at step (\d+)", chart.locator(".tip").inner_text())
    assert steps == ["1", "6", "1"]


def test_dragging_zooms_and_the_button_resets(visit):
    tab = visit("comparison")
    chart = chart_of(tab, "loss")
    whole = ticks(chart)
    plot = chart.locator(".plot > svg")
    plot.scroll_into_view_if_needed()

    def drag():
        box = plot.bounding_box()
        middle = box["y"] + box["height"] / 2
        tab.mouse.move(box["x"] + 0.4 * box["width"], middle)
        tab.mouse.down()
        tab.mouse.move(box["x"] + 0.5 * box["width"], middle, steps=3)
        tab.mouse.up()

    for key, reset in (
        (drag, lambda: press(chart, "reset zoom")),
        (drag, plot.dblclick),
        (lambda: plot.press("+"), lambda: plot.press("0")),
    ):
        key()
        assert ticks(chart) != whole
        reset()
        assert ticks(chart) == whole


def luminance(color):
    channels = np.array([int(x) for x in re.findall(r"\d+", color)[:3]]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_stand_out(scheme, visit):
    """4.5 for text and 3 for lines: https://www.w3.org/TR/WCAG21/."""
    tab = visit("comparison", color_scheme=scheme)
    page = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (luminance(page) > 0.5) == (scheme == "light")
    for selector in ("body", "figcaption", "td", ".tools button", "dt"):
        color = tab.locator(selector).first.evaluate("node => getComputedStyle(node).color")
        assert contrast(color, page) > 4.5, selector
    strokes = "paths => paths.map(path => getComputedStyle(path).stroke)"
    colors = chart_of(tab, "loss").locator("path[data-series]").evaluate_all(strokes)
    assert len(set(colors)) == 7
    for color in colors:
        assert contrast(color, page) > 3.0, color
    image = tab.locator("figure img").filter(visible=True).first
    inverted = image.evaluate("node => getComputedStyle(node).filter") != "none"
    assert inverted == (scheme == "dark")
    tab.emulate_media(color_scheme="dark" if scheme == "light" else "light")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") != page


@pytest.mark.parametrize("name", PAGES)
def test_on_a_phone(name, visit):
    options = {"is_mobile": True, "has_touch": True, "color_scheme": "dark"}
    tab = visit(name, viewport={"width": 390, "height": 844}, **options)
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    for picture in tab.locator(".plot > svg, img").filter(visible=True).all():
        box = picture.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
    if name == "meta-training":
        return
    narrow = tab.locator("img")
    assert narrow.evaluate_all("images => images.every(i => i.currentSrc !== i.src)")
    plot = chart_of(tab, "learning_rate").locator(".plot > svg")
    plot.tap()
    tip = chart_of(tab, "learning_rate").locator(".tip")
    assert tip.is_visible()  # the finger is gone, the text stays


@pytest.mark.parametrize("name", PAGES)
def test_on_paper(name, visit):
    tab = visit(name, viewport={"width": PAPER, "height": 1000}, color_scheme="dark")
    tab.emulate_media(media="print", color_scheme="dark")
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert luminance(tab.evaluate("getComputedStyle(document.body).color")) < 0.1
    assert tab.evaluate("document.documentElement.scrollWidth") == PAPER
    pictures = tab.locator(".plot > svg, figure img")
    assert pictures.filter(visible=True).count() == pictures.count()
    for picture in pictures.all():
        assert 100 < picture.bounding_box()["height"] < 27.7 / 2.54 * 96
    for chart in tab.locator(".chart").all():
        assert chart.locator(".plot > svg").evaluate(CUT_OFF) == []
        assert all(chart.locator("path[data-series]").evaluate_all(DRAWN))
        lines = chart.locator("path[data-series]").count()
        swatches = chart.locator(".bar .swatch").filter(visible=True)
        assert swatches.count() == (lines if lines > 1 else 0)
    assert tab.locator(".tools, .how, .tip").filter(visible=True).count() == 0


def test_printing_draws_for_paper_what_is_looked_at(visit):
    tab = visit("comparison", viewport={"width": 1600, "height": 900})
    chart = chart_of(tab, "loss")
    press(chart, "random")
    on_screen = chart.locator(".plot > svg").get_attribute("viewBox")
    tab.evaluate(
        """() => addEventListener("beforeprint", () => {
            const svg = document.querySelector("#chart-loss .plot > svg");
            const count = svg.querySelectorAll("[data-series]").length;
            printed = `${svg.getAttribute("viewBox")}; ${count}`;
        })"""
    )
    assert tab.pdf().startswith(b"%PDF")
    assert tab.evaluate("printed") == f"0 0 {PAPER} 300; {len(METHODS) - 1}"
    assert chart.locator(".plot > svg").get_attribute("viewBox") == on_screen


def test_without_scripts_the_page_says_what_is_missing(visit):
    tab = visit("comparison", java_script_enabled=False)
    notes = tab.locator("noscript p").filter(visible=True, has_text="scripts are off here")
    assert notes.count() == tab.locator("figure:has(.chart)").count() == 3
    assert tab.locator("figure img").filter(visible=True).count() == 4


def test_lines_of_one_point_are_dots_and_updates_are_whole(visit):
    chart = chart_of(visit("young"), "fall")
    assert chart.locator("circle.dot").count() == 3
    assert ticks(chart)[:3] == ["1", "2", "3"]


@pytest.fixture
def watched(tmp_path, browser, monkeypatch):
    """Watch an empty folder; return the tab, the file to be, and what ends the server."""
    monkeypatch.setattr(watching, "_LARGEST_SHARE", 10.0)  # tests do not wait
    server = watching.server(tmp_path, 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    tab, problems = browser.new_context().new_page(), []
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.goto(f"http://127.0.0.1:{server.server_address[1]}/")
    yield tab, tmp_path / "steps.jsonl", lambda: (server.shutdown(), server.server_close())
    with contextlib.suppress(OSError):
        server.shutdown()
        server.server_close()
    thread.join()
    tab.context.close()
    assert problems == []


def test_a_watched_page_follows_its_run(watched, pages):
    tab, file, end = watched
    expect = playwright.expect
    expect.set_options(timeout=60_000)  # it asks every two seconds
    rows = (pages["comparison"].parent / "records" / "learned.jsonl").read_text().splitlines(True)
    verdict = tab.locator("#verdict")
    expect(verdict).to_contain_text("Nothing to show yet")
    with file.open("w") as out:
        out.write("".join(rows[:50]) + rows[50][:30])  # half a line
        out.flush()
        expect(verdict).to_have_text("50 steps, 1 run.")  # loaded anew, now with charts
        chart = chart_of(tab, "loss")
        chart.locator(".plot > svg").press("+")
        zoomed, rate = ticks(chart)[:6], chart_of(tab, "learning_rate")
        tab.locator("img").first.evaluate("image => { window.earlier = image.src; }")
        out.write(rows[50][30:] + "".join(rows[51:400]))
        out.flush()
        expect(verdict).to_have_text("400 steps, 1 run.")
        expect(tab.locator("#live")).to_contain_text("Live. Last change at")
    assert ticks(chart)[:6] == zoomed  # what the reader chose stays
    assert "400" in ticks(rate)  # where nothing was chosen the whole is shown
    assert tab.locator("img").first.evaluate(
        "image => image.src !== window.earlier && image.complete"
    )
    end()
    expect(tab.locator("#live")).to_contain_text("Not live")

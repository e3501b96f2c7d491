"""Pages in a real browser: what is under the pointer is the point's own key, and nothing in it runs."""

import shutil

import numpy as np
import pytest

import embstore

pytest.importorskip("plotly")
playwright = pytest.importorskip("playwright.sync_api")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "<script>document.title = 'broken in'</script><b>&amp;</b> 'x' %{x} %{customdata[1]}"

# Where on the page a point of the plot is, in pixels.
PLACE = """([x, y]) => {
    const plot = document.getElementById("embstore-plot"), {xaxis, yaxis} = plot._fullLayout;
    const place = plot.getBoundingClientRect();
    return [place.x + xaxis._offset + xaxis.d2p(x), place.y + yaxis._offset + yaxis.d2p(y)];
}"""


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium is installed: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--enable-unsafe-swiftshader"])
        yield found
        found.close()


@pytest.fixture
def opened(browser):
    """Open a file in a fresh page, without a network, and wait for its plot; errors fail the test."""
    context = browser.new_context(viewport={"width": 1000, "height": 700}, offline=True)
    page, wrong = context.new_page(), []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request",
        lambda request: wrong.append(request.url) if not request.url.startswith(("file:", "data:", "blob:")) else None,
    )

    def opened(file):
        page.goto(file.as_uri())
        page.wait_for_selector("#embstore-plot .plotly .nsewdrag", state="attached")
        return page

    yield opened
    context.close()
    assert wrong == []


@pytest.fixture
def view(path, rng):
    keys = [f"{i}{HOSTILE}:{('dog', '<i>cat</i>', '_')[i % 3]}" for i in range(30)]
    angles = np.arange(30) * 0.2  # far enough from each other to be pointed at
    rows = np.stack([10 * np.cos(angles), 8 * np.sin(angles), 0.01 * rng.standard_normal(30)], axis=1)
    with embstore.open(path, "w-", config={}) as store:
        store.append(keys, rows.astype(np.float32), columns={"note": [f"note {i} {HOSTILE}" for i in range(30)]})
    return embstore.open(path).select()


def point_at(page, trace, point):
    """Move the pointer to a point; returns what is shown there, which may take a moment."""
    x, y = page.evaluate(PLACE, [float(trace.x[point]), float(trace.y[point])])
    page.mouse.move(x + 1, y)
    page.mouse.move(x, y)
    return playwright.expect(page.locator(".hoverlayer"))


def test_the_key_and_the_columns_are_under_the_pointer(view, opened, tmp_path):
    page = opened(view.plot(tmp_path / "a.html"))
    for trace, point in ((0, 0), (1, 2), (2, 5)):
        place = 3 * point + trace
        label = point_at(page, view.plot().data[trace], point)
        label.to_contain_text(view.keys[place])
        label.to_contain_text(f"class_name: {view.class_names[place]}")
        label.to_contain_text(f"note: note {place} {HOSTILE}")
    assert page.title() != "broken in"
    assert page.locator(".hoverlayer script").count() == 0
    assert [text.text_content() for text in page.locator(".legendtext").all()] == ["dog", "<i>cat</i>", "_"]


def test_points_that_are_drawn_by_webgl_have_their_keys(view, opened, tmp_path, monkeypatch):
    monkeypatch.setattr("embstore._outputs.plot._MOST_SVG", 10)
    page = opened(view.plot(tmp_path / "a.html", color=None))
    if not page.evaluate("() => !!document.createElement('canvas').getContext('webgl')"):
        pytest.skip("this chromium has no WebGL")
    point_at(page, view.plot(color=None).data[0], 4).to_contain_text(view.keys[4])

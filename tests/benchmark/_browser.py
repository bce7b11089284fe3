"""Load pages in a real browser engine and print what it found, as JSON; run as a script.

`python _browser.py SCHEME PAGE WIDTH [PAGE WIDTH ...]`: SCHEME is light or dark. With the variable
SCREENSHOTS, pictures of the pages go to that folder.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

SCHEME = sys.argv[1] if len(sys.argv) > 1 else "light"
os.environ["QT_QPA_PLATFORM"] = "offscreen"
os.environ["QTWEBENGINE_DISABLE_SANDBOX"] = "1"
os.environ["QTWEBENGINE_CHROMIUM_FLAGS"] = (
    f"--disable-gpu --blink-settings=preferredColorScheme={int(SCHEME == 'light')}"
)

from PySide6.QtCore import QEventLoop, Qt, QTimer, QUrl  # noqa: E402
from PySide6.QtTest import QTest  # noqa: E402
from PySide6.QtWebEngineCore import QWebEnginePage  # noqa: E402
from PySide6.QtWebEngineWidgets import QWebEngineView  # noqa: E402
from PySide6.QtWidgets import QApplication  # noqa: E402

#: With all folds open: what runs off the page, pictures, sticky columns, the least contrast.
MEASURE = """
(() => {
  document.querySelectorAll('details').forEach(one => one.open = true);
  const width = document.documentElement.clientWidth;
  const off = [...document.querySelectorAll('body *')].filter(one => !one.closest('.wide')
    && !one.closest('.skip') && one.getBoundingClientRect().right > width + 1)
    .map(one => one.tagName);
  const slipped = [...document.querySelectorAll('.wide')].filter(one => {
    one.scrollLeft = 120;
    const first = one.querySelector('tbody tr > *').getBoundingClientRect().left;
    return Math.abs(first - one.getBoundingClientRect().left) > 2; }).length;
  const wide = [...document.querySelectorAll('.wide')].filter(o => o.scrollWidth > o.clientWidth);
  const light = text => { const [r, g, b] = text.match(/[\\d.]+/g).map(v => v / 255).map(
      v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = one => { for (let at = one; at; at = at.parentElement) {
      const found = getComputedStyle(at).backgroundColor;
      if (!/, 0\\)$/.test(found)) return light(found); } return light('rgb(255, 255, 255)'); };
  const contrast = one => { const a = light(getComputedStyle(one).color), b = ground(one);
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05); };
  const texts = [...document.querySelectorAll('body *')].filter(one =>
    [...one.childNodes].some(node => node.nodeType === 3 && node.data.trim()));
  return JSON.stringify({
    overflow: document.documentElement.scrollWidth - width, off, slipped, scrolling: wide.length,
    images: document.images.length,
    broken: [...document.images].filter(one => !(one.complete && one.naturalWidth)).length,
    contrast: Math.min(...texts.map(contrast)),
    dark: matchMedia('(prefers-color-scheme: dark)').matches,
    ground: getComputedStyle(document.body).backgroundColor,
    height: document.documentElement.scrollHeight });
})()
"""


class Page(QWebEnginePage):
    """A page that keeps what is written to the console."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def javaScriptConsoleMessage(self, level, message, line, source):
        del level, line, source
        self.said.append(message)


def wait(start, milliseconds: int = 20_000):
    """Run the event loop until `start(done)` has called `done`; return its argument."""
    loop, found = QEventLoop(), []

    def done(value: object = None) -> None:
        found.append(value)
        loop.quit()

    QTimer.singleShot(milliseconds, loop.quit)
    start(done)
    if not found:
        loop.exec()
    return found[0] if found else None


def measured(path: str, width: int) -> dict:
    """Return what the browser finds on a page of some width."""
    view, page = QWebEngineView(), Page()
    view.setPage(page)
    view.resize(width, 900)
    view.show()

    def load(done) -> None:
        page.loadFinished.connect(done)
        page.load(QUrl.fromLocalFile(path))

    loaded = wait(load)
    page.loadFinished.disconnect()
    QTest.keyClick(view.focusProxy(), Qt.Key.Key_Tab)
    wait(lambda done: QTimer.singleShot(200, done))
    focus = wait(lambda done: page.runJavaScript("document.activeElement.className", done))
    found = json.loads(wait(lambda done: page.runJavaScript(MEASURE, done)))
    pdf = wait(page.printToPdf)
    found |= {"loaded": loaded, "focus": focus, "console": page.said}
    found["printed"] = bytes(pdf.data()[:5]).decode("ascii", "replace")
    if folder := os.environ.get("SCREENSHOTS"):
        view.resize(width, min(found["height"], 12_000))
        wait(lambda done: QTimer.singleShot(900, done))
        view.grab().save(str(Path(folder) / f"{Path(path).stem}_{width}_{SCHEME}.png"))
    return found


if __name__ == "__main__":
    app = QApplication(sys.argv[:1])
    pairs = zip(sys.argv[2::2], sys.argv[3::2], strict=True)
    print(json.dumps([measured(path, int(width)) for path, width in pairs]))
    sys.stdout.flush()
    os._exit(0)  # Qt's helper processes take long to end

"""The chat page in a browser, with a module that plays a model (tests/browser/fake/llamagpu.js)."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llamagpu import page as chat_page

pytest_plugins = ["browser_fixtures"]

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

BROWSER = Path(__file__).parent / "browser"
LOAD_ERRORS = {"no-webgpu": False, "too-small": False, "no-adapter": True, "offline": True, "damaged": True}  # retry


def test_files_are_small_and_ask_no_other_host() -> None:
    files = chat_page.files()
    assert {"index.html", "page.css", "page.js"} <= set(files)
    for name, path in files.items():
        lines = path.read_text().splitlines()
        assert max(map(len, lines)) <= 120, name
        assert len(lines) <= 300, name
        for word in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "@import", "url("):
            assert word not in path.read_text(), f"{name}: {word}"
    assert json.loads(chat_page.configuration("A model", download_bytes=7)) == {
        "title": "A model",
        "downloadBytes": 7,
        "local": True,
    }


@pytest.fixture(scope="session")
def site(serve: Callable[[Path], str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page, with the playing module."""
    folder = tmp_path_factory.mktemp("site")
    for path in [*chat_page.files().values(), BROWSER / "fake" / "llamagpu.js"]:
        shutil.copy(path, folder)
    (folder / "page.json").write_text(chat_page.configuration("Tiny Llama", download_bytes=270_000_000))
    return serve(folder)


Open = Callable[..., "Page"]


@pytest.fixture
def visit(browser: Browser, site: str) -> Iterator[Open]:
    """Function that opens the page with a state to play. Its tabs share a storage, unless a viewport is asked for."""
    from playwright.sync_api import expect

    expect.set_options(timeout=5000)
    faults: list[str] = []
    contexts = [browser.new_context(accept_downloads=True)]

    def start(*, load: bool = True, context: dict[str, Any] | None = None, init: str = "", **fake: Any) -> Page:
        if context is not None:
            contexts.append(browser.new_context(**context))
        tab = contexts[-1].new_page()
        tab.set_default_timeout(5000)
        tab.on("console", lambda m: faults.append(m.text) if m.type in ("error", "warning") else None)
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.on("request", lambda r: None if r.url.startswith((site, "blob:")) else faults.append(f"asked {r.url}"))
        tab.add_init_script(f"globalThis.fake = {json.dumps(fake)}; {init}")
        tab.goto(site)
        if load:
            tab.get_by_role("button", name="Load the model").click()
        return tab

    yield start
    for context in contexts:
        context.close()
    assert faults == []


def ask(tab: Page, text: str) -> None:
    """Sends a message with the keyboard, and waits for the answer's end."""
    tab.locator("#prompt").fill(text)
    tab.locator("#prompt").press("Enter")
    tab.locator("#send").wait_for()


def calls(tab: Page) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = tab.evaluate("fake.calls")
    return found


def texts(tab: Page) -> list[str]:
    """The messages on the page."""
    return tab.locator(".messages .plain, .messages .markdown").all_inner_texts()


def test_a_conversation(visit: Open) -> None:
    tab = visit(answers=["One **bold** answer.", "Two."])
    ask(tab, "Hello")
    ask(tab, "And again")
    assert texts(tab) == ["Hello", "One bold answer.", "And again", "Two."]
    first, second = calls(tab)
    assert first["messages"] == [{"role": "user", "content": "Hello"}]
    assert first["options"] | {"temperature": 0.7, "topP": 0.9, "maxTokens": 512} == first["options"]  # the model's own
    assert [m["content"] for m in second["messages"]] == ["Hello", "One **bold** answer.", "And again"]
    assert "3 tokens · 33.3 tokens/s" in tab.locator(".figures").first.inner_text()
    assert tab.locator("#model-line").inner_text() == "in float16 on NVIDIA GeForce RTX 4070, 328 MB"
    assert "Two." in tab.locator("#announcer").inner_text()


@pytest.mark.slow
def test_before_loading(visit: Open) -> None:
    tab = visit(load=False)
    tab.get_by_text("The model is a download of 270 MB.").wait_for()
    assert not tab.locator("#composer").is_visible()
    tab.evaluate("fake.holdAt = 'download'; fake.notice = 'Another tab is downloading this model; waiting for it.'")
    tab.get_by_label("Load at once on my next visit").check()
    tab.get_by_role("button", name="Load the model").click()
    tab.get_by_text("122 MB of 270 MB").wait_for()
    assert "has all that the model needs" in tab.locator("#start").inner_text()
    assert tab.get_by_role("progressbar", name="Loading").get_attribute("value") == "121500000"
    assert "Download the model" in tab.locator("#announcer").inner_text()
    tab.get_by_text("Another tab is downloading").wait_for()
    tab.get_by_role("button", name="Cancel").click()
    tab.evaluate("delete fake.holdAt")
    tab.get_by_role("button", name="Load the model").click()
    tab.get_by_role("textbox", name="Message").wait_for()
    assert tab.locator(".notice").count() == 0  # what was said of loading is out of date
    visit(load=False).get_by_role("textbox", name="Message").wait_for()  # the next visit asks no question


@pytest.mark.slow
@pytest.mark.parametrize("code", LOAD_ERRORS)
def test_loading_errors(visit: Open, code: str) -> None:
    tab = visit(loadError=code)
    card = tab.locator("#start .error")
    card.wait_for()
    assert len(card.locator("p").all()) == 3
    retry = card.get_by_role("button", name="Try again")
    assert retry.count() == LOAD_ERRORS[code]
    if LOAD_ERRORS[code]:
        retry.click()
        tab.get_by_role("textbox", name="Message").wait_for()


@pytest.mark.slow
def test_files_of_the_host(browser: Browser, site: str) -> None:
    """Missing ones are errors on the page; a server's page loads at once."""
    tab = browser.new_page()
    tab.set_default_timeout(5000)
    tab.route("**/llamagpu.js", lambda route: route.abort())
    tab.goto(site)
    tab.get_by_role("button", name="Load the model").click()
    tab.get_by_text("The page could not read its file llamagpu.js.").wait_for()
    tab.route("**/page.json", lambda route: route.fulfill(status=404))
    tab.reload()
    tab.get_by_text("The server answered with HTTP 404.").wait_for()
    tab.unroute("**/llamagpu.js")
    tab.route("**/page.json", lambda route: route.fulfill(body=chat_page.configuration("Far away", local=False)))
    tab.reload()
    tab.get_by_role("textbox", name="Message").wait_for()
    tab.close()


@pytest.mark.slow
def test_stop_regenerate_edit_delete_undo(visit: Open) -> None:
    tab = visit(answers=["one two three " * 40, "A second try.", "About cats."], delay=30)
    tab.locator("#prompt").fill("Count")
    tab.locator("#prompt").press("Enter")
    tab.get_by_text("one two").wait_for()
    assert not tab.locator("#send").is_visible()
    tab.keyboard.press("Escape")
    tab.get_by_text("Stopped.").first.wait_for()
    assert texts(tab)[1].startswith("one two")
    tab.get_by_role("button", name="Regenerate the answer").click()
    tab.get_by_text("A second try.").first.wait_for()
    tab.locator("#send").wait_for()
    assert len(calls(tab)[1]["messages"]) == 1
    tab.get_by_role("button", name="Edit your message").click()
    field = tab.get_by_role("textbox", name="Your message")
    field.press("Escape")
    assert texts(tab) == ["Count", "A second try."]
    tab.get_by_role("button", name="Edit your message").click()
    field.fill("Cats?")
    field.press("Enter")
    tab.locator("#send").wait_for()
    assert texts(tab) == ["Cats?", "About cats."]
    tab.get_by_role("button", name="Undo").click()
    tab.get_by_text("A second try.").first.wait_for()
    assert texts(tab) == ["Count", "A second try."]
    tab.get_by_role("button", name="Delete your message").click()
    assert texts(tab) == []


@pytest.mark.slow
def test_errors_while_answering(visit: Open) -> None:
    tab = visit(answers=["One two three.", "One two three.", "Whole."], error={"code": "device-lost", "after": 2})
    ask(tab, "Hello")
    assert "The GPU was lost." in tab.locator("#failure").inner_text()
    assert "An error ended this answer." in tab.locator(".ending").inner_text()
    tab.get_by_role("button", name="Load the model again").click()
    tab.get_by_role("button", name="Regenerate the answer").click()
    tab.locator("#send").wait_for()
    assert texts(tab) == ["Hello", "One two three."]
    assert tab.evaluate("fake.closed")
    tab.evaluate("fake.error = {code: 'context-full', after: 0}")
    ask(tab, "Long")
    assert "The text is too long." in tab.locator("#failure").inner_text()
    assert texts(tab)[-1] == "Long"  # without an answer, which can be asked for again
    tab.evaluate("fake.error = {code: 'offline', after: 0}")
    tab.get_by_role("button", name="Answer this message").click()
    tab.get_by_role("button", name="Try again").click()
    tab.locator("#send").wait_for()
    assert texts(tab)[-2:] == ["Long", "Whole."]
    tab.evaluate("fake.contextFull = true")
    ask(tab, "More")
    assert "The context of 2,048 tokens is full" in tab.locator(".ending").inner_text()


@pytest.mark.slow
def test_a_lost_device_is_said_and_the_answer_goes_on(visit: Open) -> None:
    tab = visit(answers=["One two three four."], lost=True, delay=200)
    tab.locator("#prompt").fill("Hello")
    tab.locator("#prompt").press("Enter")
    tab.get_by_text("The GPU was lost; loading the model again.").wait_for()
    tab.get_by_text("Copy the weights to the GPU: 100 MB of 270 MB").wait_for()
    tab.locator("#send").wait_for()
    assert texts(tab) == ["Hello", "One two three four."]
    assert tab.locator(".notice").count() == 0


@pytest.mark.slow
def test_conversations_outlive_the_page(visit: Open, tmp_path: Path) -> None:
    tab = visit(answers=["First answer.", "Second answer."])
    ask(tab, "The first conversation")
    tab.get_by_role("button", name="New conversation").click()
    ask(tab, "The second one")
    tab.get_by_role("button", name="Rename The second one").click()
    tab.get_by_role("textbox", name="New title").fill("Renamed")
    tab.get_by_role("textbox", name="New title").press("Enter")
    tab.get_by_role("button", name="Rename Renamed").wait_for()
    tab.reload()
    tab.get_by_text("Second answer.").wait_for()  # the open one, before the model is loaded
    assert tab.get_by_role("button", name="Copy the answer").is_visible()
    assert not tab.get_by_role("button", name="Regenerate the answer").is_visible()
    tab.get_by_role("button", name="The first conversation").click()
    tab.get_by_text("First answer.").wait_for()
    with tab.expect_download() as download:
        tab.get_by_role("button", name="Export all as JSON").click()
    download.value.save_as(tmp_path / "all.json")
    exported = json.loads((tmp_path / "all.json").read_text())
    assert {c["title"] for c in exported} == {"The first conversation", "Renamed"}
    assert exported[-1]["messages"][1] == {"role": "assistant", "content": "First answer."}
    tab.get_by_role("button", name="Delete The first conversation").click()
    tab.get_by_text("was deleted").wait_for()
    assert tab.locator("#list li").count() == 1
    tab.get_by_role("button", name="Undo").click()
    tab.get_by_text("First answer.").wait_for()
    assert tab.locator("#list li").count() == 2


@pytest.mark.slow
def test_tabs_do_not_overwrite_each_other(visit: Open) -> None:
    one = visit(answers=["First answer."])
    ask(one, "Shared")
    two = visit(answers=["From the second tab."])
    two.get_by_role("button", name="Shared").click()
    two.get_by_text("First answer.").wait_for()
    ask(two, "More from two")
    one.get_by_text("From the second tab.").wait_for()  # an idle tab follows
    one.evaluate("fake.answers = ['slow words '.repeat(30)]; fake.delay = 50")
    one.locator("#prompt").fill("More from one")
    one.locator("#prompt").press("Enter")
    one.get_by_text("slow words").wait_for()
    two.get_by_text("More from one").wait_for()
    ask(two, "At the same time")
    one.keyboard.press("Escape")
    one.get_by_text("This one goes on as a copy.").wait_for()
    assert "At the same time" in texts(two)
    assert "At the same time" not in texts(one)
    one.get_by_role("button", name="Shared (copy)").first.wait_for()
    assert one.locator("#list li").count() == 2


@pytest.mark.slow
def test_a_browser_without_storage_is_said(visit: Open) -> None:
    gone = "Object.defineProperty(globalThis, 'indexedDB', {value: {open() { throw new Error('no'); }}});"
    gone += "Object.defineProperty(globalThis, 'localStorage', {get() { throw new Error('no'); }});"
    tab = visit(init=gone)
    assert "gives the page no storage" in tab.locator("#storage").inner_text()
    ask(tab, "Hello")
    assert texts(tab) == ["Hello", "An answer."]
    full = visit(init="IDBObjectStore.prototype.put = function () { this.transaction.abort(); };")
    ask(full, "Hello")
    assert "was not saved" in full.locator(".notice").inner_text()
    assert texts(full) == ["Hello", "An answer."]


@pytest.mark.slow
def test_settings(visit: Open) -> None:
    tab = visit(generation={})
    tab.get_by_role("button", name="Settings").click()
    assert tab.get_by_label("Temperature").get_attribute("placeholder") == "0.7"
    tab.get_by_label("Temperature").fill("11")
    tab.get_by_role("button", name="Save").click()
    assert tab.locator("#settings").is_visible()  # out of its range
    tab.get_by_label("Temperature").fill("0.25")
    tab.get_by_label("Seed").fill("5")
    tab.get_by_label("System prompt").fill("Be brief.")
    tab.get_by_text("About this model").click()
    assert "134,515,008" in tab.locator("#about").inner_text()
    tab.get_by_role("button", name="Save").click()
    ask(tab, "Hello")
    tab.reload()
    tab.get_by_role("button", name="Load the model").click()
    ask(tab, "Again")
    (call,) = calls(tab)
    assert call["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (call["options"]["temperature"], call["options"]["seed"], call["options"]["topP"]) == (0.25, 5, 0.9)


@pytest.mark.slow
def test_text_mode(visit: Open) -> None:
    tab = visit(info={"hasChat": False}, answers=[" there was a cat.", " It slept."])
    assert not tab.locator("#mode").is_visible()
    ask(tab, "Once upon a time")
    ask(tab, "It was old.")
    assert tab.locator(".story").inner_text() == "Once upon a time there was a cat. It was old. It slept."
    ask(tab, "")
    assert [call["prompt"] for call in calls(tab)][1:] == [
        "Once upon a time there was a cat. It was old.",
        "Once upon a time there was a cat. It was old. It slept.",
    ]
    tab.get_by_role("button", name="Remove the last part").click()
    tab.get_by_role("button", name="Edit the text").click()
    tab.get_by_role("textbox", name="The text").fill("A new beginning")
    tab.get_by_role("button", name="Save").click()
    assert tab.locator(".story").inner_text() == "A new beginning"
    both = visit()
    both.get_by_role("radio", name="Text").click()
    ask(both, "Once")
    assert calls(both)[0]["prompt"] == "Once"
    both.get_by_role("radio", name="Chat").click()  # begins another conversation
    ask(both, "Hi")
    assert calls(both)[1]["messages"] == [{"role": "user", "content": "Hi"}]


# --- Markdown --------------------------------------------------------------------------------

HOSTILE = """\
<img src=x onerror="document.title='owned'"> <script>document.title='owned'</script>

[a](javascript:document.title='owned') [b](JaVaScRiPt&colon;alert(1)) [c](data:text/html,x) <javascript:alert(1)>

![pixel](https://example.org/pixel.png) [d](https://example.org/"onclick="alert(1)) &lt;b&gt; &#60;i&#62; [e](//x.org)

```html"><img src=x onerror=alert(1)>
<b>code</b>
```
"""


@pytest.mark.slow
def test_hostile_markdown_stays_text(visit: Open) -> None:
    tab = visit(answers=[HOSTILE])
    ask(tab, HOSTILE)
    answer = tab.locator(".messages .markdown")
    assert tab.title() == "Tiny Llama"
    assert answer.locator("img, script, iframe, b, i").count() == 0
    assert "<img src=x onerror=" in answer.inner_text()
    assert "<b> <i>" in answer.inner_text()
    links = answer.locator("a").all()
    assert all((link.get_attribute("href") or "").startswith("https://example.org/") for link in links)
    assert {link.get_attribute("rel") for link in links} == {"noopener noreferrer nofollow"}
    handlers = "[...document.querySelectorAll('#conversation *')].flatMap((e) => e.getAttributeNames())"
    assert not [name for name in tab.evaluate(handlers) if name.startswith("on")]
    assert answer.locator("pre").inner_text() == "<b>code</b>"


@pytest.mark.slow
def test_markdown(visit: Open) -> None:
    """Cases with the HTML that they become; and each text, growing by one character, becomes the same."""
    tab = visit(load=False)
    cases = json.loads((BROWSER / "markdown.json").read_text())
    script = """async (cases) => {
      const { MarkdownView, markdown } = await import("./markdown.js");
      return cases.map(([text]) => {
        const grown = document.createElement("div");
        const view = new MarkdownView(grown);
        for (let end = 1; end <= text.length; end++) view.update(text.slice(0, end));
        return [markdown(text).innerHTML, grown.innerHTML];
      });
    }"""
    plain = re.compile(
        r' (dir|rel|target|tabindex|role|type|aria-label)="[^"]*"| class="(quiet|code|table)"|<button>Copy</button>'
    )
    for (text, expected), (whole, grown) in zip(cases, tab.evaluate(script, cases), strict=True):
        assert plain.sub("", plain.sub("", whole)) == expected, text
        assert grown == whole, text


@pytest.mark.slow
def test_long_answers_stay_fast(visit: Open) -> None:
    """Long and hostile texts are rendered at once, and each update of a growing text takes as long as the last one."""
    tab = visit(load=False)
    script = """async () => {
      const { MarkdownView, markdown } = await import("./markdown.js");
      const times = {};
      const clock = (name, work) => {
        const start = performance.now();
        work();
        times[name] = performance.now() - start;
      };
      for (const piece of ["*a", "**a ", "[", "[a](", "`", "` ``", "_a_b", "> ", "- ", "<h", "|", "&", "~~a", "\\\\"]) {
        clock(piece, () => markdown(piece.repeat(50000 / piece.length)));
      }
      const paragraphs = "A paragraph with **bold** words and `code`.\\n\\n".repeat(2000);
      const code = "```\\n" + "a line of code\\n".repeat(5000);
      for (const [name, text] of [["growing paragraphs", paragraphs], ["growing code", code]]) clock(name, () => {
        const view = new MarkdownView(document.createElement("div"));
        for (let end = 0; end < text.length; end += 200) view.update(text.slice(0, end));
      });
      return times;
    }"""
    times = tab.evaluate(script)
    assert max(times.values()) < 2000, times


# --- Accessibility ---------------------------------------------------------------------------

AUDIT = (BROWSER / "audit.js").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_names_contrast_and_width(visit: Open, scheme: str, width: int) -> None:
    """Every control has a name, text has WCAG's AA contrast, ids are unique, nothing is wider than the screen."""
    context = {"viewport": {"width": width, "height": 740}, "color_scheme": scheme}
    rich = (
        "# Title\n\nText with `code` and [a link](https://example.org).\n\n```py\nx\n```\n\n> quote\n\n|a|\n|-|\n|b|\n"
    )
    tab = visit(load=False, context=context, answers=[rich + "long" * 200], error={"code": "offline", "after": 3})
    assert tab.evaluate(AUDIT) == []
    tab.get_by_role("button", name="Load the model").click()
    tab.locator("#empty").wait_for()
    assert tab.evaluate(AUDIT) == []
    ask(tab, "Hello")
    assert tab.evaluate(AUDIT) == []  # with an error
    ask(tab, "Hello" * 100)
    assert tab.evaluate(AUDIT) == []
    if width == 360:
        tab.get_by_role("button", name="Conversations").click()
        tab.get_by_role("button", name="New conversation").wait_for()
        assert tab.evaluate("document.activeElement.id") == "new"
        tab.keyboard.press("Escape")
        assert tab.evaluate("document.activeElement.id") == "menu"
    tab.get_by_role("button", name="Settings").click()
    assert tab.evaluate(AUDIT) == []


@pytest.mark.slow
def test_the_keyboard_reaches_everything(visit: Open) -> None:
    tab = visit(load=False)
    tab.get_by_role("button", name="Load the model").wait_for()
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip"
    for _ in range(2):
        tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")  # Load the model
    tab.get_by_role("textbox", name="Message").wait_for()
    assert tab.evaluate("document.activeElement.id") == "prompt"
    tab.keyboard.type("Two")
    tab.keyboard.press("Shift+Enter")
    tab.keyboard.type("lines")
    tab.keyboard.press("Enter")
    tab.locator(".figures").wait_for()
    assert calls(tab)[0]["messages"][0]["content"] == "Two\nlines"
    tab.evaluate("document.activeElement.blur(); document.body.focus()")
    seen = set()
    for _ in range(40):
        tab.keyboard.press("Tab")
        name = "document.activeElement.getAttribute('aria-label') ?? document.activeElement.innerText"
        outline = tab.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        seen.add((tab.evaluate(name) or "").strip())
        on_page = (
            "document.activeElement !== document.body && !document.activeElement.matches('#prompt, .switch input')"
        )
        assert outline != "none" or not tab.evaluate(on_page)
    wanted = {"New conversation", "Settings", "Copy your message", "Edit your message", "Regenerate the answer", "Send"}
    assert wanted <= seen
    assert {"Rename Two lines", "Export Two lines", "Delete Two lines", "Export all as JSON"} <= seen


@pytest.mark.slow
def test_landmarks(visit: Open) -> None:
    tab = visit()
    ask(tab, "Hello")
    snapshot = tab.locator("body").aria_snapshot()
    for line in ("- banner:", '- heading "Tiny Llama" [level=1]', '- navigation "Conversations":', "- main:"):
        assert line in snapshot
    for line in (
        '- list "Messages":',
        '- textbox "Message"',
        '- heading "You" [level=3]',
        '- heading "Model" [level=3]',
    ):
        assert line in snapshot


@pytest.mark.slow
def test_scrolling_follows_only_at_the_end(visit: Open) -> None:
    tab = visit(answers=["line\n\n" * 300], delay=5)
    tab.locator("#prompt").fill("Hello")
    tab.locator("#prompt").press("Enter")
    tab.wait_for_function("() => document.querySelector('#scroll').scrollTop > 300")
    tab.evaluate("document.querySelector('#scroll').scrollTop = 100")
    tab.locator("#latest").wait_for()
    height = tab.evaluate("document.querySelector('#scroll').scrollHeight")
    tab.wait_for_function("(h) => document.querySelector('#scroll').scrollHeight > h + 200", arg=height)
    assert tab.evaluate("document.querySelector('#scroll').scrollTop") == 100
    tab.locator("#latest").click()
    assert tab.evaluate("document.querySelector('#scroll').scrollTop") > 200

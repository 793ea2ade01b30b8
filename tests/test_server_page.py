"""The chat page in a browser against the real server: answers, conversations, and everything that can go wrong."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
import serving
from serving import eventually
from test_isolated import kill
from test_server_life import Slow

from llamagpu import LLM
from llamagpu.gpu.gate import Gate
from llamagpu.server.guard import Access
from llamagpu.server.serve import Server

pytest_plugins = ["browser_fixtures"]
pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

BEGINNING = "Once upon a time"
Visit = Callable[..., "Page"]


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """Function that opens a page. No page may report an error of its own."""
    contexts, errors = [], []

    def open_(url: str, **options: Any) -> Page:
        context = browser.new_context(**options)
        context.set_default_timeout(15_000)
        contexts.append(context)
        tab = context.new_page()
        tab.on("pageerror", lambda error: errors.append(error))
        tab.goto(url)
        return tab

    yield open_
    for context in contexts:
        context.close()
    assert not errors


def ready(tab: Page) -> None:
    """Wait for the model, and continue texts: the bundled model has no talent for talking."""
    tab.locator("#composer").wait_for()
    tab.get_by_role("radio", name="Chat").click()


def settings(tab: Page, **values: str) -> None:
    tab.get_by_role("button", name="Settings").click()
    for label, value in values.items():
        tab.get_by_label(label.replace("_", " ")).fill(value)
    tab.get_by_role("button", name="Save").click()


def send(tab: Page, text: str) -> None:
    tab.locator("#prompt").fill(text)
    tab.locator("#prompt").press("Enter")


def growing(tab: Page) -> None:
    """Wait for some words of a growing answer."""
    tab.locator(".growing").filter(has_text=re.compile(r"\w+ \w+")).wait_for()


@pytest.fixture
def slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of this process take as long as those of a large model."""
    submit = Gate.submit

    def late(*args: Any, **options: Any) -> Any:
        time.sleep(0.02)
        return submit(*args, **options)

    monkeypatch.setattr(Gate, "submit", late)


def answers(tab: Page) -> list[str]:
    return [text.strip() for text in tab.locator(".messages .markdown").all_inner_texts()]


def finished(tab: Page) -> str:
    """The last answer, when it is finished."""
    tab.locator("#send").wait_for()
    return answers(tab)[-1]


def words(text: str) -> list[str]:
    """Markdown shows neither double spaces nor single line ends."""
    return text.split()


def test_a_conversation(story: LLM, visit: Visit, slowly: None) -> None:
    models = serving.Borrowed(stories=story)
    expected = story.chat([{"role": "user", "content": BEGINNING}], max_tokens=30).text
    with serving.running(models) as url:
        tab = visit(url)
        ready(tab)
        settings(tab, Temperature="0", Longest_answer="30")
        send(tab, BEGINNING)
        assert words(finished(tab)) == words(expected)
        tab.get_by_role("button", name="Regenerate the answer").click()
        assert words(finished(tab)) == words(expected)
        tab.get_by_role("button", name="Edit your message").click()
        tab.get_by_role("textbox", name="Your message").fill("The little dog")
        tab.get_by_role("textbox", name="Your message").press("Enter")
        edited = finished(tab)
        assert words(edited) != words(expected)
        settings(tab, Longest_answer="450")
        send(tab, "And then")
        growing(tab)
        tab.locator("#stop").click()
        tab.locator(".ending").get_by_text("Stopped.").wait_for()
        eventually(lambda: models.served["stories"].gate.running == 0)
        stopped = finished(tab)
        tab.get_by_role("button", name="New conversation").click()
        tab.reload()
        tab.locator("#list .entry", has_text=BEGINNING).click()
        tab.locator(".ending").get_by_text("Stopped.").wait_for()
        assert answers(tab) == [edited, stopped]


def test_a_server_that_goes_and_comes_back(story: LLM, visit: Visit, slowly: None) -> None:
    models = serving.Borrowed(stories=story)
    with serving.running(models) as url:
        tab = visit(url)
        ready(tab)
        settings(tab, Longest_answer="450")
        send(tab, BEGINNING)
        growing(tab)
    tab.get_by_text("An error ended this answer.").wait_for()
    assert "The connection broke." in tab.locator("#failure").inner_text()
    tab.get_by_role("button", name="Try again").click()
    tab.locator("#failure").get_by_text("The server does not answer.").wait_for()
    with serving.running(models, port=int(url.rsplit(":", 1)[1])):
        settings(tab, Longest_answer="5")
        tab.get_by_role("button", name="Try again").click()
        tab.locator(".figures").wait_for()
        assert len(words(finished(tab))) >= 3
        assert tab.locator("#failure").inner_text() == ""


def test_a_key_is_asked_for(story: LLM, visit: Visit) -> None:
    asked: list[str] = []

    def answer(dialog: Any) -> None:
        asked.append(dialog.message)
        dialog.accept("wrong" if len(asked) == 1 else "k")

    with serving.running(serving.Borrowed(stories=story), Access(keys=["k"])) as url:
        tab = visit("about:blank")
        tab.on("dialog", lambda dialog: answer(dialog))
        tab.goto(url)
        ready(tab)
        assert asked == ["The server's API key:", "The key is wrong. The server's API key:"]
        tab.reload()
        ready(tab)
        assert len(asked) == 2  # kept for this tab
        refusing = visit("about:blank")
        refusing.on("dialog", lambda dialog: dialog.dismiss())
        refusing.goto(url)
        refusing.get_by_text("The server wants a key.").wait_for()


def test_waiting_for_a_busy_server(story: LLM, visit: Visit) -> None:
    models = Slow(places=1, queue=0, stories=story)
    server = Server(models, Access(), 0, grace=1)
    thread = threading.Thread(target=server.run)
    thread.start()
    url = f"http://127.0.0.1:{server.address[1]}"
    try:
        tab = visit(url)
        tab.get_by_text("The models are being loaded. Try again later. Waiting.").wait_for()
        models.go.set()
        ready(tab)
        assert tab.locator(".notice").count() == 0
        settings(tab, Longest_answer="5")
        with models.served["stories"].gate.admit():  # another request's
            send(tab, BEGINNING)
            tab.get_by_text("The queue is full.").wait_for()
        assert len(words(finished(tab))) >= 3
    finally:
        server.stop()
        thread.join(10)


def test_an_answer_goes_on_after_its_process_was_killed(story: LLM, visit: Visit) -> None:
    expected = story.chat([{"role": "user", "content": BEGINNING}], max_tokens=200).text
    with LLM(isolate=True) as llm, serving.running(serving.Borrowed(stories=llm)) as url:
        tab = visit(url)
        ready(tab)
        settings(tab, Temperature="0", Longest_answer="200")
        send(tab, BEGINNING)
        growing(tab)
        kill(llm)
        assert words(finished(tab)) == words(expected)
        assert llm._session._supervisor.deaths == 1  # type: ignore[union-attr]
        assert tab.locator("#failure").inner_text() == ""

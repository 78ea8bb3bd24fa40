"""The chat page in a real browser, against the real server over the mock engine."""

import base64
import hashlib
import os
import re
import urllib.request
from pathlib import Path

import pytest
from browser import browsing, installed
from mock_server import serving

needs_browser = pytest.mark.skipif(installed() is None, reason="there is no browser here")


@pytest.fixture(scope="module")
def slow():
    """Tokens take as long as they do from a model."""
    with serving(slots=2, context=2048, draws=1, mock={"step_seconds": 0.02, "end_every": 0}) as running:
        yield running


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browsing(tmp_path_factory.mktemp("profile")) as page:
        yield page


def last(name):
    return f"([...document.querySelectorAll('.{name}')].at(-1)?.textContent ?? '')"


def ask(page, text):
    page.run("document.getElementById('message').focus()")
    page.type(text)
    page.press("Enter", 13)


IDLE = "document.getElementById('send').textContent === 'Send'"


def test_it_loads_nothing_from_elsewhere_and_is_allowed_by_its_hashes(server):
    with urllib.request.urlopen(server.url) as found:
        text, policy = found.read().decode(), found.headers["content-security-policy"]
    assert not re.search(r"https?://", text) and " style=" not in text and not re.search(r"\son\w+=", text)
    for tag in ("script", "style"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() in policy
    assert "default-src 'none'" in policy


@needs_browser
def test_a_conversation_by_keyboard(page, slow, tmp_path):
    page.open(slow.url)
    page.until("document.querySelectorAll('#model option').length === 3")
    assert (
        page.run("[...document.querySelectorAll('#model option')].map((o) => o.value).join()") == "toy,toy:red,toy:blue"
    )
    page.run("document.getElementById('max-tokens').value = 30")
    ask(page, "Hello there")
    page.until(f"{last('answer')}.length > 20")
    assert not page.run(IDLE), "it streams"
    page.until(IDLE)
    first = page.run(last("answer"))
    note = page.run(last("note"))
    assert "30 tokens" in note and "tokens/s" in note and "first token after" in note
    page.run("document.getElementById('model').value = 'toy:red'")
    ask(page, "Hello again")
    page.until(f"{IDLE} && document.querySelectorAll('.turn').length === 2 && {last('note')}.includes('30 tokens')")
    assert page.run(last("answer")) not in ("", first) and page.run(last("who")) == "toy:red"
    target = Path(os.environ.get("POMONA_PICTURES", tmp_path)) / "chat.png"
    page.picture(target)
    assert target.stat().st_size > 10_000
    assert not [said for said in page.said if "Content Security Policy" in said or "exception" in said.lower()]


@needs_browser
def test_stop_ends_the_answer_and_frees_the_slot(page, slow):
    page.open(slow.url)
    page.until("document.querySelectorAll('#model option').length === 3")
    page.run("document.getElementById('max-tokens').value = 2000")
    ask(page, "Say much")
    page.until(f"{last('answer')}.length > 20")
    page.press("Escape", 27)
    page.until(IDLE)
    assert "Stopped" in page.run(last("note"))
    page.until("fetch('metrics').then((found) => found.text()).then((text) => text.includes('pomona_in_flight 0.0'))")


@needs_browser
def test_what_goes_wrong_is_said(page, slow):
    page.open(slow.url)
    page.until("document.querySelectorAll('#model option').length === 3")
    page.run("document.getElementById('message').value = 'word '.repeat(9000)")
    page.run("document.getElementById('message').focus()")
    page.press("Enter", 13)
    page.until(f"{IDLE} && {last('note')}.includes('context is 2048 tokens')")
    assert page.run("document.querySelector('.note').getAttribute('role')") == "alert"


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(390, False), (390, True), (1200, True)])
def test_it_fits_a_phone_and_both_schemes(page, slow, width, dark):
    page.open(slow.url, width, 844, dark)
    page.until("document.querySelectorAll('#model option').length === 3")
    assert page.run("document.documentElement.scrollWidth") <= width
    background = page.run("getComputedStyle(document.body).backgroundColor")
    levels = [int(part) for part in re.findall(r"\d+", background)[:3]]
    assert (max(levels) < 60) == dark
    short = "[...document.querySelectorAll('button, select, textarea')].filter((e) => e.offsetHeight < 40).length"
    assert page.run(short) == 0, "a finger hits everything"

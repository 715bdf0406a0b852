"""`patched()` in blocks that overlap without one being inside the other, as in threads."""

import threading
import types

import pytest

from vaefast.integrations import _patching


@pytest.fixture
def toy(monkeypatch):
    module = types.ModuleType("toy")
    module.function = lambda: "own"
    monkeypatch.setattr(_patching, "check_version", lambda *given: "2.3")

    def replacements(word="new"):
        yield _patching.Replacement(module, "function", lambda: word)

    module.library = _patching.Library("toy", ("2.3",), replacements)
    return module


def test_the_first_to_end_leaves_the_other_its_own(toy):
    first, second = toy.library.patched(word="first"), toy.library.patched(word="second")
    first.__enter__()
    second.__enter__()
    assert toy.function() == "second"
    first.__exit__(None, None, None)
    assert toy.function() == "second"
    second.__exit__(None, None, None)
    assert toy.function() == "own"
    assert toy.library.active is None


def test_three_in_any_order(toy):
    toy.library.patch(word="before")
    blocks = [toy.library.patched(word=word) for word in "abc"]
    for block in blocks:
        block.__enter__()
    for number, then in ((1, "c"), (2, "a"), (0, "before")):
        blocks[number].__exit__(None, None, None)
        assert toy.function() == then
    toy.library.unpatch()
    assert toy.function() == "own"


def test_an_exception_in_one_thread_leaves_the_others_patched(toy):
    inside, failed, seen = threading.Event(), threading.Event(), []

    def fails():
        with toy.library.patched(), pytest.raises(KeyError), toy.library.patched(word="inner"):
            inside.set()
            raise KeyError
        failed.set()

    thread = threading.Thread(target=fails)
    with toy.library.patched(word="ours"):
        thread.start()
        assert inside.wait(5) and failed.wait(5)
        thread.join()
        seen.append(toy.function())
    assert seen == ["ours"]
    assert toy.function() == "own"

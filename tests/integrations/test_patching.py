"""Library: what is replaced comes back exactly, in every order of calls, and only from versions
that are known."""

import importlib.metadata
import logging
import subprocess
import sys
import threading
import types

import pytest
from program import python

from vaefast.integrations import VersionError
from vaefast.integrations._patching import Library, Replacement


class Base:
    def inherited(self):
        return "base"


@pytest.fixture
def toy(monkeypatch):
    """A package of two modules: one defines, the other has imported under a name of its own."""
    package, inner, user = (types.ModuleType(n) for n in ("toy", "toy.inner", "toy.user"))

    class Thing(Base):
        def own(self):
            return "own"

        @staticmethod
        def static():
            return "static"

        @classmethod
        def of_class(cls):
            return "class"

        @property
        def value(self):
            return "value"

    def function():
        return "function"

    inner.Thing, inner.function = Thing, function
    user.renamed = function
    user.other = Thing
    stranger = types.ModuleType("toys")
    stranger.function = function
    for module in (package, inner, user, stranger):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    versions = {"toy-tools": "2.3.1+cpu"}

    def version(name):
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    inner.versions, inner.user, inner.stranger = versions, user, stranger
    return inner


def library(toy, versions=("2.3",), name="toy-tools"):
    def replacements(word="new"):
        thing = toy.Thing
        yield Replacement(thing, "own", lambda self: word)
        yield Replacement(thing, "inherited", lambda self: word)
        yield Replacement(thing, "static", staticmethod(lambda: word))
        yield Replacement(thing, "of_class", classmethod(lambda cls: word))
        yield Replacement(thing, "value", property(lambda self: word))
        yield Replacement(toy, "function", lambda: word, everywhere=True)

    return Library(name, versions, replacements, package="toy")


def state(toy):
    thing = toy.Thing
    return (dict(vars(thing)), dict(vars(toy)), dict(vars(toy.user)), dict(vars(Base)))


def words(toy):
    thing = toy.Thing()
    calls = (thing.own, thing.inherited, thing.static, thing.of_class, toy.function)
    return [thing.value, *(call() for call in calls), toy.user.renamed()]


OWN = ["value", "own", "base", "static", "class", "function", "function"]


def test_everything_is_replaced_and_comes_back_exactly(toy):
    before, ours = state(toy), library(toy)
    assert ours.active is None
    done = ours.patch()
    assert words(toy) == ["new"] * 7
    assert Base().inherited() == "base"
    assert toy.stranger.function() == "function"
    assert ours.active is done
    assert ours.unpatch() is done
    assert state(toy) == before
    assert words(toy) == OWN
    assert ours.unpatch() is None
    assert state(toy) == before


def test_it_says_what_it_replaced(toy, caplog):
    with caplog.at_level(logging.INFO, "vaefast"):
        done = library(toy).patch(word="x")
    assert (done.library, done.version) == ("toy-tools", "2.3.1+cpu")
    assert "toy.inner.function" in done.replaced
    assert "toy.user.renamed" in done.replaced
    assert any(name.endswith("Thing.inherited") for name in done.replaced)
    for text in (repr(done), caplog.text):
        assert "toy-tools 2.3.1+cpu with word='x', replaced:" in text
        assert all(name in text for name in done.replaced)


def test_twice_is_once_and_other_options_begin_anew(toy):
    before, ours = state(toy), library(toy)
    first = ours.patch(word="a")
    during = state(toy)
    assert ours.patch(word="a") is first
    assert state(toy) == during
    ours.patch(word="b")
    assert words(toy) == ["b"] * 7
    ours.unpatch()
    assert state(toy) == before


def test_a_block_restores_what_was_before_it(toy):
    before, ours = state(toy), library(toy)
    with ours.patched() as done:
        assert done is ours.active
        with ours.patched(word="inner"):
            assert words(toy) == ["inner"] * 7
        assert words(toy) == ["new"] * 7
    assert state(toy) == before
    with pytest.raises(KeyError), ours.patched():
        raise KeyError
    assert state(toy) == before

    @ours.patched(word="called")
    def inside():
        return words(toy)

    assert inside() == ["called"] * 7 == inside()
    assert state(toy) == before


def test_what_imports_a_name_while_patched_gets_the_librarys_back(toy, monkeypatch):
    original, ours = toy.function, library(toy)
    ours.patch()
    late = types.ModuleType("toy.late")
    late.function = toy.function
    monkeypatch.setitem(sys.modules, "toy.late", late)
    ours.unpatch()
    assert late.function is original


@pytest.mark.parametrize("version", ["2.30", "2.2.9", "3.0", "1.2.3", "2.4rc1"])
def test_an_unknown_version_is_refused_with_the_known_ones(toy, version):
    toy.versions["toy-tools"] = version
    before = state(toy)
    with pytest.raises(VersionError, match=rf"toy-tools .* 2\.3\.\*, 1\.9\.\*, got {version}$"):
        library(toy, ("2.3", "1.9")).patch()
    assert state(toy) == before


@pytest.mark.parametrize("version", ["2.3", "2.3.0", "2.3.1.post1", "2.3+local"])
def test_a_known_version_is_taken(toy, version):
    toy.versions["toy-tools"] = version
    assert library(toy).patch().version == version
    library(toy)


def test_a_library_that_is_missing_is_named(toy):
    with pytest.raises(ModuleNotFoundError, match="no-toys is not installed: pip install no-toys"):
        library(toy, name="no-toys").patch()


def test_a_failure_half_way_changes_nothing(toy):
    before = state(toy)

    def replacements(extra):
        yield Replacement(toy.Thing, "own", lambda self: "new")
        if extra:
            yield Replacement(toy.Thing, "gone", lambda self: "new")

    ours = Library("toy-tools", ("2.3",), replacements, package="toy")
    with pytest.raises(VersionError, match=r"got 2\.3\.1\+cpu, which has no .*Thing\.gone"):
        ours.patch(extra=True)
    assert state(toy) == before
    ours.patch(extra=False)
    during = [*words(toy)]
    with pytest.raises(VersionError):
        ours.patch(extra=True)
    assert words(toy) == during
    assert ours.active.options == (("extra", False),)
    ours.unpatch()
    assert state(toy) == before


def test_what_someone_else_replaced_stays_theirs(toy, caplog):
    ours, theirs = library(toy), lambda self: "theirs"
    ours.patch()
    toy.Thing.own = theirs
    ours.unpatch()
    assert vars(toy.Thing)["own"] is theirs
    assert "own was replaced by someone else" in caplog.text
    assert toy.Thing().inherited() == "base"


def test_threads_that_patch_and_unpatch_leave_the_library_whole(toy):
    before, ours = state(toy), library(toy)

    def work():
        for _ in range(50):
            ours.patch()
            ours.unpatch()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert state(toy) == before


def test_no_library_is_imported_before_it_is_asked_for():
    code = (
        "import sys, vaefast, vaefast.integrations, pkgutil, importlib\n"
        "for found in pkgutil.iter_modules(vaefast.integrations.__path__):\n"
        "    if found.name != 'pyro':\n"
        "        importlib.import_module('vaefast.integrations.' + found.name)\n"
        "print([n for n in ('scvi', 'pyro', 'diffusers', 'pythae', 'lightning')"
        " if n in sys.modules])\n"
    )
    done = subprocess.run(python(code), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

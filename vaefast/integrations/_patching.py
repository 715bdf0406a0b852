"""Attributes of another library replaced, and put back: what all `patch()` functions share.

An integration describes what it replaces and leaves the rest to `Library`:

    def _replacements(compat: bool) -> Iterator[Replacement]:
        # Called by patch() alone, after the version was checked: the library is imported here.
        from pythae.models import VAE

        yield Replacement(VAE, "loss_function", _loss_function)

    _library = Library("pythae", versions=("0.1",), replacements=_replacements)

    def patch(*, compat: bool = False) -> Patch:
        \"\"\"...\"\"\"
        return _library.patch(compat=compat)

    def unpatch() -> Patch | None:
        \"\"\"...\"\"\"
        return _library.unpatch()

    def patched(*, compat: bool = False) -> AbstractContextManager[Patch]:
        \"\"\"...\"\"\"
        return _library.patched(compat=compat)
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import inspect
import logging
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

_log = logging.getLogger("vaefast.integrations")

# Of all libraries: they may share what they replace.
_lock = threading.RLock()


class VersionError(ImportError):
    """A library is there in a version that its integration does not know."""


def check_version(name: str, versions: Sequence[str], package: str) -> str:
    """The version of an installed distribution, as `Library` describes it.

    Raises:
        ModuleNotFoundError: it is not installed.
        VersionError: its version is not one of `versions`.
    """
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        raise ModuleNotFoundError(
            f"{name} is not installed: pip install {name}", name=package
        ) from None
    release = version.partition("+")[0]
    if not any(release == known or release.startswith(f"{known}.") for known in versions):
        raise _unknown(name, versions, package, version)
    return version


def _unknown(name: str, versions: Sequence[str], package: str, got: str) -> VersionError:
    known = ", ".join(f"{v}.*" for v in versions)
    return VersionError(
        f"{name} must be of a version that vaefast knows, {known}, got {got}", name=package
    )


@dataclass(frozen=True)
class Replacement:
    """An attribute of a class or module, and what stands in its place while patched.

    Args:
        owner: the class or module. What it inherits is hidden, not changed, in the class that has
            it, and inherited again afterwards.
        name: the attribute; it must exist.
        new: its value: for a class a function, property, staticmethod or classmethod, as in a class
            body. To call what it replaces, take that from `owner` before it is yielded.
        everywhere: replace it too in all modules of the library that have imported it, under any
            name, and put it back in those that do so while patched. For functions and classes.
    """

    owner: type | ModuleType
    name: str
    new: object
    everywhere: bool = False

    def __str__(self) -> str:
        if isinstance(self.owner, ModuleType):
            return f"{self.owner.__name__}.{self.name}"
        return f"{self.owner.__module__}.{self.owner.__qualname__}.{self.name}"


@dataclass(frozen=True)
class Patch:
    """What `patch()` has replaced.

    `replaced` names each attribute with its module; what a module had imported under a name of its
    own is named too.
    """

    library: str
    version: str
    replaced: tuple[str, ...]
    options: tuple[tuple[str, object], ...] = ()

    def __str__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.options)
        settings = f" with {options}" if options else ""
        return f"{self.library} {self.version}{settings}, replaced:" + "".join(
            f"\n  {name}" for name in self.replaced
        )

    __repr__ = __str__


_MISSING = object()


@dataclass(frozen=True)
class _Change:
    """A replacement made: `before` is what stood in the owner itself, or `_MISSING`."""

    replacement: Replacement
    before: object
    original: object


@dataclass(eq=False)
class _Block:
    """An open `patched()`, and what was in force when it began."""

    before: Patch | None


class Library:
    """One library's `patch()`, `unpatch()` and `patched()`.

    Args:
        name: the distribution, as pip knows it; its version is asked of the installed metadata.
        versions: the versions known: "1.4" is 1.4 and 1.4.anything.
        replacements: called with the options of `patch` by name, after the version was checked;
            gives what to replace. Here and nowhere sooner the library is imported.
        package: the package as it is imported, where it is not called as the distribution.
    """

    def __init__(
        self,
        name: str,
        versions: Sequence[str],
        replacements: Callable[..., Iterable[Replacement]],
        package: str | None = None,
    ) -> None:
        self.name = name
        self.versions = tuple(versions)
        self.package = package or name
        self._replacements = replacements
        self._changes: list[_Change] = []
        self._active: Patch | None = None
        self._blocks: list[_Block] = []

    @property
    def active(self) -> Patch | None:
        """What is replaced now, or None."""
        return self._active

    def patch(self, **options: object) -> Patch:
        """Replaces, and returns what. Once more with the same options it does nothing, with others
        it begins from the library's own again.

        Raises:
            ModuleNotFoundError: the library is not installed.
            VersionError: in a version that is not known, or without an attribute to be replaced;
                nothing is changed then.
        """
        settings = tuple(sorted(options.items()))
        with _lock:
            if self._active is not None and self._active.options == settings:
                return self._active
            version = check_version(self.name, self.versions, self.package)
            before = self._active
            self.unpatch()
            try:
                replaced = [
                    name
                    for replacement in self._replacements(**options)
                    for name in self._replace(replacement)
                ]
            except BaseException:
                self._restore()
                if before is not None:
                    self.patch(**dict(before.options))
                raise
            self._active = Patch(self.name, version, tuple(replaced), settings)
            _log.info("%s", self._active)
            return self._active

    def unpatch(self) -> Patch | None:
        """Puts back what stood there, and returns what that was, None where nothing was replaced.

        What someone else has replaced meanwhile stays theirs, with a warning in the log.
        """
        with _lock:
            was, self._active = self._active, None
            self._restore()
            return was

    @contextlib.contextmanager
    def patched(self, **options: object) -> Iterator[Patch]:
        """`patch` inside the block; after it what was before, another patch too. Also a decorator.

        The library is patched for all threads of the process. Of blocks that overlap, as those of
        two threads do, the last to begin says what holds until it ends, and what was before the
        first comes back after the last.
        """
        with _lock:
            block = _Block(self._active)
            now = self.patch(**options)
            self._blocks.append(block)
        try:
            yield now
        finally:
            with _lock:
                self._leave(block)

    def _leave(self, block: _Block) -> None:
        place = self._blocks.index(block)
        self._blocks.remove(block)
        if place < len(self._blocks):
            # The block that began next is still open: what it comes back to is what this one found.
            self._blocks[place].before = block.before
        elif block.before is None:
            self.unpatch()
        else:
            self.patch(**dict(block.before.options))

    def _replace(self, replacement: Replacement) -> Iterator[str]:
        owner, name, new = replacement.owner, replacement.name, replacement.new
        before = vars(owner).get(name, _MISSING)
        original = inspect.getattr_static(owner, name, _MISSING)
        if original is _MISSING:
            version = importlib.metadata.version(self.name)
            got = f"{version}, which has no {replacement}"
            raise _unknown(self.name, self.versions, self.package, got)
        self._changes.append(_Change(replacement, before, original))
        setattr(owner, name, new)
        yield str(replacement)
        if replacement.everywhere:
            for module, alias in self._holders(original):
                setattr(module, alias, new)
                yield f"{module.__name__}.{alias}"

    def _restore(self) -> None:
        while self._changes:
            change = self._changes.pop()
            owner, name, new = (
                change.replacement.owner,
                change.replacement.name,
                change.replacement.new,
            )
            if vars(owner).get(name, _MISSING) is not new:
                _log.warning("%s was replaced by someone else and is left so", change.replacement)
            elif change.before is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, change.before)
            if change.replacement.everywhere:
                for module, alias in self._holders(new):
                    setattr(module, alias, change.original)

    def _holders(self, value: object) -> list[tuple[ModuleType, str]]:
        """Where the library's modules hold `value`, without waking what is imported lazily."""
        inside = self.package + "."
        return [
            (module, alias)
            for path, module in list(sys.modules.items())
            if isinstance(module, ModuleType) and (path + ".").startswith(inside)
            for alias, held in list(_names(module))
            if held is value
        ]


def _names(module: ModuleType) -> Iterable[tuple[str, Any]]:
    return list(vars(module).items())

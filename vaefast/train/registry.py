"""What `vaefast train` knows by a name: models, objectives and backbones, a plugin's too."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from . import InputError

T = TypeVar("T")
R = TypeVar("R")


class Registry(Generic[T]):
    """Things of one kind by their names.

    Args:
        kind: what errors call one, such as `"model"`.
        settings: the names of an entry's settings.
        given: what `build` takes beside them.
    """

    def __init__(
        self,
        kind: str,
        settings: Callable[[T], Iterable[str]] = lambda entry: (),
        given: Iterable[str] = (),
    ) -> None:
        self.kind, self._settings, self._given = kind, settings, frozenset(given)
        self.entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[R], R]:
        """Decorator of a class or a function: makes it known by `name`, which a class keeps."""

        def add(entry: R) -> R:
            if isinstance(entry, type):
                entry.name = name  # type: ignore[attr-defined]
            self.entries[name] = entry  # type: ignore[assignment]
            return entry

        return add

    def registered(self) -> dict[str, T]:
        """Every entry by its name."""
        return dict(self.entries)

    def find(self, name: object) -> T:
        """The entry of this name.

        Raises:
            InputError: there is none.
        """
        if not isinstance(name, str) or name not in self.entries:
            raise InputError(f"{self.kind} must be one of {', '.join(self.entries)}, got {name!r}")
        return self.entries[name]

    def build(self, name: str, settings: dict[str, Any]) -> Any:
        """What the class of this name makes of the settings.

        Raises:
            InputError: there is none, or it has no such setting.
        """
        entry = self.find(name)
        known = list(self._settings(entry))
        unknown = settings.keys() - set(known) - self._given
        if unknown:
            raise InputError(
                f"{self.kind} {name} has no setting {', '.join(sorted(unknown))}; it has "
                f"{', '.join(known) or 'none'}"
            )
        return entry(**settings)  # type: ignore[operator]

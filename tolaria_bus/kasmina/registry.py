"""Which parameter belongs to which seed, by qualified name; all others are the host's."""

from collections.abc import Iterable

HOST = "host"


class Registry:
    """Ownership of a model's parameters."""

    def __init__(self) -> None:
        self._owner: dict[str, str] = {}

    def give(self, seed_id: str, names: Iterable[str]) -> None:
        """Make ``seed_id`` the owner of parameters.

        Raises:
            ValueError: one of them is another seed's already; nothing was given.
        """
        wanted = list(names)
        taken = [name for name in wanted if self._owner.get(name, seed_id) != seed_id]
        if taken:
            raise ValueError(f"owned already: {', '.join(taken)}")
        self._owner.update(dict.fromkeys(wanted, seed_id))

    def release(self, seed_id: str) -> tuple[str, ...]:
        """Forget a seed; return the names that were its, in the order in which they were given."""
        names = self.of(seed_id)
        for name in names:
            del self._owner[name]
        return names

    def of(self, seed_id: str) -> tuple[str, ...]:
        """Return the names of a seed's parameters."""
        return tuple(name for name, owner in self._owner.items() if owner == seed_id)

    def owner(self, name: str) -> str:
        """Return the id of the seed that owns a parameter, or ``HOST``."""
        return self._owner.get(name, HOST)

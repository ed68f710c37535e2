"""The seeds of a garden: a record of each, and what is known of its learning on the side."""

from collections.abc import Collection, Iterator
from dataclasses import replace

from tolaria_bus.kasmina.planting import Planting
from tolaria_bus.kasmina.records import SeedRecord
from tolaria_bus.kasmina.side import Health
from tolaria_bus.leyline import SeedLifecycleStage as Stage


class Seeds:
    """The seeds that aren't DORMANT, oldest first. Iterated over, it gives their records.

    Args:
        planting: Lets it be so in the model.

    Attributes:
        health: By seed, of those that have learned on the side.
    """

    def __init__(self, planting: Planting) -> None:
        self.health: dict[str, Health] = {}
        self._planting = planting
        self._records: dict[str, SeedRecord] = {}

    def __getitem__(self, seed_id: str) -> SeedRecord:
        return self._records[seed_id]

    def __iter__(self) -> Iterator[SeedRecord]:
        # Of a copy, so that seeds can be settled on the way.
        return iter(list(self._records.values()))

    def ids(self, stages: Collection[Stage.ValueType] | None = None) -> tuple[str, ...]:
        """Return the ids of the seeds in some stages; None: of all."""
        return tuple(
            seed_id
            for seed_id, seed in self._records.items()
            if stages is None or seed.stage in stages
        )

    def stage(self, seed_id: str) -> Stage.ValueType:
        """Return the stage of a seed; DORMANT if there is none of that id."""
        seed = self._records.get(seed_id)
        return Stage.SEED_STAGE_DORMANT if seed is None else seed.stage

    def tenants(self) -> dict[str, str]:
        """Return who holds which place, by its prefix: two names may mean one module."""
        return {
            self._planting.places.at(seed.slot).prefix: seed.seed_id
            for seed in self._records.values()
            if seed.holds_slot
        }

    def settle(self, record: SeedRecord) -> None:
        """Write a record down, and let it be so in the model."""
        if record.stage == Stage.SEED_STAGE_DORMANT:
            self._records.pop(record.seed_id, None)
        else:
            self._records[record.seed_id] = record
            self._planting.connect(record)
        if not record.grows:
            self.health.pop(record.seed_id, None)

    def forget(self) -> None:
        """Have no record any more; the model stays as it is."""
        self._records.clear()
        self.health.clear()

    def written(self) -> list[SeedRecord]:
        """Return the records with the numbers of their health. Waits for the device."""
        return [
            replace(seed, health=tuple(self.health[seed.seed_id].numbers()))
            if seed.seed_id in self.health
            else seed
            for seed in self._records.values()
        ]

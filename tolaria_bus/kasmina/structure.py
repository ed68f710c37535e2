"""What is in a garden, written down as JSON values and made again from them.

A garden is made again with the same parameter names and shapes in the same order, the same stages,
shares and countdowns; the weights come from a checkpoint.
"""

from collections.abc import Mapping
from typing import Any

from tolaria_bus.kasmina.planting import Planting
from tolaria_bus.kasmina.pruning import Shapes
from tolaria_bus.kasmina.records import Rebuilt, SeedRecord
from tolaria_bus.kasmina.seeds import Seeds
from tolaria_bus.kasmina.side import Health

VERSION = 2


def write(seeds: Seeds, shapes: Shapes) -> dict[str, Any]:
    """Return what is in the garden, oldest seed first. Waits for the device."""
    return {
        "version": VERSION,
        "seeds": [record.to_json() for record in seeds.written()],
        "shapes": shapes.written(),
    }


def rebuild(
    structure: Mapping[str, Any], seeds: Seeds, planting: Planting, shapes: Shapes
) -> Rebuilt:
    """Make the garden what ``structure`` says.

    Raises:
        ValueError: the structure is of an unknown version.
        SeedRefused: the model hasn't the slots that it needs.
    """
    version = structure.get("version")
    if version not in {1, VERSION}:
        raise ValueError(
            f"the structure of seeds has version {version!r}; allowed: at most {VERSION}"
        )
    records = [SeedRecord.from_json(entry) for entry in structure["seeds"]]
    reshaped = shapes.rebuild(structure.get("shapes", {}))
    planting.places.look_again()
    wanted = {record.seed_id: record for record in records}
    for seed in wanted.values():
        planting.places.at(seed.slot)
    same = {
        seed.seed_id
        for seed in seeds
        if seed.seed_id in wanted
        and seed.grows_as(wanted[seed.seed_id])
        # In a slot of another width it is another module.
        and seed.slot not in reshaped
    }
    removed = {
        seed.seed_id: planting.uproot(seed)
        for seed in seeds
        if seed.seed_id not in same and seed.grows
    }
    seeds.forget()
    grown = []
    for record in records:
        if record.grows and record.seed_id not in same:
            grown.append(planting.grow(record))
        if record.health:
            seeds.health[record.seed_id] = Health(record.health, planting.device)
        seeds.settle(record)
    return Rebuilt(removed, tuple(grown))

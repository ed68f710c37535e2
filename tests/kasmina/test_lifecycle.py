import pytest

from tolaria_bus.kasmina.lifecycle import AUTOMATIC, GATES, TRANSITIONS, refuse, stage_name
from tolaria_bus.leyline import SeedLifecycleStage as Stage
from tolaria_bus.leyline import SeedOperation as Operation

STAGES = [s for s in Stage.values() if s != Stage.SEED_STAGE_UNKNOWN]
OPERATIONS = [o for o in Operation.values() if o != Operation.SEED_OP_UNKNOWN]


def test_the_table_has_every_stage_and_every_operation_is_legal_somewhere():
    assert set(TRANSITIONS) == set(STAGES)
    assert {op for ways in TRANSITIONS.values() for op in ways} == set(OPERATIONS)


def test_the_straight_way_goes_from_dormant_to_fossilized():
    stage = Stage.SEED_STAGE_DORMANT
    for operation in (
        Operation.SEED_OP_GERMINATE,
        Operation.SEED_OP_START_TRAINING,
        Operation.SEED_OP_START_GRAFTING,
        Operation.SEED_OP_STABILIZE,
        Operation.SEED_OP_EVALUATE,
        Operation.SEED_OP_FINE_TUNE,
        Operation.SEED_OP_FOSSILIZE,
    ):
        assert refuse(stage, operation) is None
        stage = TRANSITIONS[stage][operation]
    assert stage == Stage.SEED_STAGE_FOSSILIZED


def test_every_stage_is_reached_and_every_end_is_meant():
    reached = {Stage.SEED_STAGE_DORMANT}
    while True:
        more = {n for s in reached for n in TRANSITIONS[s].values()}
        more |= {AUTOMATIC[s] for s in reached if s in AUTOMATIC}
        if more <= reached:
            break
        reached |= more
    assert reached == set(STAGES)
    ends = [s for s in STAGES if not TRANSITIONS[s] and s not in AUTOMATIC]
    assert ends == [Stage.SEED_STAGE_TERMINATED]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_is_not_in_the_table_is_refused_naming_what_is(stage, operation):
    why = refuse(stage, operation)
    if operation in TRANSITIONS[stage]:
        assert why is None
    else:
        assert why is not None
        assert stage_name(stage) in why
        for legal in TRANSITIONS[stage]:
            assert Operation.Name(legal).removeprefix("SEED_OP_") in why


def test_a_failed_seed_can_be_culled_until_it_is_a_part_of_the_host():
    cullable = {s for s in STAGES if Operation.SEED_OP_CULL in TRANSITIONS[s]}
    assert {stage_name(s) for s in cullable} == {
        "GERMINATED",
        "TRAINING",
        "BLENDING",
        "SHADOWING",
        "PROBATIONARY",
    }


def test_each_gate_guards_one_stage():
    assert len(set(GATES.values())) == len(GATES) == 6


def test_a_stage_from_a_newer_program_has_a_name_too():
    assert stage_name(Stage.ValueType(99)) == "99"

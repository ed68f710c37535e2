"""The tests of the bus on one server, once more: behind sentinels, and on a cluster."""

# ruff: noqa: F403
import pytest

from tests.oona.test_claims import *
from tests.oona.test_consumer import *
from tests.oona.test_consumer_failures import *
from tests.oona.test_dead_letters import *
from tests.oona.test_directory import *
from tests.oona.test_lease import *
from tests.oona.test_publisher import *
from tests.oona.test_publisher_outages import *
from tests.oona.test_settle import *
from tests.oona.topologies.conftest import empty_place

pytestmark = pytest.mark.slow


@pytest.fixture(params=("sentinel", "cluster"))
async def redis_url(request: pytest.FixtureRequest) -> str:
    return await empty_place(request, request.param)


ONE_SERVER = {
    "test_acknowledgements_can_go_in_groups": "counts the calls of one server",
    "test_a_sweep_goes_on_behind_what_the_living_have_and_starts_again_after_its_end": (
        "counts the calls of one server"
    ),
    "test_after_flushall_the_group_is_made_again_and_misses_nothing": "wipes in a transaction",
}


@pytest.fixture(autouse=True)
def fits(request: pytest.FixtureRequest) -> None:
    """Leave out what a cluster can't be asked."""
    why = ONE_SERVER.get(request.node.originalname)
    if why is not None and "[cluster" in request.node.name:
        pytest.skip(why)

import math
import struct

from google.protobuf import struct_pb2
from hypothesis import given
from hypothesis import strategies as st

from tolaria_bus.leyline import SystemStatePacket
from tolaria_bus.leyline.codec import from_json, hyperparameters, shortest_float, to_json

LARGEST = (2 - 2**-23) * 2.0**127  # IEEE 754, binary32


def float32(value: float) -> float:
    rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return rounded


def test_a_float_of_the_wire_is_read_as_what_was_meant() -> None:
    for value in (0.001, 0.1, 1e-8, 3e-4, 0.9, 0.999, 1e30, 16777216.0, 0.0, -0.95):
        assert float32(value) != value or value in (16777216.0, 0.0)
        assert shortest_float(float32(value)) == value


def test_the_largest_float_stays_one_and_is_read_again_from_json() -> None:
    for value in (LARGEST, -LARGEST):
        assert shortest_float(value) == value
        packet = SystemStatePacket(validation_loss=value)
        assert from_json(to_json(packet), SystemStatePacket) == packet


def test_what_is_no_float32_is_left_alone() -> None:
    for value in (0.1, 1e300, math.inf, -math.inf, math.pi):
        assert shortest_float(value) == value
    assert math.isnan(shortest_float(math.nan))


@given(st.floats(width=32, allow_nan=False))
def test_the_shortest_decimal_names_the_same_float32(value: float) -> None:
    short = shortest_float(value)
    if math.isfinite(value):
        assert float32(short) == value
        assert abs(short) <= LARGEST
    if abs(value) < LARGEST:
        assert len(repr(abs(short)).replace(".", "").lstrip("0").split("e")[0].rstrip("0")) <= 9


def test_exact_values_win_over_floats() -> None:
    values = struct_pb2.Struct()
    values.update({"lr": 0.25, "betas": [0.9, 0.999]})
    assert hyperparameters({"lr": float32(0.001), "eps": float32(1e-8)}, values) == {
        "lr": 0.25,
        "eps": 1e-8,
        "betas": [0.9, 0.999],
    }

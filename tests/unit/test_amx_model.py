"""The software model of Apple's AMX: answers worked out by hand from the public description, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from edgec import _core

if not hasattr(_core.kernels, "AmxModel"):
    pytest.skip("this build has no software model of AMX (make dev has)", allow_module_level=True)

LDX, LDY, STX, LDZ, STZ, LDZI, STZI, EXTRX = 0, 1, 2, 4, 5, 6, 7, 8
FMA32, MAC16, FMA16, SETCLR, VECFP, MATINT = 12, 14, 15, 17, 19, 20
PAIR, FOUR = 1 << 62, 1 << 62 | 1 << 60


def aligned(array: np.ndarray, to: int = 256) -> np.ndarray:
    room = np.zeros(array.nbytes + to, np.uint8)
    at = -room.ctypes.data % to
    out = room[at : at + array.nbytes].view(array.dtype).reshape(array.shape)
    out[...] = array
    return out


@pytest.fixture(params=[1, 2], ids=["M1", "M2"])
def amx(request):
    model = _core.kernels.AmxModel(request.param)
    model.execute(SETCLR, 0)
    return model


def z(model, dtype):
    return np.frombuffer(model.z, dtype).reshape(64, -1)


def load(model, op, array, register=0):
    data = np.zeros(64, np.uint8)
    data[: array.nbytes] = array.view(np.uint8)
    model.execute(op, data.ctypes.data | register << 56)


def test_set_clears_and_clr_spoils():
    model = _core.kernels.AmxModel()
    model.execute(SETCLR, 0)
    assert not any(model.x) and not any(model.z)
    model.execute(SETCLR, 1)
    assert set(model.z) == {255}
    with pytest.raises(_core.kernels.AmxFault, match="before set"):
        model.execute(FMA16, 0)


def test_loads_of_one_and_two_registers(amx):
    data = aligned(np.arange(256, dtype=np.uint8))
    amx.execute(LDX, data.ctypes.data + 1 | 3 << 56)  # one register needs no alignment
    assert amx.x[192:256] == bytes(range(1, 65))
    amx.execute(LDY, data.ctypes.data | 6 << 56 | PAIR)
    assert amx.y[384:] == bytes(range(128))


def test_loads_of_four_registers():
    data = aligned(np.arange(256, dtype=np.uint8))
    model = _core.kernels.AmxModel(2)
    model.execute(SETCLR, 0)
    model.execute(LDX, data.ctypes.data | 4 << 56 | FOUR)
    assert model.x[256:] == bytes(range(256))


def test_a_row_of_z_in_memory_and_its_halves(amx):
    row = np.arange(16, dtype=np.float32)
    amx.execute(LDZI, row.ctypes.data | 5 << 57)  # the left half of rows 10 and 11
    amx.execute(LDZI, (row := row + 16).ctypes.data | 5 << 57 | 1 << 56)
    both = z(amx, np.float32)
    assert both[10].tolist() == [*range(0, 16, 2), *range(16, 32, 2)]  # even lanes
    assert both[11].tolist() == [*range(1, 16, 2), *range(17, 32, 2)]
    out = np.zeros(16, np.float32)
    amx.execute(STZI, out.ctypes.data | 5 << 57 | 1 << 56)
    assert (out == row).all()
    rows = aligned(np.zeros((2, 16), np.float32))
    amx.execute(STZ, rows.ctypes.data | 10 << 56 | PAIR)
    assert (rows == both[10:12]).all()
    amx.execute(LDZ, rows.ctypes.data | 20 << 56 | PAIR)
    assert (z(amx, np.float32)[20:22] == rows).all()


def test_outer_product_of_f16_in_f32(amx):
    load(amx, LDX, np.arange(32, dtype=np.float16), 1)
    load(amx, LDY, (np.arange(32) * 100).astype(np.float16), 2)
    amx.execute(FMA16, 1 << 62 | 64 << 10 | 128)
    amx.execute(FMA16, 1 << 62 | 64 << 10 | 128)
    got = z(amx, np.float32)
    # row 2j + i % 2 has in lane i / 2 column i of row j: 2 * i * 100 j
    assert got[2 * 3][5] == 2 * 10 * 300 and got[2 * 3 + 1][5] == 2 * 11 * 300 and got[63][15] == 2 * 31 * 3100
    amx.execute(FMA16, 1 << 62 | 7 << 27)
    assert not z(amx, np.uint8).any()


def test_x_and_y_are_rings(amx):
    load(amx, LDX, np.full(32, 2, np.float16), 7)
    load(amx, LDX, np.full(32, 3, np.float16), 0)
    load(amx, LDY, np.full(32, 1, np.float16), 0)
    amx.execute(FMA16, 1 << 62 | (512 - 32) << 10)  # half of register 7, then half of register 0
    got = z(amx, np.float32)
    assert got[0].tolist() == [2] * 8 + [3] * 8 == got[1].tolist()


def test_copies_of_x_to_every_second_row(amx):
    x = np.arange(32, dtype=np.float16)
    load(amx, LDX, x, 5)
    amx.execute(FMA16, 3 << 27 | 1 << 20 | 320 << 10)
    got = z(amx, np.float16)
    assert (got[1::2] == x).all() and not got[::2].any()


NIBBLES = 1 << 53 | 1 << 48


def test_look_up_times_scale(amx):
    table = np.zeros(32, np.float16)
    table[:16] = np.arange(16) - 8
    load(amx, LDX, table, 7)
    load(amx, LDX, np.array([0x21, 0x43, 0xF8], np.uint8), 1)  # lanes 1, 2, 3, 4, 8, 15, then 0
    load(amx, LDY, (np.arange(32) + 1).astype(np.float16))
    amx.execute(VECFP, NIBBLES | 2 << 42 | 7 << 49 | 64 << 10 | 9 << 20)
    want = [-7, -6 * 2, -5 * 3, -4 * 4, 0, 7 * 6] + [-8.0 * (i + 1) for i in range(6, 32)]
    got = z(amx, np.float16)
    assert got[9].tolist() == want and not np.delete(got, 9, 0).any()


def test_look_up_of_four_vectors_by_one_y():
    model = _core.kernels.AmxModel(2)
    model.execute(SETCLR, 0)
    load(model, LDX, np.arange(32, dtype=np.float16), 7)
    load(model, LDX, np.repeat(np.array([0x11, 0x22, 0x33, 0x44], np.uint8), 16), 0)
    load(model, LDY, np.full(32, 10, np.float16))
    model.execute(VECFP, NIBBLES | 2 << 42 | 7 << 49 | 1 << 31 | 1 << 25 | 3 << 32 | 2 << 20)
    got = z(model, np.float16)
    for row, value in ((2, 10), (18, 20), (34, 30), (50, 40)):
        assert (got[row] == value).all()


def test_bytes_by_a_table(amx):
    table = np.arange(64, dtype=np.int8)
    table[:16] = [-16, -12, -10, -8, -6, -4, -2, -1, 0, 1, 3, 5, 7, 9, 12, 16]
    load(amx, LDX, table, 7)
    load(amx, LDX, np.full(32, 0xF0, np.uint8), 0)  # lanes -16, 16, -16, ...
    load(amx, LDY, np.arange(64, dtype=np.int8) - 20)
    amx.execute(MATINT, 1 << 63 | 1 << 26 | 1 << 54 | NIBBLES | 10 << 42 | 7 << 49)
    got = z(amx, np.int32)
    # every fourth lane of y; column i in row 4j + i % 4
    assert (got[0] == -16 * -20).all() and (got[1] == 16 * -20).all() and (got[4 * 15 + 3] == 16 * 40).all()


def test_outer_product_of_f32(amx):
    load(amx, LDX, np.arange(16, dtype=np.float32))
    load(amx, LDY, np.full(16, 0.5, np.float32))
    amx.execute(FMA32, 2 << 20)
    got = z(amx, np.float32)
    assert (got[2::4] == np.arange(16) / 2).all() and not np.delete(got, np.s_[2::4], 0).any()


def test_a_row_of_z_to_x(amx):
    row = np.arange(16, dtype=np.uint32)
    amx.execute(LDZ, row.ctypes.data | 33 << 56)
    amx.execute(EXTRX, 2 << 28 | 33 << 20 | 320 << 10)
    assert amx.x[320:384] == row.tobytes()


PLACE = aligned(np.zeros(512, np.uint8))
AT = PLACE.ctypes.data


REFUSED = [
    (LDX, AT + 64 | PAIR, "aligned"),
    (LDX, AT + 128 | FOUR, "four registers|aligned"),
    (STZ, AT + 8 | PAIR, "aligned"),
    (LDX, AT | 7 << 56 | PAIR, "beyond the last"),
    (STZ, AT | 63 << 56 | PAIR, "beyond the last"),
    (STX, AT | FOUR, "never stored|four registers"),
    (LDX, AT | 1 << 60, "bit 60"),
    (LDX, AT | 1 << 61 | PAIR, "ignored"),
    (LDZI, AT | PAIR, "ignored"),
    (FMA16, 1 << 63, "vector mode"),
    (FMA16, 1 << 62 | 1 << 32, "write masks"),
    (FMA16, 1 << 62 | 1 << 29, "all or none"),
    (FMA16, 0, "only copies"),
    (FMA32, 4 << 20, "beyond the first four"),
    (FMA32, 1 << 61, "not modelled"),
    (VECFP, 2 << 42, "only x by indices"),
    (VECFP, NIBBLES | 4 << 42, "only lanes of f16"),
    (VECFP, NIBBLES | 2 << 42 | 1 << 54, "do nothing"),
    (MATINT, NIBBLES, "only x by indices"),
    (MATINT, 1 << 54 | NIBBLES | 10 << 42, "signed"),
    (EXTRX, 0, "whole rows"),
    (MAC16, 0, "not modelled"),
    (31, 0, "not modelled"),
    (SETCLR, 0, "set although it is set"),
    (SETCLR, 2, "neither"),
]


@pytest.mark.parametrize(("op", "value", "reason"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_what_it_refuses(amx, op, value, reason):
    with pytest.raises(_core.kernels.AmxFault, match=rf"AMX op {op}, operand {value:016x}: .*({reason})"):
        amx.execute(op, value)


def test_what_an_m1_lacks():
    model = _core.kernels.AmxModel(1)
    model.execute(SETCLR, 0)
    for op, value in ((LDX, AT | FOUR), (VECFP, NIBBLES | 2 << 42 | 1 << 31 | 1 << 25 | 3 << 32)):
        with pytest.raises(_core.kernels.AmxFault, match="M1"):
            model.execute(op, value)

"""The library's front: tables of any kind in, a table of that kind out."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from astropy import units as u
from astropy.table import MaskedColumn, QTable, Table
from astropy.time import Time

from skycairn.match.crossmatch import crossmatch

A = {"id": [11, 12, 13], "ra": [10.0, 20.0, 30.0], "dec": [0.0, 5.0, -5.0]}
B = {"id": [7, 8, 9, 6], "ra": [10.0001, 20.0, 20.00005, 200.0], "dec": [0.0, 5.0, 5.0, 0.0]}


@pytest.mark.parametrize("kind", [pa.table, pd.DataFrame, Table, QTable])
def test_a_table_of_the_same_kind_comes_back(kind) -> None:
    got = crossmatch(kind(A), kind(B), 1.0)
    assert isinstance(got, pa.Table if kind is pa.table else kind if kind is not QTable else Table)
    names = got.column_names if kind is pa.table else list(getattr(got, "colnames", got.columns))
    assert names[:6] == ["id_left", "ra_left", "dec_left", "id_right", "ra_right", "dec_right"]
    assert [int(x) for x in np.asarray(got["id_left"])] == [11, 12]
    assert [int(x) for x in np.asarray(got["id_right"])] == [7, 8]
    assert np.asarray(got["separation_uas"]).tolist() == [360000, 0]


def test_a_radius_may_bear_its_unit() -> None:
    tables = pa.table(A), pa.table(B)
    assert crossmatch(*tables, (0.5 / 3600) * u.deg).equals(crossmatch(*tables, 0.5))
    with pytest.raises(u.UnitsError, match="not convertible"):
        crossmatch(*tables, 1 * u.s)


def test_what_is_kept() -> None:
    def kept(keep: str) -> list[tuple[int, int]]:
        pairs = crossmatch(pa.table(A), pa.table(B), 1.0, keep=keep, columns="pairs")
        return list(zip(pairs["left_row"].to_pylist(), pairs["right_row"].to_pylist(), strict=True))

    assert kept("all") == [(0, 0), (1, 1), (1, 2)]
    assert kept("nearest") == kept("mutual") == [(0, 0), (1, 1)]
    # seen from the other side, two rows have the same nearest
    turned = crossmatch(pa.table(B), pa.table(A), 1.0, keep="nearest", columns="pairs")
    assert turned["left_row"].to_pylist() == [0, 1, 2]
    with pytest.raises(ValueError, match="errors are not known"):
        kept("posterior")
    with pytest.raises(ValueError, match="keep is 'best'"):
        kept("best")


def test_names_and_units_are_understood() -> None:
    left = Table({"RAJ2000": [600.0, 1200.0] * u.arcmin, "DEC": [0.0, 5.0] * u.deg})
    left["e"] = [100.0, 100.0] * u.mas
    right = pd.DataFrame({"Ra": [10.0, 20.00002], "Dec": [0.0, 5.0], "ra_error": [0.1, 0.1], "dec_error": [0.1, 0.1]})
    names = {"ra": "RAJ2000", "ra_error": "e", "dec_error": "e"}
    pairs = crossmatch(left, right, 1.0, left_names=names, columns="pairs")
    # whether a frame's errors are in arcsec, or in mas as Gaia's, only the caller knows
    assert np.isnan(pairs["sigmas"]).all()
    told = {"ra_error": "ra_error", "dec_error": "dec_error"}
    pairs = crossmatch(left, right, 1.0, left_names=names, right_names=told, columns="pairs")
    assert isinstance(pairs, Table) and len(pairs) == 2
    separation = 0.00002 * 3600 * np.cos(np.radians(5))
    assert pairs["sigmas"][1] == pytest.approx(separation / np.hypot(0.1, 0.1), rel=1e-5)
    with pytest.raises(TypeError, match=r"left is of astropy \(Table\), right of pandas"):
        crossmatch(left, right, 1.0, left_names=names)


def test_motion_of_an_astropy_table() -> None:
    star = Table({"ra": [100.0] * u.deg, "dec": [0.0] * u.deg, "pmra": [1.0] * u.arcsec / u.yr})
    star["pmdec"] = MaskedColumn([0.0], unit="mas/yr")
    star["epoch"] = Time([2016.0], format="jyear")
    then = Table({"ra": [100 - 10 / 3600] * u.deg, "dec": [0.0] * u.deg, "epoch_min": [2006.0], "epoch_max": [2006.0]})
    assert crossmatch(star, then, 0.01)["separation_uas"].tolist() == [0]
    star["pmdec"].mask = True
    assert len(crossmatch(star, then, 1.0)) == 0


def test_the_epoch_of_a_table_at_rest_is_when_its_positions_hold() -> None:
    star = pa.table({"ra": [100.0], "dec": [0.0], "pmra": [1000.0], "pmdec": [0.0], "ref_epoch": [2016.0]})
    then = pa.table({"ra": [100 - 10 / 3600], "dec": [0.0], "Epoch": [2006.0]})
    assert crossmatch(star, then, 0.01)["separation_uas"].to_pylist() == [0]
    assert crossmatch(then, star, 0.01)["separation_uas"].to_pylist() == [0]
    assert crossmatch(star, then, 1.0, right_names={"epoch": None}).num_rows == 0
    # of a row without a motion in a table that has some (Gaia's of two parameters)
    both = pa.table({"ra": [50.0, 100 - 10 / 3600], "dec": [0.0] * 2, "pmra": [1.0, None], "pmdec": [1.0, None]})
    both = both.append_column("ref_epoch", pa.array([2006.0, 2006.0]))
    assert crossmatch(star, both, 0.01)["separation_uas"].to_pylist() == [0]
    # of a table whose motions are left out too; and an interval goes before an epoch
    named = {"pmra": None, "pmdec": None}
    assert crossmatch(star, then, 1.0, left_names=named).num_rows == 0
    until = then.append_column("epoch_max", pa.array([2016.0])).append_column("epoch_min", pa.array([2015.0]))
    assert crossmatch(star, until, 1.0).num_rows == 0
    with pytest.raises(ValueError, match="left has pmra and not the other half of the motion"):
        crossmatch(star.drop_columns("pmdec"), then, 1.0)


def test_keys_settle_ties_and_are_never_floats() -> None:
    twice = pa.table({"k": pa.array([2**63 - 1, 2**63 - 2]), "ra": [5.0, 5.0], "dec": [5.0, 5.0]})
    one = pa.table({"ra": [5.0], "dec": [5.0]})
    assert crossmatch(one, twice, 1.0)["right_row"].to_pylist() == [0]
    assert crossmatch(one, twice, 1.0, right_names={"key": "k"})["right_row"].to_pylist() == [1]
    frame = twice.to_pandas()
    assert crossmatch(one.to_pandas(), frame, 1.0, right_names={"key": "k"})["right_row"].tolist() == [1]
    floats = frame.assign(k=[1.0, 2.0])
    with pytest.raises(ValueError, match=r"right: k is float64; wanted integers"):
        crossmatch(one.to_pandas(), floats, 1.0, right_names={"key": "k"})
    large = frame.assign(k=np.array([1, 2**63], np.uint64))
    with pytest.raises(ValueError, match=r"right: k at row 1 is 9223372036854775808; wanted below"):
        crossmatch(one.to_pandas(), large, 1.0, right_names={"key": "k"})


def test_bad_input_is_told_in_words() -> None:
    good = pa.table(A)
    with pytest.raises(ValueError, match=r"right at row 1: ra nan"):
        crossmatch(good, pd.DataFrame({"ra": [1.0, np.nan], "dec": [1.0, 1.0]}), 1.0, columns="pairs")
    with pytest.raises(ValueError, match=r"right at row 0: ra 1.0, dec nan"):
        masked = Table({"ra": [1.0], "dec": MaskedColumn([1.0], mask=[True])})
        crossmatch(Table(A), masked, 1.0)
    with pytest.raises(ValueError, match=r"right has no column 'dec'; it has ra. Name it: right_names"):
        crossmatch(good, pa.table({"ra": [1.0]}), 1.0)
    with pytest.raises(ValueError, match=r"left has no column 'RAJ'; it has id, ra, dec"):
        crossmatch(good, good, 1.0, left_names={"ra": "RAJ"})
    with pytest.raises(ValueError, match=r"left: names of raj; wanted some of key, ra"):
        crossmatch(good, good, 1.0, left_names={"raj": "ra"})
    with pytest.raises(ValueError, match=r"right has columns Ra, RA; say which is 'ra'"):
        crossmatch(pd.DataFrame(A), pd.DataFrame({"Ra": [1.0], "RA": [1.0], "dec": [1.0]}), 1.0)
    with pytest.raises(ValueError, match=r"right: ra is in 'm'; wanted what converts to 'deg'"):
        crossmatch(Table(A), Table({"ra": [1.0] * u.m, "dec": [1.0]}), 1.0)
    with pytest.raises(ValueError, match=r"left: ra is string; wanted numbers"):
        crossmatch(pa.table({"ra": ["x"], "dec": [1.0]}), good, 1.0)
    for kind in (pd.DataFrame, Table):
        with pytest.raises(ValueError, match=r"right: ra is .*; wanted numbers \(.*'00 10 22.3'"):
            crossmatch(kind(A), kind({"ra": ["00 10 22.3"], "dec": ["+10 22 33"]}), 1.0)
    with pytest.raises(ValueError, match="columns is 'left'; wanted 'both' or 'pairs'"):
        crossmatch(good, good, 1.0, columns="left")
    with pytest.raises(ValueError, match=r"right at row 0: ra_error is 0.0 arcsec; wanted above 0"):
        zero = pa.table({"ra": [1.0], "dec": [1.0], "ra_error": [0.0], "dec_error": [1.0]})
        crossmatch(good, zero, 1.0, right_names={"ra_error": "ra_error"})
    moving = pa.table({"ra": [1.0], "dec": [1.0], "pmra": [5.0], "pmdec": [5.0]})
    with pytest.raises(ValueError, match=r"left has motions and no column 'epoch' or 'ref_epoch'"):
        crossmatch(moving, good, 1.0)
    assert crossmatch(moving, good, 1.0, left_names={"pmra": None, "pmdec": None}).num_rows == 0
    with pytest.raises(ValueError, match=r"left at row 0: epoch is 57388.0; wanted a Julian year"):
        crossmatch(moving.append_column("ref_epoch", pa.array([57388.0])), good, 1.0)
    with pytest.raises(ValueError, match=r"left: epoch is in 'd'; wanted Julian years"):
        crossmatch(Table(moving.to_pydict() | {"epoch": [57388.0] * u.d}), Table(A), 1.0)
    for kind in (pa.table, pd.DataFrame, Table):
        with pytest.raises(ValueError, match=r"right: ra is float.*; wanted float64"):
            single = {"ra": np.array([1.0], np.float32), "dec": np.array([1.0])}
            crossmatch(kind(A), kind(single), 1.0)
    with pytest.raises(TypeError, match="a table is a dict; wanted"):
        crossmatch(A, good, 1.0)
    with pytest.raises(ValueError, match="left_row twice; choose other suffixes"):
        crossmatch(good.append_column("left_row", pa.array([1, 2, 3])), good, 1.0)


@pytest.mark.parametrize("kind", [pa.table, pd.DataFrame, Table])
def test_empty_tables(kind) -> None:
    none = kind({"id": np.zeros(0, int), "ra": np.zeros(0), "dec": np.zeros(0)})
    for left, right in ((none, kind(B)), (kind(A), none), (none, none)):
        for keep in ("mutual", "posterior"):
            assert len(crossmatch(left, right, 1.0, keep=keep)) == 0


def test_the_example_of_the_readme() -> None:
    section = (Path(__file__).parents[2] / "README.md").read_text().split("## Cross-match alone")[1]
    code, printed = section.split("```python\n")[1].split("```")[0], section.split("```\n")[2].split("```")[0]
    said: list[str] = []
    exec(code, {"print": lambda table: said.extend(table.pformat(max_lines=-1, max_width=-1))})
    assert [line.rstrip() for line in said] == [line.rstrip() for line in printed.strip("\n").splitlines()]

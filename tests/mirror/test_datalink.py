"""DataLink, asked by astroquery's own client, and the files that it gives."""

import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from astropy.table import Table
from requests.exceptions import HTTPError

from skycairn.mirror.datalink import DataLink, product
from skycairn.mirror.server import Mirror
from skycairn.mirror.tap import gaia_spectra

GAIA = "gea.esac.esa.int"
BIG = 2**63 - 1
COEFFICIENTS = [0.1 + 0.2, 1e-300, *np.arange(53.0)]
SPECTRA = pa.table(
    {
        "source_id": pa.array([BIG, BIG - 1], pa.int64()),
        "bp_coefficients": pa.array([COEFFICIENTS, None], pa.list_(pa.float64())),
        "bp_n_relevant_bases": pa.array([12, None], pa.int16()),
        "rp_coefficients": pa.array([COEFFICIENTS] * 2, pa.list_(pa.float64())),
    }
)


@pytest.fixture
def datalink() -> DataLink:
    return DataLink(lambda: SPECTRA)


@pytest.fixture
def gaia(datalink: DataLink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.chdir(tmp_path)

    def refuse(self: object) -> None:
        raise OSError("no network in tests")

    with Mirror({}, {GAIA: [datalink]}) as mirror, monkeypatch.context() as patch:
        patch.setattr("http.client.HTTPSConnection.connect", refuse)
        from astroquery.gaia import GaiaClass

        context = {"tap_server_context": f"{GAIA}/tap-server", "data_server_context": f"{GAIA}/data-server"}
        yield GaiaClass(gaia_tap_server=mirror.url, gaia_data_server=mirror.url, show_server_messages=False, **context)


def load(gaia: Any, ids: list[int], structure: str, form: str) -> dict[str, Any]:
    return dict(
        gaia.load_data(
            ids, data_release="Gaia DR3", data_structure=structure, retrieval_type="XP_CONTINUOUS", format=form
        )
    )


@pytest.mark.parametrize(("form", "suffix"), [("csv", "csv"), ("votable", "xml")])
def test_products_as_astroquery_reads_them(gaia: Any, form: str, suffix: str, tmp_path: Path) -> None:
    one = load(gaia, [BIG, 7, BIG - 1], "INDIVIDUAL", form)
    assert set(one) == {f"XP_CONTINUOUS-Gaia DR3 {i}.{suffix}" for i in (BIG, BIG - 1)}
    raw = load(gaia, [BIG, 7, BIG - 1], "RAW", form)
    assert list(raw) == [f"XP_CONTINUOUS_RAW.{suffix}"]
    (table,) = raw[f"XP_CONTINUOUS_RAW.{suffix}"]
    table = table if isinstance(table, Table) else table.to_table()
    rows = {int(row["source_id"]): row for row in table}
    assert set(rows) == {BIG, BIG - 1}
    assert rows[BIG]["bp_n_relevant_bases"] == 12 and np.ma.is_masked(rows[BIG - 1]["bp_n_relevant_bases"])
    cell = rows[BIG]["rp_coefficients"]
    values = [float(x) for x in cell.strip("()").split(",")] if isinstance(cell, str) else cell.tolist()
    assert values == COEFFICIENTS
    assert list(tmp_path.iterdir()) == []


def test_no_source_has_one(gaia: Any) -> None:
    assert load(gaia, [7], "RAW", "csv") == {}


def test_the_most_ids_of_one_call(gaia: Any, datalink: DataLink) -> None:
    assert load(gaia, list(range(1, 5001)), "RAW", "csv") == {}
    with pytest.raises(HTTPError, match=r"Error 400:\sThe number of identifiers, 5001, is above the limit of 5000"):
        load(gaia, list(range(1, 5002)), "RAW", "csv")
    assert datalink.batches == [5000, 5001]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"retrieval_type": "RVS"}, "RVS is not served"),
        ({"data_release": "Gaia DR2"}, "Unknown RELEASE"),
        ({"format": "fits"}, "Unsupported"),
        ({"ids": "1, x"}, "Invalid ID: 'x'"),
    ],
)
def test_what_is_refused(gaia: Any, given: dict[str, str], message: str) -> None:
    asked = {"ids": [1], "retrieval_type": "XP_CONTINUOUS", "data_structure": "RAW", "format": "csv", **given}
    with pytest.raises(HTTPError, match=message):
        gaia.load_data(**asked)


def test_names_and_columns_are_those_of_real_products(real_data: Path, tiny_sky: Path) -> None:
    folder = real_data / "gaia/astroquery-datalink"
    spectra = gaia_spectra(tiny_sky / "gaia")
    for kind, suffix in (("csv", "csv"), ("ecsv", "ecsv"), ("vot", "xml")):
        with zipfile.ZipFile(folder / f"gaia_dr3_source_id_5937083312263887616_dl_products_{kind}.zip") as zipped:
            name = f"XP_CONTINUOUS-Gaia DR3 5937083312263887616.{suffix}"
            real = zipped.read(name)
        ours = product(spectra.slice(0, 1), suffix)
        form = {"csv": "ascii.csv", "ecsv": "ascii.ecsv", "xml": "votable"}[suffix]
        read = [Table.read(BytesIO(text), format=form) for text in (real, ours)]
        assert read[0].colnames == read[1].colnames
        for column in read[0].colnames if suffix != "csv" else ():
            assert read[0][column].dtype == read[1][column].dtype, column

"""Real catalogues, each against astropy's match, pair for pair; the counts are recorded."""

from pathlib import Path

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.table import Table

from skycairn.match.crossmatch import crossmatch

HSC = "hsc/lsst-afw-catalogs/matchedCatalogTract_0_{}.fits.gz"
HOSTS = "legacysurvey/hosts-dr8/selected_hosts_dr8_{}.fits"
BRIGHT = "legacysurvey/hosts-dr8/selected_bgsbright_targets_dr8.fits"
ZOO = "galaxyzoo/gz2-stripe82/table5.fits.gz"


def read(path: Path) -> Table:
    table = Table.read(path, hdu=1)
    ra, dec = (next(table[n] for n in names if n in table.colnames) for names in (("ra", "RA"), ("dec", "DEC")))
    # Galaxy Zoo's are single precision, in which astropy would go on to reckon
    return Table({"ra": np.asarray(ra, float) * u.deg, "dec": np.asarray(dec, float) * u.deg})


def visits(path: Path) -> tuple[list[Table], list[np.ndarray]]:
    """Sources of each visit (radians), one a source of the sky, and the number that LSST's own matcher gave it."""
    table = Table.read(path, hdu=1)
    tables, objects = [], []
    for visit in np.unique(table["visit"]):
        mine = table[table["visit"] == visit]
        tables.append(Table({"ra": mine["coord_ra"].quantity, "dec": mine["coord_dec"].quantity}))
        objects.append(np.asarray(mine["object"]))
    return tables, objects


def astropys(left: Table, right: Table, radius_arcsec: float) -> set[tuple[int, int]]:
    """Nearest neighbours on both sides."""
    a, b = (SkyCoord(t["ra"], t["dec"]) for t in (left, right))
    there, apart, _ = a.match_to_catalog_sky(b)
    back, _, _ = b.match_to_catalog_sky(a)
    near = np.flatnonzero((apart.arcsec <= radius_arcsec) & (back[there] == np.arange(there.size)))
    return set(zip(near.tolist(), there[near].tolist(), strict=True))


@pytest.mark.parametrize(
    ("a", "b", "n_pairs", "n_mutual"),
    [
        (HOSTS.format("north"), HOSTS.format("south"), 686, 563),
        (ZOO, HOSTS.format("south"), 45, 35),
        (ZOO, HOSTS.format("north"), 15, 12),
        (BRIGHT, HOSTS.format("south"), 3104, 2555),
    ],
    ids=["Legacy north, south", "Galaxy Zoo, Legacy south", "Galaxy Zoo, Legacy north", "bright targets, Legacy south"],
)
def test_nearest_neighbours_are_astropys(real_data: Path, a: str, b: str, n_pairs: int, n_mutual: int) -> None:
    """These lists hold some galaxies twice, of which astropy takes any and we the first: separations are compared."""
    left, right = read(real_data / a), read(real_data / b)
    pairs = crossmatch(left, right, 1.0, keep="all", columns="pairs")
    assert (len(pairs), int(pairs["mutual"].sum())) == (n_pairs, n_mutual)
    places = [SkyCoord(t["ra"], t["dec"]) for t in (left, right)]
    for own, (from_, to) in {"left": places, "right": places[::-1]}.items():
        apart = from_.match_to_catalog_sky(to)[1].to_value(u.uas)
        nearest = pairs[pairs[f"{own}_rank"] == 1]
        assert sorted(nearest[f"{own}_row"]) == np.flatnonzero(apart <= 1e6).tolist()
        assert np.abs(nearest["separation_uas"] - apart[nearest[f"{own}_row"]]).max() < 1
    everything = places[1].search_around_sky(places[0], 1 * u.arcsec)
    assert set(zip(pairs["left_row"], pairs["right_row"], strict=True)) == set(zip(*everything[:2], strict=True))


@pytest.mark.parametrize(
    ("band", "counts"),
    [
        ("r", [(1183, 1183, 1189), (562, 562, 564), (411, 406, 413)]),
        ("i", [(919, 919, 922), (497, 497, 498), (288, 286, 289)]),
    ],
)
def test_visits_of_hsc_are_matched_as_by_astropy(
    real_data: Path, band: str, counts: list[tuple[int, int, int]]
) -> None:
    """Beside: how many of the pairs are of one object by LSST's own matcher of many visits, and how many it has."""
    tables, objects = visits(real_data / HSC.format(band))
    found = []
    for i, j in ((0, 1), (0, 2), (1, 2)):
        every = crossmatch(tables[i], tables[j], 1.0, keep="all", columns="pairs")
        pairs = every[every["mutual"]]
        ours = list(zip(pairs["left_row"].tolist(), pairs["right_row"].tolist(), strict=True))
        # some sources are there twice, at one place: astropy takes any of them, we the first
        second = every[(every["left_rank"] == 2) | (every["right_rank"] == 2)]
        tied = {(p, s) for p, s in second.iterrows("left_row", "separation_uas")}
        clear = {(p, q) for p, q, s in pairs.iterrows("left_row", "right_row", "separation_uas") if (p, s) not in tied}
        theirs = astropys(tables[i], tables[j], 1.0)
        assert clear <= theirs and len(ours) - len(clear) <= 8 and len(theirs) == len(ours)
        same = sum(int(objects[i][p] == objects[j][q]) for p, q in ours)
        found.append((len(ours), same, np.intersect1d(objects[i], objects[j]).size))
    assert found == counts

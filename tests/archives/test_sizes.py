"""How much, how long: against sums by hand."""

import pytest

from skycairn.archives.sizes import amount, bytes_in_words, of, payload_amount, typical, warnings

NERSC = "portal.nersc.gov"


def test_all_of_the_legacy_surveys_coadds_take_the_better_part_of_a_year_or_more() -> None:
    told = payload_amount("legacysurvey", NERSC, 41_253)
    # 366,898 bricks of 13 files and a list; 550 files an hour
    assert told.files == 366_898 * 14
    assert told.hours == pytest.approx(366_898 * 14 / 550) and 300 < told.hours / 24 < 500
    # 60 TB are all 58 files of a brick; image and invvar are less than half of that
    assert 20e12 < told.bytes < 60e12
    assert str(told).startswith("at most 5,136,572 files, at most 27.3 TB, about 389 days")
    # 60 TB at the 15 GB an hour of two connections
    assert of(NERSC, 1, 60e12).hours / 24 == pytest.approx(166.7, abs=0.1)


def test_the_sweeps_take_days() -> None:
    told = amount(NERSC, [f"south/sweep/10.1/sweep-{i:03d}m005-005p000.fits" for i in range(1436)])
    assert told.bytes == pytest.approx(1.58e12, rel=0.01) and 4 < told.hours / 24 < 5


def test_gaia_s_files_add_up_to_what_the_archive_has() -> None:
    names = [f"gaia_source/GaiaSource_{i:06d}-{i:06d}.csv.gz" for i in range(3386)]
    assert amount("cdn.gea.esac.esa.int", names).bytes == pytest.approx(753_025_661_884, rel=0.01)


def test_where_no_survey_looked_there_is_nothing_to_fetch() -> None:
    assert payload_amount("gaia", "cdn.gea.esac.esa.int", 1000).files == 0
    assert payload_amount("hsc", "hsc-release.mtk.nao.ac.jp", 41_253).bytes == pytest.approx(44.6e12, rel=0.01)


def test_one_degree_is_no_matter_of_months() -> None:
    told = payload_amount("legacysurvey", NERSC, 1.0)
    assert told.files == 16 * 14 and told.hours < 1 and not warnings("legacysurvey", NERSC, told)


def test_what_is_hopeless_by_https_names_globus_and_the_list() -> None:
    [line] = warnings("legacysurvey", NERSC, payload_amount("legacysurvey", NERSC, 41_253))
    assert "9d6d994a-6d04-11e5-ba46-22000b92c6ec" in line and "skycairn fetch --list" in line
    assert not warnings("legacysurvey", NERSC, of(NERSC, 550 * 24 * 30, 0))
    assert warnings("legacysurvey", NERSC, of(NERSC, 550 * 24 * 30 + 550, 0))


def test_sdss_wants_to_be_written_to_above_a_terabyte() -> None:
    host = "data.sdss.org"
    assert not warnings("sdss", host, of(host, 10, 1e12))
    [line] = warnings("sdss", host, of(host, 10, 1.1e12))
    assert "help desk" in line and "1.00 TB" in line


@pytest.mark.parametrize(
    ("path", "size"),
    [
        ("south/coadd/000/0000m012/legacysurvey-0000m012-image-g.fits.fz", 9e6),
        ("south/coadd/000/0000m012/legacysurvey-0000m012-maskbits.fits.fz", 0.5e6),
        ("south/coadd/000/0000m012/legacysurvey_dr10_south_coadd_000_0000m012.sha256sum", 6e3),
        ("gaia_source/_MD5SUM.txt", 6e3),
        ("zcatalog/v1/zall-pix-iron.fits", 20.8e9),
        ("a/of no known kind", 1e6),
    ],
)
def test_typical(path: str, size: float) -> None:
    assert typical(path) == size


@pytest.mark.parametrize(
    ("n", "words"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.00 kB"), (217e6, "217 MB"), (20.8e9, "20.8 GB"), (6e13, "60.0 TB")],
)
def test_bytes_in_words(n: float, words: str) -> None:
    assert bytes_in_words(n) == words

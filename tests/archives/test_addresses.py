"""Addresses of the archives' files, as they are asked for, against those that the archives and their users publish.

Written out here, and never made by the code under test. Each has the source that vouches for it:
LS: legacysurvey.org/dr10/files. LS-obs: public journals of downloads from the portal, one quoting D. Lang. DD: DESI's
data model. DDOC: data.desi.lbl.gov/doc. DSRC: desihub/desida, the script that writes DESI's lists. S4: sdss4.org/dr17,
spectro and data_access/bulk. MMU: MultimodalUniverse's scripts, which fetched them. AQ: astroquery. HF-GS: the card of
astro-legacy-archive/gaia-dr3-source. GST: public code that reads Gaia's CDN. HDOC: hsc-release.mtk.nao.ac.jp/doc. UN:
dr-guangtou/unagi. LSDB: astronomy-commons/lsdb. DL: datalab.noirlab.edu.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from skycairn.archives import datalab, gaiaquery, hatssource, sdssquery
from skycairn.archives.cache import Cache
from skycairn.archives.hosts import HOSTS
from skycairn.archives.hscjobs import HscDatabase
from skycairn.archives.remote import RemoteArchive
from skycairn.catalogs import desi, gaia, legacyfiles, sdss
from skycairn.catalogs.gaia import Gaia, gaia_hpx
from skycairn.catalogs.hscfiles import TRACT_PATCHES, calexp_path
from skycairn.catalogs.registry import survey
from skycairn.catalogs.survey import WORK_ORDER

LS = legacyfiles.LAYOUTS
LS10 = "https://portal.nersc.gov/cfs/cosmo/data/legacysurvey/dr10"
LS9 = "https://portal.nersc.gov/cfs/cosmo/data/legacysurvey/dr9"
EDR = "https://data.desi.lbl.gov/public/edr/spectro/redux/fuji"
DR1 = "https://data.desi.lbl.gov/public/dr1/spectro/redux/iron"
SAS = "https://data.sdss.org/sas/dr17"
CDN = "https://cdn.gea.esac.esa.int/Gaia/gdr3"
HSC = "https://hsc-release.mtk.nao.ac.jp"

VERIFIED: list[tuple[str, str, str, str]] = [
    # survey and release, path as the code makes it, address, who vouches for it
    ("legacysurvey dr10", LS["dr10"].bricks, f"{LS10}/survey-bricks.fits.gz", "LS"),
    ("legacysurvey dr10", LS["dr10"].covered, f"{LS10}/south/survey-bricks-dr10-south.fits.gz", "LS"),
    (
        "legacysurvey dr10",
        LS["dr10"].sweep((0, 5, -5, 0)),
        f"{LS10}/south/sweep/10.1/sweep-000m005-005p000.fits",
        "LS",
    ),
    (
        "legacysurvey dr10",
        LS["dr10"].sweep((355, 360, 0, 5)),
        f"{LS10}/south/sweep/10.1/sweep-355p000-360p005.fits",
        "LS",
    ),
    (
        "legacysurvey dr10",
        LS["dr10"].sweep_list,
        f"{LS10}/south/sweep/10.1/legacysurvey_dr10_south_sweep_10.1.sha256sum",
        "LS-obs",
    ),
    (
        "legacysurvey dr10",
        LS["dr10"].coadd("1126p222", "image", "g"),
        f"{LS10}/south/coadd/112/1126p222/legacysurvey-1126p222-image-g.fits.fz",
        "LS",
    ),
    (
        "legacysurvey dr10",
        LS["dr10"].coadd("0001m002", "invvar", "z"),
        f"{LS10}/south/coadd/000/0001m002/legacysurvey-0001m002-invvar-z.fits.fz",
        "LS",
    ),
    (
        "legacysurvey dr10",
        LS["dr10"].coadd("1126p222", "psfsize", "i"),
        f"{LS10}/south/coadd/112/1126p222/legacysurvey-1126p222-psfsize-i.fits.fz",
        "LS",
    ),
    (
        "legacysurvey dr10",
        LS["dr10"].coadd("1126p222", "maskbits"),
        f"{LS10}/south/coadd/112/1126p222/legacysurvey-1126p222-maskbits.fits.fz",
        "LS",
    ),
    (
        "legacysurvey dr10",
        LS["dr10"].coadd_list("1126p222"),
        f"{LS10}/south/coadd/112/1126p222/legacysurvey_dr10_south_coadd_112_1126p222.sha256sum",
        "LS-obs",
    ),
    (
        "legacysurvey dr10",
        LS["dr10"].tractor("1126p222"),
        f"{LS10}/south/tractor/112/tractor-1126p222.fits",
        "LS",
    ),
    ("desi edr", desi.PRODUCTIONS["edr"].zcatalog, f"{EDR}/zcatalog/zall-pix-fuji.fits", "DDOC"),
    ("desi dr1", desi.PRODUCTIONS["dr1"].zcatalog, f"{DR1}/zcatalog/v1/zall-pix-iron.fits", "DDOC"),
    (
        "desi edr",
        desi.PRODUCTIONS["edr"].zcatalog_sums,
        f"{EDR}/zcatalog/redux_fuji_zcatalog.sha256sum",
        "DSRC",
    ),
    (
        "desi dr1",
        desi.PRODUCTIONS["dr1"].zcatalog_sums,
        f"{DR1}/zcatalog/v1/redux_iron_zcatalog_v1.sha256sum",
        "DSRC",
    ),
    (
        "desi dr1",
        desi.healpix_file("dr1", "coadd", "main", "dark", 10016).path,
        f"{DR1}/healpix/main/dark/100/10016/coadd-main-dark-10016.fits",
        "DD",
    ),
    (
        "desi dr1",
        str(desi.healpix_file("dr1", "coadd", "main", "dark", 10016).checksum_list),
        f"{DR1}/healpix/main/dark/100/10016/redux_iron_healpix_main_dark_100_10016.sha256sum",
        "DSRC",
    ),
    (
        "desi dr1",
        desi.healpix_file("dr1", "coadd", "main", "bright", 27).path,
        f"{DR1}/healpix/main/bright/0/27/coadd-main-bright-27.fits",
        "DSRC",
    ),
    (
        "desi dr1",
        desi.healpix_file("dr1", "redrock", "main", "backup", 706).path,
        f"{DR1}/healpix/main/backup/7/706/redrock-main-backup-706.fits",
        "DSRC",
    ),
    (
        "desi edr",
        desi.healpix_file("edr", "redrock", "sv3", "bright", 9999).path,
        f"{EDR}/healpix/sv3/bright/99/9999/redrock-sv3-bright-9999.fits",
        "DD",
    ),
    (
        "desi edr",
        str(desi.healpix_file("edr", "coadd", "sv1", "other", 27).checksum_list),
        f"{EDR}/healpix/sv1/other/0/27/redux_fuji_healpix_sv1_other_0_27.sha256sum",
        "DSRC",
    ),
    ("sdss dr17", sdss.CATALOG, f"{SAS}/sdss/spectro/redux/specObj-dr17.fits", "S4"),
    (
        "sdss dr17",
        sdss.spectrum_file("spplate", "26", 266, 51602),
        f"{SAS}/sdss/spectro/redux/26/0266/spPlate-0266-51602.fits",
        "MMU",
    ),
    (
        "sdss dr17",
        sdss.spectrum_file("spplate", "v5_13_2", 3586, 55181),
        f"{SAS}/eboss/spectro/redux/v5_13_2/3586/spPlate-3586-55181.fits",
        "MMU",
    ),
    (
        "sdss dr17",
        sdss.spectrum_file("spplate", "v5_13_2", 10000, 57346),
        f"{SAS}/eboss/spectro/redux/v5_13_2/10000/spPlate-10000-57346.fits",
        "MMU",
    ),
    (
        "sdss dr17",
        sdss.spectrum_file("full", "26", 266, 51602, 1),
        f"{SAS}/sdss/spectro/redux/26/spectra/0266/spec-0266-51602-0001.fits",
        "S4, AQ",
    ),
    (
        "sdss dr17",
        sdss.spectrum_file("full", "103", 2475, 53845, 1),
        f"{SAS}/sdss/spectro/redux/103/spectra/2475/spec-2475-53845-0001.fits",
        "S4, AQ",
    ),
    (
        # astroquery asks below sdss/ for these too; the archive's page of bulk downloads names eboss/
        "sdss dr17",
        sdss.spectrum_file("full", "v5_13_2", 3586, 55181, 16),
        f"{SAS}/eboss/spectro/redux/v5_13_2/spectra/full/3586/spec-3586-55181-0016.fits",
        "S4",
    ),
    (
        "sdss dr17",
        sdss.spectrum_file("lite", "v5_13_2", 7166, 56602, 536),
        f"{SAS}/eboss/spectro/redux/v5_13_2/spectra/lite/7166/spec-7166-56602-0536.fits",
        "S4",
    ),
    (
        "gaia dr3",
        f"{gaia.SOURCE_FOLDER}/{gaia.SOURCE_FILE.format(range='000000-003111')}",
        f"{CDN}/gaia_source/GaiaSource_000000-003111.csv.gz",
        "HF-GS",
    ),
    ("gaia dr3", f"{gaia.SOURCE_FOLDER}/{gaia.CHECKSUMS}", f"{CDN}/gaia_source/_MD5SUM.txt", "HF-GS"),
    (
        "gaia dr3",
        f"{gaia.XP_FOLDER}/{gaia.XP_FILE.format(range='786097-786431')}",
        f"{CDN}/Spectroscopy/xp_continuous_mean_spectrum/XpContinuousMeanSpectrum_786097-786431.csv.gz",
        "GST",
    ),
    (
        "gaia dr3",
        f"{gaia.XP_FOLDER}/{gaia.CHECKSUMS}",
        f"{CDN}/Spectroscopy/xp_continuous_mean_spectrum/_MD5SUM.txt",
        "GST",
    ),
    (
        # a comma stays a comma, as the archive's own pages have it
        "hsc pdr3-wide",
        calexp_path("i", 9813, 405),
        f"{HSC}/archive/filetree/pdr3_wide/deepCoadd-results/HSC-I/9813/4,5/calexp-HSC-I-9813-4,5.fits",
        "HDOC, MMU",
    ),
    (
        "hsc pdr3-wide",
        calexp_path("y", 8279, 8),
        f"{HSC}/archive/filetree/pdr3_wide/deepCoadd-results/HSC-Y/8279/0,8/calexp-HSC-Y-8279-0,8.fits",
        "HDOC, MMU",
    ),
]
SEGUE = [
    # plates that MMU found below 104
    (2640, 54806, f"{SAS}/sdss/spectro/redux/104/2640/spPlate-2640-54806.fits"),
    (2957, 54807, f"{SAS}/sdss/spectro/redux/104/2957/spPlate-2957-54807.fits"),
    (2962, 54774, f"{SAS}/sdss/spectro/redux/104/2962/spPlate-2962-54774.fits"),
    (3000, 54843, f"{SAS}/sdss/spectro/redux/104/3000/spPlate-3000-54843.fits"),
    (3000, 54892, f"{SAS}/sdss/spectro/redux/104/3000/spPlate-3000-54892.fits"),
    (3002, 54844, f"{SAS}/sdss/spectro/redux/104/3002/spPlate-3002-54844.fits"),
    (3003, 54845, f"{SAS}/sdss/spectro/redux/104/3003/spPlate-3003-54845.fits"),
    (3005, 54876, f"{SAS}/sdss/spectro/redux/104/3005/spPlate-3005-54876.fits"),
]
VERIFIED += [("sdss dr17", sdss.spectrum_file("spplate", "104", plate, mjd), url, "MMU") for plate, mjd, url in SEGUE]

UNVERIFIED: list[tuple[str, str, str]] = [
    # what is only taken to be so, by the pattern of others; `skycairn doctor` asks
    (
        "legacysurvey dr10",
        LS["dr10"].tractor_list("1126p222"),
        f"{LS10}/south/tractor/112/legacysurvey_dr10_south_tractor_112.sha256sum",
    ),
    (
        "legacysurvey dr9-north",
        LS["dr9-north"].sweep((180, 190, 35, 40)),
        f"{LS9}/north/sweep/9.0/sweep-180p035-190p040.fits",
    ),
    (
        "legacysurvey dr9-north",
        LS["dr9-north"].coadd_list("1054p567"),
        f"{LS9}/north/coadd/105/1054p567/legacysurvey_dr9_north_coadd_105_1054p567.sha256sum",
    ),
    (
        "sdss dr17",
        sdss.spectrum_file("lite", "26", 266, 51602, 1),
        f"{SAS}/sdss/spectro/redux/26/spectra/lite/0266/spec-0266-51602-0001.fits",
    ),
    (
        "sdss dr17",
        sdss.spectrum_file("lite", "103", 2475, 53845, 20),
        f"{SAS}/sdss/spectro/redux/103/spectra/lite/2475/spec-2475-53845-0020.fits",
    ),
    (
        "sdss dr17",
        sdss.spectrum_file("lite", "104", 2640, 54806, 640),
        f"{SAS}/sdss/spectro/redux/104/spectra/lite/2640/spec-2640-54806-0640.fits",
    ),
    # the folder is that of UN, the file's name is not
    ("hsc pdr3-wide", TRACT_PATCHES, f"{HSC}/rsrc/pdr3/tract_patches/info/tracts_patches_W.txt"),
]


def archive(of: str, folder: Path, mirror: str = "") -> RemoteArchive:
    asked = survey(*of.split())
    return RemoteArchive(asked, asked.url, Cache(folder, 1 << 20), mirror)


@pytest.mark.parametrize(("of", "path", "url", "vouched"), VERIFIED, ids=[v[2][8:] for v in VERIFIED])
def test_known_files_are_asked_for_where_they_are(of: str, path: str, url: str, vouched: str, tmp_path: Path) -> None:
    asked = archive(of, tmp_path)
    assert vouched
    assert asked.where(path) == url
    assert asked.address(path) == url


@pytest.mark.parametrize(("of", "path", "url"), UNVERIFIED, ids=[u[2][8:] for u in UNVERIFIED])
def test_what_is_taken_to_be_so(of: str, path: str, url: str, tmp_path: Path) -> None:
    assert archive(of, tmp_path).address(path) == url


def test_a_mirror_has_the_same_paths_below_the_hosts_name(tmp_path: Path) -> None:
    mirror = "http://127.0.0.1:8000/"
    hsc = archive("hsc pdr3-wide", tmp_path, mirror)
    assert hsc.address(calexp_path("g", 9813, 800)) == (
        "http://127.0.0.1:8000/hsc-release.mtk.nao.ac.jp/archive/filetree/pdr3_wide/deepCoadd-results/HSC-G/9813/8,0/"
        "calexp-HSC-G-9813-8,0.fits"
    )


def test_no_name_leads_out_of_its_archive(tmp_path: Path) -> None:
    of = archive("gaia dr3", tmp_path)
    for path in ("../gdr2/gaia_source/_MD5SUM.txt", "/etc/passwd", "gaia_source/../../x"):
        with pytest.raises(ValueError, match="leads out"):
            of.address(path)
    # what a server could take for a query, or for a name in another host, is no part of a path
    assert of.address("a?b#c d%2e") == f"{CDN}/a%3Fb%23c%20d%252e"


class Listed:
    """Gaia's lists, with some of its ranges."""

    RANGES = ("000000-003111", "674944-674967", "674968-674984", "674985-675010", "786097-786431")

    def exists(self, path: str) -> bool:
        raise AssertionError(f"{path} was looked for, though the list tells")

    def local(self, path: str) -> Path:
        raise AssertionError(f"{path} was wanted")

    def names(self, checksum_list: str) -> Mapping[str, str]:
        kind = "XpContinuousMeanSpectrum" if "Spectroscopy" in checksum_list else "GaiaSource"
        return {f"{kind}_{r}.csv.gz": "0" * 32 for r in self.RANGES}


def test_the_file_of_a_source_of_gaia(tmp_path: Path) -> None:
    """A source whose position gives the same pixel by healpy: ra 251.51920772923995, dec -51.50535255488219."""
    source_id = 5937083312263887616
    assert int(gaia_hpx(source_id, 8)) == 674968
    found: Any = Gaia("dr3").catalog_files(Listed(), [int(gaia_hpx(source_id, WORK_ORDER))])
    of = archive("gaia dr3", tmp_path)
    by_url = {of.address(f.path): f for f in found}
    asked = by_url[f"{CDN}/gaia_source/GaiaSource_674968-674984.csv.gz"]
    assert of.address(dict(asked.companions)["xp"].path) == (
        f"{CDN}/Spectroscopy/xp_continuous_mean_spectrum/XpContinuousMeanSpectrum_674968-674984.csv.gz"
    )
    assert asked.algorithm == "md5"
    assert f"{CDN}/gaia_source/GaiaSource_000000-003111.csv.gz" not in by_url


def test_first_and_last_files_of_gaia(tmp_path: Path) -> None:
    of = archive("gaia dr3", tmp_path)
    for cell, span in ((0, "000000-003111"), (12 * 4**6 - 1, "786097-786431")):
        found: Any = Gaia("dr3").catalog_files(Listed(), [cell])
        assert f"{CDN}/gaia_source/GaiaSource_{span}.csv.gz" in {of.address(f.path) for f in found}
    # ids near 2^63 keep their bits
    assert int(gaia_hpx((786431 << 43) + (1 << 43) - 1, 8)) == 786431


def test_services() -> None:
    assert HscDatabase().api == f"{HSC}/datasearch/api/catalog_jobs"  # UN
    assert gaiaquery.Settings().tap_url == "https://gea.esac.esa.int/tap-server/tap"  # AQ
    assert gaiaquery.TABLES["dr3"] == "gaiadr3.gaia_source"  # AQ
    assert sdssquery.URL == "https://skyserver.sdss.org"  # AQ
    assert datalab.URL == "https://datalab.noirlab.edu/tap"  # DL
    assert datalab.desi("dr1").tables["z"] == "desi_dr1.zpix"  # DL
    assert datalab.desi("edr").tables["z"] == "desi_edr.zpix"  # DL
    assert hatssource.gaia().address == "https://data.lsdb.io/hats/gaia_dr3/gaia"  # LSDB


def test_services_that_are_taken_to_be_so() -> None:
    assert gaiaquery.Settings().data_url == "https://gea.esac.esa.int/data-server/data"
    assert datalab.legacysurvey("dr10").tables["t"] == "ls_dr10.tractor"
    assert datalab.desi("dr1").tables["p"] == "desi_dr1.photometry"


def test_every_host_that_is_asked_has_limits() -> None:
    asked = [url for *_, url, _ in VERIFIED] + [url for *_, url in UNVERIFIED]
    asked += [gaiaquery.Settings().tap_url, gaiaquery.Settings().data_url, sdssquery.URL, datalab.URL]
    assert {urlsplit(url).netloc for url in asked} <= set(HOSTS)
    assert all(urlsplit(url).scheme == "https" for url in asked)

"""The doctor against a mirror of the tiny sky: all is well, and then each thing that may not be, by its name."""

import hashlib
import os
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from click.testing import Result
from typer.testing import CliRunner

from skycairn.archives.check import Check, Differs, Skip
from skycairn.archives.client import Client
from skycairn.archives.doctor import CHECKS, LIMITS, Doctor, Finding, Samples, examine, well
from skycairn.archives.filechecks import spellings
from skycairn.catalogs.gaia import SOURCE_COLUMNS
from skycairn.catalogs.hscfiles import calexp_path
from skycairn.cli.doctor import MOCK_SAMPLES
from skycairn.cli.main import app
from skycairn.mirror.datalab import service
from skycairn.mirror.hscjobs import HscJobs
from skycairn.mirror.server import Reply, Request
from skycairn.mirror.server import Service as MirrorService
from skycairn.mirror.sky import HSC_ACCOUNT, SkyMirror, mirror_of, services_of
from skycairn.mirror.tap import Tap, gaia_tables

HSC = "hsc-release.mtk.nao.ac.jp"
SWEEPS = "legacysurvey/south/sweep/10.1"
BRICK = "legacysurvey/south/coadd/359/3599m012"
TRACTOR = "legacysurvey/south/tractor/359"
REDUX = "sdss/sdss/spectro/redux"
SOURCES = "gaia/gaia_source"
Services = Mapping[str, Sequence[MirrorService]]


@pytest.fixture(scope="module")
def whole(tiny_sky: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny sky, and the files that it lacks of those that are looked at. Not to be changed."""
    sky = tmp_path_factory.mktemp("whole") / "sky"
    shutil.copytree(tiny_sky, sky, copy_function=os.link)
    (sky / TRACTOR).mkdir(parents=True)
    line = f"{'0' * 64}  tractor-3599m012.fits\n"
    (sky / TRACTOR / "legacysurvey_dr10_south_tractor_359.sha256sum").write_text(line)
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns([fits.Column("PLATE", "J", array=[266])])]).writeto(
        sky / REDUX / "plates-dr17.fits"
    )
    columns = pa.schema([pa.field(n, f.type, metadata=f.metadata) for n, f in SOURCE_COLUMNS.items()])
    (sky / "hats/dataset").mkdir(parents=True)
    pq.write_metadata(columns, sky / "hats/dataset/_common_metadata")
    told = {"obs_collection": "made_up", "dataproduct_type": "object", "hats_nrows": 0}
    told |= {"hats_col_ra": "ra", "hats_col_dec": "dec", "hats_npix_suffix": ".parquet"}
    (sky / "hats/hats.properties").write_text("".join(f"{k}={v}\n" for k, v in told.items()))
    (sky / "hats/partition_info.csv").write_text("Norder,Npix\n")
    return sky


@pytest.fixture
def sky(whole: Path, tmp_path: Path) -> Path:
    """A copy whose files may be exchanged; never written into, since they are links."""
    return Path(shutil.copytree(whole, tmp_path / "sky", copy_function=os.link))


@pytest.fixture
def with_account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSP_PDR_USR", HSC_ACCOUNT[0])
    monkeypatch.setenv("SSP_PDR_PWD", HSC_ACCOUNT[1])


def put(path: Path, content: bytes) -> None:
    """In place of the link that is there."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def samples(sky: Path, **others: str) -> Samples:
    more = {"tractor_brick": "3599m012", "plates": Samples.plates, "n_sweeps": "2", "hats": str(sky / "hats")}
    return Samples().changed({**MOCK_SAMPLES, **more, **others})


def look(
    mirror: str, folder: Path, of: Samples, surveys: Sequence[str] = (), checks: Any = CHECKS
) -> dict[str, Finding]:
    """What comes of each check, by `survey: name`."""
    limits = {host: replace(at, backoff_s=(0.01, 0.02)) for host, at in LIMITS.items()}
    folder.mkdir()
    with Client(limits, loopback=True) as client:
        found = examine(Doctor(client, folder, of, mirror, patience_s=20.0), surveys, checks)
        return {f"{f.survey}: {f.check.name}": f for f in found}


def only(*names: str) -> dict[str, tuple[Check, ...]]:
    """Those checks alone."""
    return {s: kept for s, of in CHECKS.items() if (kept := tuple(c for c in of if f"{s}: {c.name}" in names))}


def one(sky: Path, name: str, tmp_path: Path, services: Services | None = None, **others: str) -> Finding:
    """What comes of one check of this sky."""
    with mirror_of(sky, services=services or {}) as mirror:
        return look(mirror.url, tmp_path / "work", samples(sky, **others), checks=only(name))[name]


# --- all is well


def test_all_is_well(whole: Path, tmp_path: Path, with_account: None) -> None:
    services = services_of(whole)
    with mirror_of(whole, services=services) as mirror:
        found = look(mirror.url, tmp_path / "work", samples(whole))
        assert {name: f.said for name, f in found.items() if f.status != "ok"} == {}
        assert mirror.requests.total < 150
    assert len(found) == sum(map(len, CHECKS.values()))
    assert well(found.values())
    jobs, tap, lab = services[HSC][0], services["gea.esac.esa.int"][0], services["datalab.noirlab.edu"][0]
    assert isinstance(jobs, HscJobs) and isinstance(tap, Tap) and isinstance(lab, Tap)
    assert jobs.count("submit") == jobs.count("delete") == 2
    assert not jobs.live and not tap.jobs and not lab.jobs, "something was left behind"
    assert "2 sweeps" in found["legacysurvey: list of sweeps"].said
    assert "psfsize-g.fits.fz (14,400 bytes) has the digest" in found["legacysurvey: a brick's files"].said
    assert "griz about 359.9, -1.2 of ls-dr10-south" in found["legacysurvey: the viewer"].said
    assert "missing values are spelt 'null'" in found["gaia: rows of sources"].said
    assert "flux in nJy and magnitude agree" in found["hsc: the database"].said
    assert "there is no corrected_z_cmodel_mag" in found["hsc: dereddened z"].said


def test_every_check_says_what_is_assumed() -> None:
    for checks in CHECKS.values():
        assert len({c.name for c in checks}) == len(checks)
        assert all(c.name and c.about and not c.about.endswith(".") for c in checks)


def test_without_samples_nothing_is_guessed(whole: Path, tmp_path: Path) -> None:
    found = one(whole, "legacysurvey: a brick's files", tmp_path, brick="")
    assert found.status == "skipped" and "--sample brick=" in found.said


# --- files that are otherwise


def test_a_wrong_digest(sky: Path, tmp_path: Path) -> None:
    listed = next((sky / BRICK).glob("*.sha256sum"))
    name = "legacysurvey-3599m012-psfsize-g.fits.fz"
    digest = hashlib.sha256((sky / BRICK / name).read_bytes()).hexdigest()
    put(listed, listed.read_bytes().replace(digest.encode(), b"5" * 64))
    found = one(sky, "legacysurvey: a brick's files", tmp_path)
    assert found.status == "failed"
    assert name in found.said and digest[:12] in found.said and "5" * 12 in found.said


def test_a_damaged_file_of_gaia(sky: Path, tmp_path: Path) -> None:
    path = sky / SOURCES / "GaiaSource_278348-278504.csv.gz"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    put(path, bytes(content))
    assert one(sky, "gaia: a file's digest", tmp_path).status == "failed"


def test_a_list_with_fewer_names(sky: Path, tmp_path: Path) -> None:
    found = one(sky, "legacysurvey: list of sweeps", tmp_path, n_sweeps="1436")
    assert (found.status, found.said) == ("differs", "found 2 sweeps, assumed 1,436")


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (b"no list at all\n", "failed", "line 1 is 'no list at all'"),
        (b"0" * 64 + b"  brick-0001m002.fits\n", "differs", "are no sweeps, as 'brick-0001m002.fits'"),
    ],
)
def test_a_list_that_is_none(sky: Path, tmp_path: Path, content: bytes, status: str, words: str) -> None:
    put(next((sky / SWEEPS).glob("*.sha256sum")), content)
    found = one(sky, "legacysurvey: list of sweeps", tmp_path)
    assert found.status == status and words in found.said


def test_a_list_of_another_name(tiny_sky: Path, tmp_path: Path) -> None:
    found = one(tiny_sky, "legacysurvey: list of tractor files", tmp_path)
    assert found.status == "differs"
    assert "legacysurvey_dr10_south_tractor_359.sha256sum: there is no such list" in found.said


def test_ranges_with_a_gap(sky: Path, tmp_path: Path) -> None:
    found = one(sky, "gaia: list of sources", tmp_path, n_gaia="2")
    assert found.status == "differs" and "gap or overlap at 278348" in found.said


def test_a_column_of_another_kind_and_one_that_is_gone(sky: Path, tmp_path: Path) -> None:
    path = sky / REDUX / "specObj-dr17.fits"
    with fits.open(path, memmap=False) as hdus:
        kept = [c for c in hdus[1].columns if c.name not in ("PLATE", "ZWARNING")]
        text = fits.Column("PLATE", "8A", array=hdus[1].data["PLATE"].astype(str))
        made = fits.BinTableHDU.from_columns([*kept, text])
    path.unlink()
    fits.HDUList([fits.PrimaryHDU(), made]).writeto(path)
    found = one(sky, "sdss: columns of specObj", tmp_path)
    assert found.status == "differs"
    assert "lacks ZWARNING" in found.said and "PLATE is 8A, assumed int32" in found.said


def test_a_page_in_place_of_a_file(sky: Path, tmp_path: Path) -> None:
    put(sky / REDUX / "specObj-dr17.fits", b"<!DOCTYPE html><title>Down for a while</title>" + b" " * 5000)
    found = one(sky, "sdss: columns of specObj", tmp_path)
    assert found.status == "differs" and "an HTML page: 'Down for a while'; assumed a FITS file" in found.said


def test_a_checksum_list_where_none_was_known(sky: Path, tmp_path: Path) -> None:
    digest = hashlib.sha1((sky / REDUX / "plates-dr17.fits").read_bytes()).hexdigest()
    (sky / REDUX / "dr17_redux.sha1sum").write_text(f"{digest}  plates-dr17.fits\n")
    found = one(sky, "sdss: checksum lists", tmp_path)
    assert found.status == "differs"
    assert "found dr17_redux.sha1sum in" in found.said and "plates-dr17.fits has the digest" in found.said


def test_a_new_checksum_list_that_is_wrong(sky: Path, tmp_path: Path) -> None:
    (sky / REDUX / "dr17_redux.sha1sum").write_text(f"{'0' * 40}  plates-dr17.fits\n")
    assert one(sky, "sdss: checksum lists", tmp_path).status == "failed"


def test_paths_that_are_not_there(whole: Path, tmp_path: Path) -> None:
    found = one(whole, "sdss: paths of spplate files", tmp_path, spectra="26/266/51602/1 104/2640/54806/1")
    assert found.status == "differs"
    assert "1 of 2 are not there: sdss/spectro/redux/104/2640/spPlate-2640-54806.fits" in found.said


def test_a_coadd_in_other_units(sky: Path, tmp_path: Path, with_account: None) -> None:
    path = sky / "hsc" / calexp_path("i", 9000, 304)
    with fits.open(path, memmap=False) as hdus:
        hdus[0].header["FLUXMAG0"] = 10 ** (0.4 * 31.4)
        hdus[2].header.remove("MP_SAT")
        copy = fits.HDUList([h.copy() for h in hdus])
    path.unlink()
    copy.writeto(path)
    found = one(sky, "hsc: a coadd's headers", tmp_path)
    assert found.status == "differs" and "its mask has no plane SAT" in found.said


def test_how_missing_values_are_spelt() -> None:
    text = "# %ECSV 1.0\nsource_id,parallax,ruwe,duplicated_source,other\n{},1.5,{},{},x\n"
    largest = 2**63 - 1
    assert spellings(text.format(largest, "null", "False")) == ({"null"}, {"False"}, None)
    assert spellings(text.format(largest, "", '"true"')) == ({""}, {"true"}, None)
    assert spellings(text.format(largest, "-", "True"))[2] == ("ruwe", "-")
    assert spellings(text.format(largest, "1e-3", "yes"))[2] == ("duplicated_source", "yes")
    assert spellings("# nothing\n") == (set(), set(), None)


# --- services that are otherwise


def test_a_table_that_is_not_there(whole: Path, tmp_path: Path) -> None:
    services: Services = {"datalab.noirlab.edu": [service([])], "gea.esac.esa.int": [Tap({})]}
    with mirror_of(whole, services=services) as mirror:
        names = ("legacysurvey: Data Lab's table", "desi: Data Lab's tables", "gaia: TAP's table")
        found = look(mirror.url, tmp_path / "work", samples(whole), checks=only(*names))
    assert [f.status for f in found.values()] == ["differs"] * 3
    assert "there is no table 'ls_dr10.tractor'" in found[names[0]].said
    assert "there is no table 'desi_dr1.zpix'" in found[names[1]].said
    assert "gaiadr3.gaia_source: the service answered 400" in found[names[2]].said


def test_a_column_that_the_service_lacks(whole: Path, tmp_path: Path) -> None:
    full = gaia_tables(whole / "gaia")["gaiadr3.gaia_source"]
    tap = Tap({"gaiadr3.gaia_source": lambda: full().drop_columns(["ruwe"])})
    found = one(whole, "gaia: TAP's table", tmp_path, {"gea.esac.esa.int": [tap]})
    assert found.status == "differs" and "ruwe" in found.said


def test_a_database_whose_columns_lie_elsewhere(whole: Path, tmp_path: Path, with_account: None) -> None:
    jobs = HscJobs(whole / "hsc", *HSC_ACCOUNT)
    jobs.tables = {**jobs.tables, "forced": tuple(c for c in jobs.tables["forced"] if c != "a_g")}
    found = one(whole, "hsc: the database", tmp_path, {HSC: [jobs]})
    assert found.status == "differs"
    assert 'the database said: ERROR: column "a_g" does not exist' in found.said
    assert "assumed 116 columns in pdr3_wide.forced, pdr3_wide.forced2" in found.said
    assert not jobs.live, "the job of a query that was refused was left there"


def test_fluxes_in_another_unit(sky: Path, tmp_path: Path, with_account: None) -> None:
    path = sky / "hsc/sql/pdr3_wide/forced-9000.fits"
    with fits.open(path, memmap=False) as hdus:
        table = hdus[1].copy()
    table.data["z_cmodel_flux"] /= 3.6308
    path.unlink()
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(path)
    found = one(sky, "hsc: the database", tmp_path, {HSC: [HscJobs(sky / "hsc", *HSC_ACCOUNT)]})
    assert found.status == "differs" and "z_cmodel_flux" in found.said and "if it is in nJy" in found.said


@pytest.mark.parametrize("shift", [0.0, 0.05])
def test_a_dereddened_magnitude_that_is_there(sky: Path, tmp_path: Path, with_account: None, shift: float) -> None:
    path = sky / "hsc/sql/pdr3_wide/forced-9000.fits"
    with fits.open(path, memmap=False) as hdus:
        data = hdus[1].data
        new = data["z_cmodel_mag"] - data["a_z"] + np.float32(shift)
        made = fits.BinTableHDU.from_columns(
            hdus[1].columns + fits.ColDefs([fits.Column("corrected_z_cmodel_mag", "E", array=new)])
        )
    path.unlink()
    fits.HDUList([fits.PrimaryHDU(), made]).writeto(path)
    jobs = HscJobs(sky / "hsc", *HSC_ACCOUNT)
    jobs.tables = {**jobs.tables, "forced": (*jobs.tables["forced"], "corrected_z_cmodel_mag")}
    found = one(sky, "hsc: dereddened z", tmp_path, {HSC: [jobs]})
    assert found.status == ("differs" if shift else "ok")
    assert ("up to 0.050 mag off" if shift else "is there, and is z_cmodel_mag - a_z") in found.said


def test_a_job_that_never_ends_is_deleted(whole: Path, tmp_path: Path, with_account: None) -> None:
    jobs = HscJobs(whole / "hsc", *HSC_ACCOUNT, states=("run",) * 1000)
    with mirror_of(whole, services={HSC: [jobs]}) as mirror, Client(LIMITS, loopback=True) as client:
        doctor = Doctor(client, tmp_path, samples(whole), mirror.url, patience_s=0.2)
        (found,) = examine(doctor, ["hsc"], only("hsc: the database"))
    assert found.status == "failed" and "'run' after 0 s" in found.said
    assert not jobs.live and jobs.count("cancel") == 1


def test_a_service_that_sends_a_page(whole: Path, tmp_path: Path) -> None:
    def page(request: Request) -> Reply:
        return Reply(200, b"<html><title>Maintenance</title></html>", {"Content-Type": "text/html"})

    hosts = ("skyserver.sdss.org", "datalab.noirlab.edu", "gea.esac.esa.int")
    with mirror_of(whole, services={h: [page] for h in hosts}) as mirror:
        names = ("sdss: SkyServer", "legacysurvey: Data Lab's table", "gaia: TAP's table", "gaia: spectra by id")
        found = look(mirror.url, tmp_path / "work", samples(whole), checks=only(*names))
    assert {f.status for f in found.values()} == {"failed"}, found
    assert "no phase of a job" in found["legacysurvey: Data Lab's table"].said
    assert "'Maintenance'" in found["gaia: TAP's table"].said
    assert not any(str(tmp_path) in f.said for f in found.values())


# --- accounts and hosts


def test_no_account(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSP_PDR_USR", raising=False)
    monkeypatch.delenv("SSP_PDR_PWD", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr("skycairn.archives.credentials._of_keyring", lambda at, user: None)
    with mirror_of(whole, services=services_of(whole)) as mirror:
        found = look(mirror.url, tmp_path / "work", samples(whole), ["hsc"])
    assert found.pop("hsc: answers").status == "ok"
    assert {f.status for f in found.values()} == {"skipped"}
    assert "SSP_PDR_USR" in found["hsc: account"].said and "chmod 600" in found["hsc: account"].said
    assert found["hsc: the database"].said == "it wants an account (see above)"


def test_a_netrc_that_others_can_read(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSP_PDR_USR", raising=False)
    monkeypatch.delenv("SSP_PDR_PWD", raising=False)
    path = tmp_path / "netrc"
    path.write_text(f"machine {HSC} login somebody password Geheimnis41\n")
    path.chmod(0o644)
    monkeypatch.setenv("NETRC", str(path))
    found = one(whole, "hsc: account", tmp_path)
    assert found.status == "failed" and "chmod 600" in found.said and "Geheimnis" not in found.said


def test_a_refused_password_is_tried_once_and_shown_nowhere(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSP_PDR_USR", "somebody")
    monkeypatch.setenv("SSP_PDR_PWD", "Geheimnis41")
    with mirror_of(whole, services=services_of(whole)) as mirror:
        found = look(mirror.url, tmp_path / "work", samples(whole), ["hsc"])
        assert mirror.requests.by_status[401] == 2, "the first without the password, the second with it"
    assert found["hsc: list of patches"].status == "failed"
    assert {f.status for n, f in found.items() if n > "hsc: list of patches"} == {"skipped"}
    assert not any("Geheimnis" in f.said for f in found.values())


def test_words_that_hold_the_password_do_not_show_it(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSP_PDR_USR", "somebody")
    monkeypatch.setenv("SSP_PDR_PWD", "Geheimnis41")

    def tell(doctor: Doctor) -> str:
        raise KeyError("a client's own error\nwith Geheimnis41 in it")

    found = look("", tmp_path / "work", Samples(), checks={"hsc": [Check("x", "y", tell)]})["hsc: x"]
    assert found.status == "failed"
    assert found.said == 'KeyError: "a client\'s own error\\nwith (hidden) in it"'


def test_a_dead_host_is_asked_once(whole: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # never listens: connections are refused
        dead = f"http://127.0.0.1:{taken.getsockname()[1]}"
        found = look(dead, tmp_path / "work", samples(whole, hats=""), ["legacysurvey", "desi"])
    assert found["legacysurvey: answers"].status == found["desi: answers"].status == "failed"
    assert "ConnectError" in found["legacysurvey: answers"].said
    assert found["legacysurvey: a brick's files"].status == "skipped"
    assert "portal.nersc.gov does not answer" in found["legacysurvey: a brick's files"].said
    # one host of two surveys
    assert found["legacysurvey: Data Lab's table"].status == "failed"
    assert "datalab.noirlab.edu does not answer" in found["desi: Data Lab's tables"].said
    assert not well(found.values())


def test_a_host_that_is_not_well(whole: Path, tmp_path: Path) -> None:
    def ill(request: Request) -> Reply:
        return Reply(503, b"later\n", {"Content-Type": "text/plain"})

    with mirror_of(whole, services={"cdn.gea.esac.esa.int": [ill]}) as mirror:
        found = look(mirror.url, tmp_path / "work", samples(whole), checks={"gaia": CHECKS["gaia"][:3]})
    assert [f.status for f in found.values()] == ["failed", "skipped", "skipped"]
    assert "status 503" in found["gaia: answers"].said


def test_what_a_check_raises_is_an_outcome(tmp_path: Path) -> None:
    def raising(error: Exception) -> Check:
        def run(doctor: Doctor) -> str:
            raise error

        return Check(type(error).__name__, "", run)

    errors = [Differs("a"), Skip("b"), ValueError("c"), RuntimeError("d"), OSError(28, "No space left on device")]
    found = look("", tmp_path / "work", Samples(), checks={"gaia": [raising(e) for e in errors]})
    assert [f.status for f in found.values()] == ["differs", "skipped", "differs", "failed", "failed"]


def test_samples_are_told_by_name() -> None:
    assert Samples().changed({"n_sweeps": "3", "brick": "0001m002"}).n_sweeps == 3
    with pytest.raises(ValueError, match="there is no sample 'bricks'; there are brick, "):
        Samples().changed({"bricks": "0001m002"})
    with pytest.raises(ValueError, match="sample n_sweeps is 'many'; wanted a whole number"):
        Samples().changed({"n_sweeps": "many"})


# --- the command


@pytest.fixture
def running(whole: Path) -> Iterator[SkyMirror]:
    with mirror_of(whole, services=services_of(whole)) as mirror:
        yield mirror


def run(monkeypatch: pytest.MonkeyPatch, *args: object) -> Result:
    for name in ("SSP_PDR_USR", "SSP_PDR_PWD"):
        monkeypatch.setenv(name, "nobody's")  # the command sets them for itself
    return CliRunner().invoke(app, ["doctor", *map(str, args)], env={"COLUMNS": "200", "TERM": "dumb"})


def test_the_command_says_that_all_is_well(running: SkyMirror, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(monkeypatch, "--mirror", running.url, "--survey", "desi", "--survey", "hsc", "--contact", "me@here.org")
    assert found.exit_code == 0, found.output
    assert "11 ok" in found.stdout and "legacysurvey" not in found.stdout
    agents = {a.headers["user-agent"] for a in running.log if a.host == "data.desi.lbl.gov"}
    assert len(agents) == 1 and all(a.startswith("skycairn/") and a.endswith("(me@here.org)") for a in agents)


def test_the_command_says_what_is_not(running: SkyMirror, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(monkeypatch, "--mirror", running.url, "--survey", "legacysurvey", "--sample", "brick=0001m002")
    assert found.exit_code == 1
    assert "legacysurvey_dr10_south_coadd_000_0001m002.sha256sum" in found.stdout
    assert "assumed: a brick's folder has a list" in found.stdout
    assert "1 skipped" in found.stdout and "1 differs" in found.stdout


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--survey", "hubble"], "there are no checks of 'hubble'; there are some of legacysurvey, hsc"),
        (["--sample", "brick"], "wanted NAME=VALUE"),
        (["--sample", "brik=1"], "there is no sample 'brik'"),
        (["--mirror", "https://example.org"], "a mirror is on this machine"),
        (["--contact", "me\nhere"], "printable ASCII"),
    ],
)
def test_the_command_refuses(monkeypatch: pytest.MonkeyPatch, args: list[str], words: str) -> None:
    found = run(monkeypatch, *args)
    assert found.exit_code == 1
    assert words in found.stderr and len(found.stderr.splitlines()) == 1


def test_a_viewer_of_other_cubes_differs(whole: Path, tmp_path: Path) -> None:
    def other(request: Request) -> Reply:
        asked = {**request.query, "pixscale": ["0.5"]}
        found = services_of(whole)["www.legacysurvey.org"][0](replace(request, query=asked))
        assert found is not None
        return found

    found = one(whole, "legacysurvey: the viewer", tmp_path, {"www.legacysurvey.org": [other]})
    assert found.status == "differs" and "wanted 0.262, north up, east left" in found.said

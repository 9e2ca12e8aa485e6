"""Checks of the catalogue services: that each answers, and has the tables and columns that are asked of it.

A row or a small piece of sky is asked for, by the queries and the readers of a build. Jobs are deleted, however they
end.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import numpy as np

from skycairn.archives import datalab, gaiaquery, hatssource, sdssquery, viewer
from skycairn.archives.check import RELEASES, Check, Differs, Doctor, Skip, plural, sample
from skycairn.archives.credentials import credential
from skycairn.archives.datalab import DataLab
from skycairn.archives.errors import Busy, FetchError, NotPublished
from skycairn.archives.filechecks import HSC_HOST, tract_and_patch, xp_rows
from skycairn.archives.hscjobs import COLUMNS, FAILED, SCHEMA, TABLES, HscDatabase, JobId, Jobs, write_sorted
from skycairn.archives.replies import words
from skycairn.archives.sources import post_once
from skycairn.archives.structure import SNIFF, html_page
from skycairn.catalogs.fitsfile import read_columns
from skycairn.catalogs.gaia import SOURCE_COLUMNS, Gaia
from skycairn.catalogs.hsc import Hsc
from skycairn.catalogs.hsccolumns import UNIT_TOLERANCE
from skycairn.catalogs.hscfiles import ROOT as HSC_ROOT
from skycairn.catalogs.hscfiles import forced_path
from skycairn.catalogs.legacyfiles import LAYOUTS
from skycairn.catalogs.registry import survey
from skycairn.catalogs.sdss import Sdss
from skycairn.catalogs.survey import WORK_ORDER
from skycairn.catalogs.viewerimage import Asked, read_reply

AT = gaiaquery.Settings()
TABLE = gaiaquery.TABLES["dr3"]
ALREADY = "corrected_z_cmodel_mag"
"""What a public query cuts on, and no public page names: z_cmodel_mag less a_z, as is assumed here."""


def no_file(path: str) -> Path:
    """Services that are asked here want no other file."""
    raise NotPublished(f"{path}: is not fetched for a check")


# --- Data Lab


def data_lab(name: str, made: Callable[[Doctor], tuple[DataLab, int]]) -> Callable[[Doctor], str]:
    """The tables of a survey at Data Lab, by its own list of columns and by a row."""

    def run(doctor: Doctor) -> str:
        service, cell = made(doctor)
        names = ", ".join(service.tables.values())
        known = service.known
        question = replace(service, columns=known).question(f"{service.prefix}{WORK_ORDER}-{cell}.parquet")
        query = str(json.loads(question)["query"]).replace("SELECT", "SELECT TOP 1", 1)
        found = service.search(service.url, query, 10, service.timeout_s)
        lacking = [c.name for c in service.columns if c not in known]
        if wanted := sorted(cut_on(name) & set(lacking)):
            raise Differs(f"{names}: lacks {', '.join(wanted)}, which a cut wants")
        if not found.num_rows:
            raise Differs(f"{names}: has no row in work cell {cell}; assumed some")
        without = f", without {', '.join(lacking)}" if lacking else ""
        return f"{names}: {plural(len(known), 'column')}{without}, and a row of them"

    return run


def cut_on(name: str) -> set[str]:
    """Columns that some cut of the survey wants."""
    of = survey(name, RELEASES[name])
    return {c for cuts in (of.valid, *of.select.values()) for cut in cuts for c in cut.columns}


def tractor(doctor: Doctor) -> tuple[DataLab, int]:
    """The Legacy Surveys' table, and a cell with sources."""
    cell = int(sample(doctor.samples.legacysurvey_cell, "legacysurvey_cell"))
    return datalab.legacysurvey("dr10", url=doctor.at(datalab.URL), timeout_s=doctor.patience_s), cell


def zpix(doctor: Doctor) -> tuple[DataLab, int]:
    """DESI's tables, and a cell with targets."""
    cell = int(sample(doctor.samples.desi, "desi").rpartition("/")[2])
    return datalab.desi("dr1", url=doctor.at(datalab.URL), timeout_s=doctor.patience_s), cell


def cut_out(doctor: Doctor) -> str:
    """One small cut-out of the viewer, about the place that the sample brick's name tells."""
    brick = sample(doctor.samples.brick, "brick")
    ra, dec = int(brick[:4]) / 10, int(brick[5:]) / 10 * (-1 if brick[4] == "m" else 1)
    asked = Asked.about(LAYOUTS["dr10"].viewer_layer, "griz", 64, ra, dec)
    into = doctor.folder / "cutout.fits"
    try:
        viewer.Viewer(doctor.at(viewer.URL), doctor.client).fetch(asked.path, into, no_file)
    except FetchError as error:
        if isinstance(error.__cause__, ValueError):
            raise Differs(str(error)) from None
        raise
    flux, bands, _ = read_reply(into, asked)
    return f"{''.join(bands)} about {ra}, {dec} of {asked.layer}, {(flux != 0).mean():.0%} of its pixels with data"


# --- HSC


class _Sql(Exception):
    """The database did not take the SQL, in its own words."""


def ask_hsc(doctor: Doctor, service: HscDatabase, sql: str) -> Path:
    """The table of one job, which is deleted however it ends; what goes wrong tells where it could not be."""
    jobs = Jobs(service.api, credential(service.account), service.post, service.release_version, service.client_version)
    job = jobs.submit(sql)
    state = ""
    try:
        state, said = _ended(doctor, jobs, job)
        if state in FAILED:
            raise _Sql(said or f"the job ended as {state!r}, and nothing was said")
        reply = doctor.folder / "hsc-reply.fits"
        reply.write_bytes(jobs.download(job))
    except (FetchError, _Sql) as error:
        raise type(error)(f"{error}{_delete(jobs, job, bool(state))}") from None
    except BaseException:
        _delete(jobs, job, bool(state))
        raise
    if left := _delete(jobs, job, True):
        raise FetchError(f"{jobs.api}: gave the table{left}")
    return reply


def _delete(jobs: Jobs, job: JobId, ended: bool) -> str:
    """Empty, or in words that the job could not be deleted."""
    if not ended:
        with suppress(FetchError):
            jobs.cancel(job)
    try:
        jobs.delete(job)
    except FetchError as error:
        return f"; job {job} was left there, delete it by hand ({error})"
    return ""


def _ended(doctor: Doctor, jobs: Jobs, job: JobId) -> tuple[str, str]:
    """How the job ended, and what the database said."""
    end, pause = time.monotonic() + doctor.patience_s, 0.1
    while True:
        state, said = jobs.status(job)
        if state == "done" or state in FAILED:
            return state, said
        if time.monotonic() > end:
            raise Busy(f"{jobs.api}: a job is {state!r} after {doctor.patience_s:.0f} s; try later")
        doctor.client.nap(pause)
        pause = min(2 * pause, 10.0)


def database(doctor: Doctor, **settings: object) -> HscDatabase:
    """HSC's database, asked by the doctor's own client."""
    return HscDatabase(doctor.at(HSC_ROOT), post=partial(post_once, doctor.client), **settings)  # type: ignore[arg-type]


def forced(doctor: Doctor) -> str:
    """All columns of a patch's sources, read as a build reads them, which compares fluxes and magnitudes."""
    tract, patch = tract_and_patch(doctor)
    service = database(doctor, patch_bounds=(patch, patch + 1))
    tables = ", ".join(f"{SCHEMA}.{t}" for t in TABLES)
    try:
        reply = ask_hsc(doctor, service, service.sql(tract)[1])
    except _Sql as refused:
        raise Differs(f"the database said: {refused}; assumed {plural(len(COLUMNS), 'column')} in {tables}") from None
    into = doctor.folder / Path(forced_path(tract)).name
    write_sorted([reply], COLUMNS, into, service.api)
    table = Hsc("pdr3-wide").read(into)
    if not table.num_rows:
        raise Differs(f"{tables}: no primary source in {doctor.samples.patch}; assumed some")
    both = sum(
        a is not None and b is not None
        for a, b in zip(*(table[f"z_cmodel_{c}"].to_pylist() for c in ("flux", "mag")), strict=True)
    )
    return (
        f"{plural(table.num_rows, 'row')}, {plural(len(COLUMNS), 'column')}; flux in nJy and magnitude agree within "
        f"{UNIT_TOLERANCE:g} mag ({both} compared in z, and as many in other bands as have both)"
    )


def dereddened(doctor: Doctor) -> str:
    """What `corrected_z_cmodel_mag` is, if it is there."""
    tract, patch = tract_and_patch(doctor)
    service = database(doctor)
    sql = (
        f"SELECT forced.object_id, z_cmodel_mag, a_z, {ALREADY} FROM {SCHEMA}.forced WHERE forced.isprimary "
        f"AND forced.tract = {tract} AND forced.patch >= {patch} AND forced.patch < {patch + 1}"
    )
    try:
        reply = ask_hsc(doctor, service, sql)
    except _Sql as refused:
        if re.search(rf"{ALREADY}\W* does not exist", str(refused)):
            return f"there is no {ALREADY}; the cut takes z_cmodel_mag - a_z"
        raise Differs(f"the database said: {refused}; assumed z_cmodel_mag and a_z in {SCHEMA}.forced") from None
    found = {name.lower(): fetch for name, fetch in read_columns(reply, holding="object_id")[0].items()}
    mag, a_z, corrected = (np.asarray(found[n](), np.float64) for n in ("z_cmodel_mag", "a_z", ALREADY))
    apart = np.abs(mag - a_z - corrected)
    apart = apart[np.isfinite(apart)]
    if len(apart) and apart.max() > UNIT_TOLERANCE:
        raise Differs(f"{ALREADY} is up to {apart.max():.3f} mag off z_cmodel_mag - a_z; assumed the same")
    return f"{ALREADY} is there, and is z_cmodel_mag - a_z ({plural(len(apart), 'row')})"


# --- Gaia


def availability(doctor: Doctor) -> str:
    """Whether Gaia's archive answers."""
    doctor.client.send("GET", f"{doctor.at(AT.tap_url)}/availability")
    return "it does"


def gaia_source(doctor: Doctor) -> str:
    """A row with all columns that a build asks for, their units held against the reader's."""
    query = f"SELECT TOP 1 {', '.join(SOURCE_COLUMNS)} FROM {TABLE}"
    asked = {"REQUEST": "doQuery", "LANG": "ADQL", "FORMAT": "votable_plain", "QUERY": query}
    answer = doctor.client.send("GET", f"{doctor.at(AT.tap_url)}/sync?{urlencode(asked)}", most_bytes=1 << 20)
    if answer.status != 200:
        raise Differs(
            f"{TABLE}: the service answered {answer.status}: {words(answer.content.decode(errors='replace'))}"
        )
    if page := html_page(answer.content[:SNIFF]):
        raise Busy(f"{doctor.at(AT.tap_url)}: answered with {page}; try later")
    reply = doctor.folder / "gaia.vot"
    reply.write_bytes(answer.content)
    table = Gaia("dr3").read(reply, needed=[n for n in SOURCE_COLUMNS if n not in ("ra", "dec")])
    if table.num_rows != 1:
        raise Differs(f"{TABLE}: gave {plural(table.num_rows, 'row')}, assumed 1")
    return f"{TABLE}: a row of {len(SOURCE_COLUMNS)} columns, in the units assumed"


def data_link(doctor: Doctor) -> str:
    """The XP spectrum of one source by its id."""
    rows = xp_rows(doctor)
    if not len(rows):
        raise Skip("no source with a spectrum is known from the files (see above)")
    ids = rows["source_id"].to_numpy()[:1]
    form = {
        "VALID_DATA": "false",
        "ID": str(ids[0]),
        "RELEASE": gaiaquery.DATA_RELEASES["dr3"],
        "DATA_STRUCTURE": AT.data_structure,
        "FORMAT": AT.data_format,
        "RETRIEVAL_TYPE": "XP_CONTINUOUS",
        "USE_ZIP_ALWAYS": "true",
    }
    products = doctor.folder / "products.zip"
    url = doctor.at(AT.data_url)
    answer = doctor.client.send("POST", url, form=form, again=True, most_bytes=8 << 20)
    if answer.status != 200:
        raise Differs(f"{url}: answered {answer.status}: {words(answer.content.decode(errors='replace'))}")
    products.write_bytes(answer.content)
    found = gaiaquery.spectra(products, ids, url)
    if len(found) != 1:
        raise Differs(f"{url}: gave {plural(len(found), 'spectrum')} of gaia:{ids[0]}, which has one in the files")
    return f"the spectrum of gaia:{ids[0]}, as {AT.data_structure} {AT.data_format}"


def hats(doctor: Doctor) -> str:
    """Properties and columns of the HATS catalogue of Gaia."""
    address = sample(doctor.samples.hats, "hats")
    service = hatssource.gaia(doctor.at(address) if "://" in address else address)
    try:
        told, columns = service.identity, service.columns
    except ImportError as error:
        raise Skip(str(error)) from None
    if lacking := [n for n in SOURCE_COLUMNS if n not in columns]:
        raise Differs(f"{address}: lacks {', '.join(lacking)}, which was assumed")
    name, n_rows = (told.get(k, "not said") for k in ("obs_collection", "hats_nrows"))
    return f"{name}: {n_rows} rows, {plural(len(columns), 'column')} that are read"


# --- SDSS


def sky_server(doctor: Doctor) -> str:
    """The rows of a work cell, asked and read as a build does."""
    cell = int(sample(doctor.samples.sdss_cell, "sdss_cell"))
    service = sdssquery.SdssQuery(doctor.at(sdssquery.URL), timeout_s=doctor.patience_s)
    into = doctor.folder / f"{WORK_ORDER}-{cell}.parquet"
    service.fetch(f"{service.prefix}{into.name}", into, no_file)
    table = Sdss("dr17").read(into)
    if not table.num_rows:
        raise Differs(f"{service.table.partition(' ')[0]}: has no row in work cell {cell}; assumed some")
    reruns = sorted(set(table["run2d"].to_pylist()))
    return f"{plural(table.num_rows, 'row')} of work cell {cell}, of RUN2D {', '.join(reruns)}"


TAP_HOST, LAB_HOST, SKY_HOST, VIEWER_HOST = (
    str(urlsplit(u).netloc) for u in (AT.tap_url, datalab.URL, sdssquery.URL, viewer.URL)
)
_COLUMNS = "has the columns that are asked for"
CHECKS: Mapping[str, tuple[Check, ...]] = {
    "legacysurvey": (
        Check("Data Lab's table", f"ls_dr10.tractor {_COLUMNS}", data_lab("legacysurvey", tractor), LAB_HOST, True),
        Check("the viewer", "gives cubes about a position, with the header that is read", cut_out, VIEWER_HOST, True),
    ),
    "hsc": (
        Check("the database", f"columns of {SCHEMA}.{', '.join(TABLES)}; fluxes in nJy", forced, HSC_HOST),
        Check("dereddened z", f"{ALREADY} is z_cmodel_mag - a_z, or is not there", dereddened, HSC_HOST),
    ),
    "gaia": (
        Check("TAP answers", f"{TAP_HOST} gives an answer, whatever it is", availability, TAP_HOST, True),
        Check("TAP's table", f"{TABLE} {_COLUMNS}", gaia_source, TAP_HOST),
        Check("spectra by id", "DataLink gives an XP spectrum that is read", data_link, TAP_HOST),
        Check("HATS catalogue", "has the columns that are read", hats),
    ),
    "desi": (Check("Data Lab's tables", f"desi_dr1 {_COLUMNS}", data_lab("desi", zpix), LAB_HOST, True),),
    "sdss": (Check("SkyServer", f"SpecObjAll {_COLUMNS}", sky_server, SKY_HOST, True),),
}
"""By survey, in the order in which they are made."""

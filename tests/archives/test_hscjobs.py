"""HSC's database as files: tables through jobs on loopback, every ending of a job, and where a secret may not be."""

import json
import logging
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import healpy
import httpx
import numpy as np
import pyarrow as pa
import pytest
from astropy.io import fits

from skycairn.archives.credentials import basic_auth, credential
from skycairn.archives.errors import Busy, ChecksumMismatch, FetchError, NotPublished, Refused, TimedOut, Unsafe
from skycairn.archives.files import RootArchive
from skycairn.archives.hscjobs import ALWAYS, COLUMNS, HscDatabase, plain_post, write_sorted
from skycairn.catalogs.hsc import Hsc
from skycairn.catalogs.hsccolumns import PUBLISHED, SELECT
from skycairn.catalogs.hscfiles import ROOT, TRACT_PATCHES, calexp_path, forced_path
from skycairn.catalogs.survey import WORK_ORDER
from skycairn.mirror.hscjobs import TABLES, HscJobs
from skycairn.mirror.server import Mirror, Reply, Request

HOST = "hsc-release.mtk.nao.ac.jp"
ACCOUNT, PASSWORD = "somebody@local", 'Sü§e "Geheim" nis\\%41'
LARGEST = 2**63 - 2
FEW = (*ALWAYS, "a_g", "i_sdssshape_shape11", "y_cmodel_flag")
TRACT = 9813
KINDS = {"int64": "K", "int32": "J", "float": "E", "double": "D", "bool": "L"}


def no_file(path: str) -> Path:
    raise AssertionError(f"{path} was asked for")


def write(path: Path, n: int, tract: int = TRACT) -> None:
    """A table of a tract: every third row is not primary, some fluxes are null, the last id is the largest."""
    rng = np.random.default_rng(n)
    columns = []
    for name in COLUMNS:
        kind = next((str(c.type) for c in PUBLISHED if c.name == name), "double")
        unit = next((c.unit for c in PUBLISHED if c.name == name), "deg") or None
        values: Any = rng.random(n) if kind in ("float", "double") else np.zeros(n)
        if name.endswith("_cmodel_flux"):
            values = rng.uniform(10, 1000, n)
            values[::4] = np.nan
        given = {
            "object_id": [*range(1, n), LARGEST],
            "ra": 359.9 + 0.2 * rng.random(n),
            "dec": rng.uniform(-1, 1, n),
            "tract": np.full(n, tract),
            "patch": rng.integers(0, 9, n) * 100 + rng.integers(0, 9, n),
            "isprimary": np.arange(n) % 3 > 0,
        }
        columns.append(fits.Column(name, KINDS[kind], unit=unit, array=np.array(given.get(name, values))))
    by_name = {c.name: c for c in columns}
    for b in "grizy":
        flux = by_name[f"{b}_cmodel_flux"].array.astype(np.float32).astype(np.float64)
        by_name[f"{b}_cmodel_mag"].array = 31.4 - 2.5 * np.log10(flux)
    path.parent.mkdir(parents=True, exist_ok=True)
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(columns)]).writeto(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hsc")
    write(out / forced_path(TRACT), 60)
    write(out / forced_path(9700), 9, 9700)
    return out


@pytest.fixture(autouse=True)
def account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSP_PDR_USR", ACCOUNT)
    monkeypatch.setenv("SSP_PDR_PWD", PASSWORD)


@pytest.fixture
def jobs(folder: Path) -> HscJobs:
    return HscJobs(folder, ACCOUNT, PASSWORD, companions=False)


@pytest.fixture
def root(jobs: HscJobs) -> Iterator[str]:
    with Mirror({}, {HOST: [jobs]}) as mirror:
        yield mirror.of(ROOT)


@pytest.fixture
def into(tmp_path: Path) -> Path:
    return tmp_path / "here" / "forced.fits"


@pytest.fixture
def ask(root: str, into: Path) -> Callable[..., Path]:
    """Fetches a tract's table in a folder that holds nothing else afterwards."""
    into.parent.mkdir()

    def fetch(tract: int = TRACT, leaving: int = 0, **settings: Any) -> Path:
        into.unlink(missing_ok=True)
        settings = {"sleep": lambda seconds: None, "columns": FEW, **settings}
        try:
            HscDatabase(root, **settings).fetch(forced_path(tract), into, no_file)
        finally:
            assert len([p for p in into.parent.iterdir() if p != into]) == leaving
        return into

    return fetch


def rows(table: pa.Table) -> dict[int, list[Any]]:
    table = table.drop_columns(["row"])
    return {row["key"]: [repr(v) for v in row.values()] for row in table.to_pylist()}


def primary(path: Path) -> pa.Table:
    table = Hsc("pdr3-wide").read(path)
    return table.filter(table["isprimary"])


needed = {name for cuts in SELECT.values() for cut in cuts for name in cut.columns}


class TestTable:
    @pytest.mark.parametrize("companions", [True, False])
    def test_row_for_row_as_the_archive_s_own(
        self, ask: Callable[..., Path], jobs: HscJobs, folder: Path, companions: bool
    ) -> None:
        jobs.companions = companions
        got = Hsc("pdr3-wide").read(ask(columns=COLUMNS), needed=needed)
        assert rows(got) == rows(primary(folder / forced_path(TRACT))) and got.num_rows == 40
        assert got["key"].to_pylist() == sorted(got["key"].to_pylist()) and got["key"].to_pylist()[-1] == LARGEST
        assert got["g_cmodel_flux"].null_count == got["g_cmodel_mag"].null_count > 0

    def test_all_of_the_mock_sky(self, tiny_sky: Path, into: Path) -> None:
        """With the cuts that all profiles make."""
        into.parent.mkdir()
        sky = tiny_sky / "hsc"
        with Mirror({}, {HOST: [HscJobs(sky, ACCOUNT, PASSWORD, states=())]}) as mirror:
            database = HscDatabase(mirror.of(ROOT), tract_list=lambda: sky / TRACT_PATCHES)
            files = sorted((sky / "sql/pdr3_wide").glob("forced-*.fits"))
            assert files
            for k, path in enumerate(files):
                new = into.with_name(str(k))
                database.fetch(f"sql/pdr3_wide/{path.name}", new, no_file)
                assert rows(Hsc("pdr3-wide").read(new, needed=needed)) == rows(primary(path))

    def test_same_rows_same_bytes(self, ask: Callable[..., Path], jobs: HscJobs) -> None:
        jobs.companions = True
        once = ask(columns=COLUMNS).read_bytes()
        again = ask(columns=COLUMNS).read_bytes()
        assert once == again and jobs.count("submit") == 2
        assert not re.search(rb"DATE|COMMENT|job|20\d\d-", once.partition(b"END ")[2][:40000].partition(b"END ")[0])
        jobs.companions = False
        assert ask(columns=COLUMNS).read_bytes() == once

    def test_the_service_s_rows_do_come_in_another_order(self, jobs: HscJobs, root: str) -> None:
        sql = HscDatabase(root, columns=FEW).sql(TRACT)[0]
        ids = []
        for _ in range(2):
            number = post(root, "submit", catalog_job={"sql": sql, "out_format": "fits", "release_version": "pdr3"})[
                "id"
            ]
            for _ in range(3):
                post(root, "status", id=number)
            reply = plain_post(f"{root}/datasearch/api/catalog_jobs/download", sent(id=number))[2]
            ids.append(fits.BinTableHDU.fromstring(reply[2880:]).data["object_id"].tolist())
        assert ids[0] != ids[1] and sorted(ids[0]) == sorted(ids[1])

    def test_units_and_order_of_columns(self, ask: Callable[..., Path]) -> None:
        with fits.open(ask(columns=COLUMNS)) as hdus:
            found = {c.name: c.unit for c in hdus[1].columns}
        assert list(found) == list(COLUMNS)
        assert found["ra"] == "deg" and found["g_cmodel_flux"] == "nJy" and found["a_y"] == "mag"

    def test_an_empty_tract_is_an_empty_table(self, ask: Callable[..., Path]) -> None:
        path = ask(4242, columns=COLUMNS)
        got = Hsc("pdr3-wide").read(path, needed=needed)
        assert got.num_rows == 0 and got.schema.field("key").type == pa.int64()
        assert Hsc("pdr3-wide").n_rows(path) == 0

    def test_a_tract_in_ranges_of_patches(self, ask: Callable[..., Path], jobs: HscJobs) -> None:
        whole = ask().read_bytes()
        assert ask(patch_bounds=(200, 305, 700)).read_bytes() == whole
        assert jobs.count("submit") == 5 and not jobs.live

    def test_null_whole_numbers_and_flags_stay_null(self, tmp_path: Path) -> None:
        def column(name: str, form: str, values: list[Any], **more: Any) -> fits.Column:
            return fits.Column(name, form, array=np.array(values), **more)

        columns = [
            column("OBJECT_ID", "K", [LARGEST, 7, 5]),
            column("n", "J", [9, 8, 7]),
            column("n_isnull", "L", [True, False, False]),
            column("flag", "L", [True, True, False]),
            column("flag_isnull", "L", [True, False, False]),
            column("m", "J", [-1, 8, 7], null=-1),
            column("x", "E", [1.0, 2.0, 3.0]),
            column("x_isnull", "L", [False, True, False]),
        ]
        reply = tmp_path / "reply"
        fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(columns)]).writeto(reply)
        write_sorted([reply], ["object_id", "n", "flag", "m", "x"], tmp_path / "out", "here")
        with fits.open(tmp_path / "out") as hdus:
            data = hdus[1].data
            assert data["object_id"].tolist() == [5, 7, LARGEST]
            assert data["n"].tolist() == [7, 8, 0] and data["n_isnull"].tolist() == [False, False, True]
            assert data["flag"].tolist() == [False, True, False] and data["flag_isnull"].tolist() == [
                False,
                False,
                True,
            ]
            assert data["m"].tolist() == [7, 8, 0] and data["m_isnull"].tolist() == [False, False, True]
            assert np.isnan(data["x"]).tolist() == [False, True, False] and "x_isnull" not in data.names

    def test_rows_of_one_id_come_in_one_order(self, tmp_path: Path) -> None:
        made = []
        for k, order in enumerate(([0, 1, 2, 3], [3, 2, 0, 1])):
            ids, x = np.array([8, 8, 3, 8])[order], np.array([1.5, -1.5, 0, np.nan], np.float32)[order]
            columns = [fits.Column("object_id", "K", array=ids), fits.Column("x", "E", array=x)]
            hdus = [fits.PrimaryHDU(), fits.BinTableHDU.from_columns(columns)]
            fits.HDUList(hdus).writeto(tmp_path / f"reply-{k}")
            write_sorted([tmp_path / f"reply-{k}"], ["object_id", "x"], tmp_path / f"{k}", "here")
            made.append((tmp_path / f"{k}").read_bytes())
        assert made[0] == made[1]

    @pytest.mark.parametrize(
        ("name", "form", "words"),
        [("other", "K", "no column 'object_id'"), ("object_id", "D", "f8; wanted one kind, and whole numbers")],
    )
    def test_a_reply_without_its_key_is_refused(self, tmp_path: Path, name: str, form: str, words: str) -> None:
        table = fits.BinTableHDU.from_columns([fits.Column(name, form, array=np.arange(2))])
        fits.HDUList([fits.PrimaryHDU(), table]).writeto(tmp_path / "reply")
        with pytest.raises(FetchError, match=f"here: .*{words}"):
            write_sorted([tmp_path / "reply"], ["object_id"], tmp_path / "out", "here")
        assert not (tmp_path / "out").exists()


def sent(**body: Any) -> dict[str, Any]:
    return {"credential": {"account_name": ACCOUNT, "password": PASSWORD}, "clientVersion": 20190514.1, **body}


def post(root: str, verb: str, **body: Any) -> dict[str, Any]:
    found = json.loads(plain_post(f"{root}/datasearch/api/catalog_jobs/{verb}", sent(**body))[2])
    assert isinstance(found, dict)
    return found


class TestEndings:
    """However a job ends, it is not left at the archive, and nothing is left here."""

    @pytest.mark.parametrize(
        ("trouble", "error", "words", "asked"),
        [
            (
                "error",
                FetchError,
                r"job 1 ended as 'error', the database said: ERROR:  canceling.*\nSELECT\n  object_id",
                1,
            ),
            ("html table", ChecksumMismatch, "wanted a FITS table, found the page .*Under maintenance", 3),
            ("cut", ChecksumMismatch, "the table of job 1 is broken: .*cut short inside header", 3),
        ],
    )
    def test_a_job_that_fails_is_deleted(
        self, ask: Callable[..., Path], jobs: HscJobs, into: Path, trouble: str, error: type, words: str, asked: int
    ) -> None:
        jobs.trouble = trouble
        with pytest.raises(error, match=re.compile(words, re.DOTALL)):
            ask()
        assert not jobs.live and jobs.count("submit") == jobs.count("delete") == 1
        assert jobs.count("download") == (asked if trouble != "error" else 0) and not into.exists()

    def test_a_job_that_is_done_is_deleted(self, ask: Callable[..., Path], jobs: HscJobs) -> None:
        ask()
        assert not jobs.live
        assert [v for v, _ in jobs.asked] == ["submit", "status", "status", "status", "download", "delete"]

    def test_an_interrupted_wait_stops_and_deletes_the_job(self, ask: Callable[..., Path], jobs: HscJobs) -> None:
        def interrupted(seconds: float) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            ask(sleep=interrupted)
        assert not jobs.live and [v for v, _ in jobs.asked] == ["submit", "status", "cancel", "delete"]

    def test_a_job_that_never_ends_meets_its_deadline(self, ask: Callable[..., Path], jobs: HscJobs) -> None:
        jobs.states = ["waiting"] * 10**6
        now, pauses = [0.0], []

        def sleep(seconds: float) -> None:
            pauses.append(seconds)
            now[0] += seconds

        with pytest.raises(TimedOut, match="job 1 is 'waiting' after 600 s; try later, give it more time, or split"):
            ask(sleep=sleep, clock=lambda: now[0], deadline_s=600)
        assert not jobs.live and now[0] <= 600
        assert pauses == sorted(pauses) and pauses[0] == 1 and pauses[-1] == 60, "pauses grow, up to a minute"

    def test_a_broken_download_is_tried_again_of_the_same_job(self, ask: Callable[..., Path], jobs: HscJobs) -> None:
        jobs.trouble = "cut"

        def mend(seconds: float) -> None:
            if jobs.count("download"):
                jobs.trouble = ""

        ask(sleep=mend)
        assert jobs.count("submit") == 1 and jobs.count("download") == 2 and not jobs.live

    def test_a_job_that_expires_is_submitted_anew(self, ask: Callable[..., Path], jobs: HscJobs) -> None:
        jobs.trouble = "expired"
        assert Hsc("pdr3-wide").n_rows(ask()) == 40
        assert jobs.count("submit") == 2 and not jobs.live

    def test_a_hiccup_does_not_lose_a_job(self, ask: Callable[..., Path], jobs: HscJobs) -> None:
        jobs.states = ["running"] * 4

        def flaky(url: str, body: dict[str, Any]) -> tuple[int, Mapping[str, str], bytes]:
            if url.endswith("status") and jobs.count("status") % 2 and len(lost) < 2:
                lost.append(url)
                return 503, {"Retry-After": "7"}, b""
            return plain_post(url, body)

        lost: list[str] = []
        ask(post=flaky)
        assert len(lost) == 2 and jobs.count("submit") == 1

    def test_a_job_that_cannot_be_deleted_is_told_and_found_again(
        self, ask: Callable[..., Path], jobs: HscJobs, caplog: pytest.LogCaptureFixture
    ) -> None:
        def deaf(url: str, body: dict[str, Any]) -> tuple[int, Mapping[str, str], bytes]:
            return (500, {}, b"down") if url.endswith("delete") else plain_post(url, body)

        whole = ask(post=deaf, leaving=1).read_bytes()
        assert "job 1 was left at the archive" in caplog.text and list(jobs.live) == [1]
        assert ask().read_bytes() == whole
        assert jobs.count("submit") == 1 and not jobs.live


class Killed(BaseException):
    """The process is no more: nothing that it would still do reaches the archive."""


def killed_at(verb: str, n: int) -> Callable[[str, dict[str, Any]], tuple[int, Mapping[str, str], bytes]]:
    """A post that works until the n-th request of a verb, and never again."""
    seen: list[str] = []

    def post(url: str, body: dict[str, Any]) -> tuple[int, Mapping[str, str], bytes]:
        seen.append(url.rpartition("/")[2])
        if seen.count(verb) >= n:
            raise Killed
        return plain_post(url, body)

    return post


class TestResume:
    @pytest.mark.parametrize(("verb", "n"), [("status", 1), ("status", 3), ("download", 1), ("delete", 1)])
    def test_a_run_that_died_finds_its_job_again(
        self, ask: Callable[..., Path], jobs: HscJobs, verb: str, n: int
    ) -> None:
        with pytest.raises(Killed):
            ask(post=killed_at(verb, n), leaving=1)
        assert list(jobs.live) == [1]
        assert Hsc("pdr3-wide").n_rows(ask()) == 40
        assert jobs.count("submit") == 1 and not jobs.live

    def test_a_note_of_a_job_that_is_gone(self, ask: Callable[..., Path], jobs: HscJobs) -> None:
        with pytest.raises(Killed):
            ask(post=killed_at("download", 1), leaving=1)
        jobs.live.clear()
        ask()
        assert jobs.count("submit") == 2 and not jobs.live

    def test_a_job_that_failed_meanwhile_is_asked_once_more(self, ask: Callable[..., Path], jobs: HscJobs) -> None:
        with pytest.raises(Killed):
            ask(post=killed_at("status", 1), leaving=1)
        jobs.live[1].cancelled = True
        ask()
        assert jobs.count("submit") == 2 and not jobs.live

    @pytest.mark.parametrize(
        "text", ["", "{", "[1]", '{"job": null}', '{"job": "../x y"}', '{"job": -1}', '{"job": true}']
    )
    def test_a_note_that_is_none(
        self, ask: Callable[..., Path], jobs: HscJobs, into: Path, tmp_path: Path, text: str
    ) -> None:
        notes = tmp_path / "notes"
        notes.mkdir()
        with pytest.raises(Killed):
            ask(post=killed_at("status", 1), notes=notes)
        (note,) = notes.iterdir()
        note.write_text(text)
        jobs.live.clear()
        ask(notes=notes)
        assert jobs.count("submit") == 2 and not jobs.live and not list(notes.iterdir())

    def test_a_job_whose_number_now_means_another_question(self, ask: Callable[..., Path], jobs: HscJobs) -> None:
        with pytest.raises(Killed):
            ask(post=killed_at("status", 1), leaving=1)
        jobs.live[1].sql = HscDatabase().sql(9700)[0]
        with pytest.raises(ChecksumMismatch, match=r"for tract 9813 is not its table: it holds rows of tract 9700"):
            ask()
        assert not jobs.live
        assert Hsc("pdr3-wide").n_rows(ask()) == 40

    def test_another_release_is_another_question(self, ask: Callable[..., Path], jobs: HscJobs) -> None:
        with pytest.raises(Killed):
            ask(post=killed_at("status", 1), leaving=1)
        ask(release_version="pdr3-citus", leaving=1)
        assert jobs.count("submit") == 2 and list(jobs.live) == [1]


@pytest.mark.parametrize("trouble", ["", "silent account"])
def test_fault_34_a_wrong_password_stops_at_once(
    ask: Callable[..., Path], jobs: HscJobs, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    """The archive repeats what it was sent; the message does not."""
    jobs.trouble = trouble
    monkeypatch.setenv("SSP_PDR_PWD", 'Verratenes & "Wort"')
    with pytest.raises(
        Refused,
        match=r"its password, which are those of SSP_PDR_USR and .* environment; get an account",
    ) as caught:
        ask()
    assert len(jobs.asked) == 1 and not jobs.live
    assert "Verratenes" not in str(caught.value) and "(hidden)" in str(caught.value)


def test_fault_34_a_password_that_expires_while_a_job_runs(
    ask: Callable[..., Path], jobs: HscJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refused password is not sent again; with the new one the job is found."""

    def change(seconds: float) -> None:
        jobs.password = "new"

    with pytest.raises(Refused):
        ask(sleep=change, leaving=1)
    assert [v for v, _ in jobs.asked] == ["submit", "status", "status"]
    monkeypatch.setenv("SSP_PDR_PWD", "new")
    ask()
    assert jobs.count("submit") == 1 and not jobs.live


def test_fault_34_no_account_no_request(
    ask: Callable[..., Path], jobs: HscJobs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("SSP_PDR_USR", "SSP_PDR_PWD"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setitem(__import__("sys").modules, "keyring", None)
    with pytest.raises(Refused, match="wants an account, and there is none here"):
        ask()
    assert not jobs.asked


@pytest.mark.parametrize("trouble", ["", "error", "expired", "html", "html table", "cut", "busy", "wrong"])
def test_fault_34_the_secret_is_nowhere(
    ask: Callable[..., Path],
    jobs: HscJobs,
    root: str,
    into: Path,
    caplog: pytest.LogCaptureFixture,
    trouble: str,
) -> None:
    """In no log (httpx's included), message, traceback, note, file, representation or question."""
    caplog.set_level(logging.DEBUG)
    jobs.trouble = trouble
    if trouble == "wrong":
        jobs.password = "another"
    shown = [repr(HscDatabase(root)), HscDatabase(root).question(forced_path(TRACT))]
    try:
        ask()
    except FetchError as error:
        shown += traceback.format_exception(error)
        chain = error.__cause__ or error.__context__
        assert chain is None or isinstance(chain, FetchError | ValueError), "httpx's errors hold what was sent"
    with pytest.raises(Killed):
        jobs.trouble, jobs.password = "", PASSWORD
        ask(post=killed_at("status", 2), leaving=1)
    shown += [p.name + p.read_bytes().decode("latin-1") for p in into.parent.iterdir()]
    assert "HTTP Request: POST" in caplog.text, "httpx logs"
    shown.append(caplog.text)
    secrets = ("Geheim", PASSWORD[:4], basic_auth(credential("hsc"))[6:])
    for text in shown:
        assert not any("".join(s) in text for s in secrets)
    for text in (shown[1], shown[-2]):
        assert ACCOUNT not in text, "the account's name is in no question and no note"


class TestService:
    def test_too_many_jobs(self, ask: Callable[..., Path], jobs: HscJobs) -> None:
        jobs.most_jobs = 0
        with pytest.raises(Busy, match="you have too many jobs"):
            ask()
        assert len(jobs.asked) == 1

    def test_a_maintenance_page(self, ask: Callable[..., Path], jobs: HscJobs) -> None:
        jobs.trouble = "html"
        with pytest.raises(Busy, match="wanted JSON, found 'HSC-SSP Under maintenance until Monday'"):
            ask()
        assert len(jobs.asked) == 1

    def test_a_file_without_a_table(self, ask: Callable[..., Path], jobs: HscJobs) -> None:
        image = fits.PrimaryHDU(np.zeros((2, 2), np.float32))

        def blank(url: str, body: dict[str, Any]) -> tuple[int, Mapping[str, str], bytes]:
            found = plain_post(url, body)
            return (200, {}, image.header.tostring().encode() + bytes(2880)) if url.endswith("download") else found

        with pytest.raises(ChecksumMismatch, match=r"is not its table: .*holds no binary table"):
            ask(post=blank)
        assert not jobs.live

    def test_an_archive_that_is_away(self, into: Path, tmp_path: Path) -> None:
        with pytest.raises(Busy, match=r"no reply.*try later") as caught:
            HscDatabase("http://127.0.0.1:9").fetch(forced_path(TRACT), tmp_path / "x", no_file)
        assert caught.value.__cause__ is None and caught.value.__context__ is None

    def test_it_asks_to_wait(self, ask: Callable[..., Path]) -> None:
        with pytest.raises(Busy, match=r"HTTP 429.*it asks to wait 30"):
            ask(post=lambda url, body: (429, {"Retry-After": "30"}, b"slow down"))

    def test_a_release_that_it_does_not_have(self, ask: Callable[..., Path]) -> None:
        with pytest.raises(FetchError, match=r"HTTP 406, .*unknown release version 'dr9'.*check the service's address"):
            ask(release_version="dr9")

    @pytest.mark.parametrize("submitted", [{}, {"id": None}, {"id": "a b"}, {"id": True}, [1]])
    def test_a_reply_without_a_job(self, ask: Callable[..., Path], submitted: object) -> None:
        with pytest.raises(FetchError, match=r"wanted (a job|JSON)"):
            ask(post=lambda url, body: (200, {}, json.dumps(submitted).encode()))

    def test_a_password_is_not_sent_where_the_archive_leads(self, into: Path) -> None:
        asked: list[Request] = []

        def leads_on(request: Request) -> Reply:
            asked.append(request)
            return Reply(307, b"", {"Location": f"{request.base}/elsewhere?token=1"})

        with (
            Mirror({}, {HOST: [leads_on]}) as mirror,
            pytest.raises(Unsafe, match=r"leads on to .*/elsewhere', where no"),
        ):
            HscDatabase(mirror.of(ROOT)).fetch(forced_path(TRACT), into, no_file)
        assert len(asked) == 1

    def test_a_column_that_two_tables_have(self, ask: Callable[..., Path], jobs: HscJobs) -> None:
        jobs.tables = {**TABLES, "forced2": (*TABLES["forced2"], "a_g", "y_cmodel_flag")}
        with pytest.raises(FetchError, match='column reference "a_g" is ambiguous'):
            ask()
        named = HscDatabase("https://x").table_of
        whole = ask(table_of={**named, "a_g": "forced2"})
        assert Hsc("pdr3-wide").n_rows(whole) == 40 and not jobs.live

    def test_a_table_that_is_not_there(self, ask: Callable[..., Path], jobs: HscJobs) -> None:
        with pytest.raises(FetchError, match=r'relation "pdr3_wide.forced4" does not exist; check the names of tables'):
            ask(tables=("forced", "forced2", "forced4"))
        jobs.tables = {k: [c for c in v if c != "i_sdssshape_shape11"] for k, v in TABLES.items()}
        with pytest.raises(FetchError, match='column "i_sdssshape_shape11" does not exist'):
            ask()
        assert not jobs.live

    @pytest.mark.parametrize(
        "path",
        [
            "sql/pdr3_wide/sha256sum.txt",
            "sql/pdr3_wide/forced-1 OR 1=1.fits",
            "sql/pdr3_wide/forced-1;DROP TABLE x.fits",
            "sql/pdr3_wide/forced--1.fits",
            "sql/pdr3_wide/forced-007.fits",
            "sql/pdr3_wide/forced-\u0669\u0668.fits",
            "sql/pdr3_wide/../pdr3_wide/forced-1.fits",
            "sql/pdr2_wide/forced-1.fits",
        ],
    )
    def test_paths_of_no_tract_are_not_published(self, root: str, jobs: HscJobs, into: Path, path: str) -> None:
        for call in (HscDatabase(root).question, lambda p: HscDatabase(root).fetch(p, into, no_file)):
            with pytest.raises(NotPublished, match="gives tables of tracts alone"):
                call(path)
        assert not jobs.asked

    @pytest.mark.parametrize("tract", ["1; DROP TABLE x", "1", 1.5, -1, 2**31, None])
    def test_a_tract_is_a_whole_number(self, tract: Any) -> None:
        with pytest.raises((TypeError, ValueError)):
            HscDatabase().sql(tract)

    def test_the_question(self) -> None:
        asked = HscDatabase().question(forced_path(9813))
        assert asked.startswith(
            f"POST {ROOT}/datasearch/api/catalog_jobs\nrelease_version pdr3\nSELECT\n  object_id,\n"
        )
        assert "FROM pdr3_wide.forced\nLEFT JOIN pdr3_wide.forced2 USING (object_id)\n" in asked
        assert asked.endswith("WHERE forced.isprimary\nAND forced.tract = 9813")
        assert len({asked, HscDatabase(release_version="pdr3-citus").question(forced_path(9813))}) == 2
        assert len({asked, HscDatabase().question(forced_path(9812))}) == 2
        for name in needed | {"object_id", "ra", "dec", "tract", "patch"}:
            assert re.search(rf"\b{name}\b", asked)

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"root": f"http://{HOST}"}, "wanted https"),
            ({"root": f"https://me:geheim@{HOST}"}, "holds an account"),
            ({"root": f"https://{HOST}?x=1"}, "wanted https"),
            ({"schema": "pdr3_wide; --"}, "no name of a schema"),
            ({"tables": ("forced", "x.y")}, "no name of a schema"),
            ({"tables": ()}, "no table is named"),
            ({"columns": ("object_id", "ra", "dec", "tract", "patch")}, "columns lack 'isprimary'"),
            ({"columns": (*ALWAYS, "1; --")}, "columns name '1; --'"),
            ({"table_of": {"a_g": "forced9"}}, "table_of has 'a_g'"),
            ({"table_of": {"a_u": "forced"}}, "table_of has 'a_u'"),
            ({"patch_bounds": (300, 200)}, "wanted whole numbers that rise"),
        ],
    )
    def test_settings_that_are_none(self, settings: dict[str, Any], words: str) -> None:
        with pytest.raises(ValueError, match=words) as caught:
            HscDatabase(**settings)
        assert "geheim" not in str(caught.value)

    def test_the_files_of_cells(self, tiny_sky: Path) -> None:
        """Those that a root with a list of checksums names, and none without tract."""
        sky = tiny_sky / "hsc"
        database = HscDatabase(tract_list=lambda: sky / TRACT_PATCHES)
        some = sorted((sky / "sql/pdr3_wide").glob("forced-*.fits"))
        cells: set[int] = set()
        for path in some:
            table = Hsc("pdr3-wide").read(path)
            at = healpy.ang2pix(1 << WORK_ORDER, *(table[c].to_numpy() for c in ("ra", "dec")), nest=True, lonlat=True)
            cells |= set(at.tolist())
        for asked in (cells, sorted(cells)[:1], [0]):
            found = database.catalog_files(asked)
            assert found is not None
            assert [f.path for f in found] == [f.path for f in Hsc("pdr3-wide").catalog_files(RootArchive(sky), asked)]
            assert {f.checksum_list for f in found} <= {None}
        assert database.catalog_files(cells) and database.catalog_files([0]) == []
        assert HscDatabase().catalog_files(cells) is None

    def test_coadds_ask_for_the_same_account(self, jobs: HscJobs, root: str, folder: Path) -> None:
        jobs.locked = ("/archive/",)
        path = calexp_path("i", TRACT, 405)
        assert httpx.get(f"{root}/{path}").status_code == 401
        who = {"Authorization": basic_auth(credential("hsc"))}
        assert httpx.get(f"{root}/{path}", headers=who).status_code == 404, "let in; this sky has no such file"

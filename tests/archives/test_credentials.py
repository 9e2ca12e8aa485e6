"""Accounts: where they are looked for, how to set them, and that nothing shows them."""

import copy
import json
import logging
import pickle
import subprocess
import sys
import traceback
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from skycairn.archives.credentials import Credential, Secret, basic_auth, credential, how_to_set
from skycairn.archives.errors import Refused

HOST = "hsc-release.mtk.nao.ac.jp"
PASSWORD = 'Sü§e "<Geheim>&nis\\%41'


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No account anywhere; gives the path of a netrc that is not there."""
    for name in ("SSP_PDR_USR", "SSP_PDR_PWD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setitem(sys.modules, "keyring", None)
    return tmp_path / "netrc"


def netrc(path: Path, text: str, mode: int = 0o600) -> None:
    path.write_text(text)
    path.chmod(mode)


def keyring(monkeypatch: pytest.MonkeyPatch, held: dict[str, str], tells_names: bool = True) -> None:
    def get_credential(host: str, user: str | None) -> SimpleNamespace | None:
        if user is None and tells_names and host == HOST and held:
            user = next(iter(held))
        return SimpleNamespace(username=user, password=held[user]) if user in held and host == HOST else None

    module = ModuleType("keyring")
    module.get_credential = get_credential  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "keyring", module)


def found(name: str = "hsc") -> tuple[str, str]:
    who = credential(name)
    return "".join(who.account), "".join(who.password)


def test_of_the_environment_then_netrc_then_the_keyring(monkeypatch: pytest.MonkeyPatch, nowhere: Path) -> None:
    keyring(monkeypatch, {"c": "of the keyring"})
    assert found() == ("c", "of the keyring") and credential("hsc").place == "the keyring"
    netrc(nowhere, f"machine elsewhere login x password y\nmachine {HOST} login b password of-netrc\n")
    assert found() == ("b", "of-netrc") and credential("hsc").place == str(nowhere)
    monkeypatch.setenv("SSP_PDR_USR", "a")
    monkeypatch.setenv("SSP_PDR_PWD", "of the environment")
    assert found() == ("a", "of the environment")
    assert credential("hsc").place == "SSP_PDR_USR and SSP_PDR_PWD of the environment"


def test_a_name_in_the_environment_says_whose_password_is_looked_for(
    monkeypatch: pytest.MonkeyPatch, nowhere: Path
) -> None:
    monkeypatch.setenv("SSP_PDR_USR", "c")
    netrc(nowhere, f"machine {HOST} login b password of-netrc\n")
    keyring(monkeypatch, {"b": "another's", "c": "mine"}, tells_names=False)
    assert found() == ("c", "mine")
    monkeypatch.delenv("SSP_PDR_USR")
    nowhere.unlink()
    with pytest.raises(Refused, match="there is none here"):
        credential("hsc")


def test_a_missing_account_says_all_three_ways(nowhere: Path) -> None:
    with pytest.raises(Refused) as caught:
        credential("hsc")
    for way in (
        "SSP_PDR_USR and SSP_PDR_PWD",
        f"machine {HOST} login",
        f"chmod 600 {nowhere}",
        f"keyring set {HOST}",
        "get an account at https://",
    ):
        assert way in str(caught.value)


def test_half_an_account_is_not_completed_from_elsewhere(monkeypatch: pytest.MonkeyPatch, nowhere: Path) -> None:
    netrc(nowhere, f"machine {HOST} login b password of-netrc\n")
    monkeypatch.setenv("SSP_PDR_PWD", PASSWORD)
    with pytest.raises(Refused, match="SSP_PDR_PWD is set and SSP_PDR_USR is not") as caught:
        credential("hsc")
    assert PASSWORD not in str(caught.value)


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSP_PDR_USR", "")
    monkeypatch.setenv("SSP_PDR_PWD", "")
    with pytest.raises(Refused, match="there is none here"):
        credential("hsc")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620])
def test_fault_35_a_netrc_that_others_can_read_is_refused(nowhere: Path, mode: int) -> None:
    netrc(nowhere, f"machine {HOST} login b password {'geheim'}\n", mode)
    with pytest.raises(Refused, match=rf"others can read it \(mode {mode:o}\).*`chmod 600 {nowhere}`") as caught:
        credential("hsc")
    assert "geheim" not in str(caught.value)
    nowhere.chmod(0o400)
    assert found() == ("b", "geheim")


def test_a_netrc_without_this_archive_is_nobody_s_business(nowhere: Path) -> None:
    """Neither who may read it, nor the password that it has for all others."""
    netrc(nowhere, "machine elsewhere login x password y\ndefault login x password y\n", 0o644)
    with pytest.raises(Refused, match="there is none here"):
        credential("hsc")


@pytest.mark.parametrize("text", [f"machine {HOST} login b password two geheim\n", "\xff\xfe geheim"])
def test_a_netrc_that_is_none_is_refused_without_its_words(nowhere: Path, text: str) -> None:
    nowhere.write_bytes(text.encode("latin-1"))
    nowhere.chmod(0o600)
    with pytest.raises(Refused, match="not in the form of a netrc") as caught:
        credential("hsc")
    assert "geheim" not in "".join(traceback.format_exception(caught.value))


def test_a_keyring_that_fails_is_no_keyring(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("keyring")
    monkeypatch.setitem(sys.modules, "keyring", module)  # has no get_credential
    with pytest.raises(Refused, match="there is none here"):
        credential("hsc")


def test_keyring_is_not_imported_before_it_is_needed() -> None:
    code = "import skycairn.archives.credentials, sys; assert 'keyring' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_unknown_names_are_a_mistake() -> None:
    for call in (credential, how_to_set):
        with pytest.raises(ValueError, match="no account 'hcs'; choose of hsc"):
            call("hcs")


def test_nothing_shows_a_secret(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    who = Credential("hsc", "somebody", PASSWORD)
    logging.getLogger("test").info("%s %r %s %s", who, who.password, {"in": who.password}, [basic_auth(who)])
    shown = [repr(who), str(who), f"{who} {who.password} {who.password:>40}", repr(who.__getstate__()), caplog.text]
    shown += [repr({"password": who.password, "account": who.account}), str([who.password[:5], basic_auth(who)])]
    shown += [repr(pickle.dumps(who)), repr(dir(who))]
    for text in shown:
        assert not any(part in text for part in (PASSWORD, PASSWORD[:5], "Geheim", "somebody", basic_auth(who)[6:]))
    assert repr(who) == "Credential('hsc')" and f"{who.password}" == "(hidden)"
    with pytest.raises(TypeError):
        vars(who)
    with pytest.raises(TypeError):
        json.dumps(who)
    for travel in (pickle.dumps, copy.copy):
        with pytest.raises(TypeError, match="send the account's name"):
            travel(who.password)


def test_only_the_name_travels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSP_PDR_USR", "somebody")
    monkeypatch.setenv("SSP_PDR_PWD", "at home")
    sent = pickle.dumps(credential("hsc"))
    assert b"at home" not in sent and b"somebody" not in sent
    monkeypatch.setenv("SSP_PDR_PWD", "on the worker")
    assert "".join(pickle.loads(sent).password) == "on the worker"
    monkeypatch.delenv("SSP_PDR_PWD")
    with pytest.raises(Refused):
        pickle.loads(sent)


def test_what_is_sent_is_the_secret_itself() -> None:
    who = Credential("hsc", "somebody", PASSWORD)
    assert json.loads(json.dumps({"password": who.password})) == {"password": PASSWORD}
    assert basic_auth(Credential("hsc", "Aladdin", "open sesame")) == Secret("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==")
    assert copy.deepcopy(who) is who


@pytest.mark.parametrize("spelt", [str, json.dumps, repr, lambda s: f"?p={s}&", lambda s: json.dumps(f"<{s}>")])
def test_words_that_repeat_a_secret_are_hidden(spelt: object) -> None:
    who = Credential("hsc", "somebody", PASSWORD)
    text = spelt(PASSWORD)  # type: ignore[operator]
    assert "Geheim" in text
    assert "Geheim" not in who.hide(text) and "(hidden)" in who.hide(text)
    assert basic_auth(who)[6:] not in who.hide(f"you sent {''.join(basic_auth(who))}")
    assert who.hide("nothing of it") == "nothing of it"

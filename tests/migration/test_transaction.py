"""Apply, roll back, finish: whole or not at all, whatever interrupts them."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.migration.helpers import MODEL, picture
from vistrald.cli import main
from vistrald.migration import transaction
from vistrald.migration.changes import Change, changes_of, read_client
from vistrald.migration.effects import Effects
from vistrald.migration.journal import SLOT_BYTES, Phase, Run, latest
from vistrald.migration.prepare import MARKER, MigrationError
from vistrald.migration.scan import scan

CLIENT = Path(__file__).parent / "client.py.txt"


def plan_for(root: Path) -> Callable[[], list[Change]]:
    return lambda: changes_of(scan(root), CLIENT.read_bytes())[0]


def apply(root: Path, archive: Path, effects: Effects | None = None) -> transaction.Outcome:
    return transaction.apply(root, archive, plan_for(root), effects)


def small_application(root: Path) -> Path:
    """One file of each kind of step; quick enough to be killed at every effect."""
    (root / "app").mkdir(parents=True)
    (root / "app/saiga_service.py").write_text(
        "import llama_cpp\nclass SaigaService:\n    def get_stats(self): ...\n"
        "    def generate_response(self): ...\nsaiga_service = SaigaService()\n"
    )
    (root / "app/main.py").write_text("from .saiga_service import saiga_service as llm\n")
    (root / ".env").write_text("SAIGA_N_CTX=8192\n")
    (root / ".env").chmod(0o600)
    (root / "models").mkdir()
    (root / "models/saiga.gguf").write_bytes(MODEL)
    (root / "models/link.gguf").symlink_to("saiga.gguf")
    for path in (root / ".env", root / "app/main.py", root / "app", root / "models", root):
        os.utime(path, ns=(10**18 + 1, 10**18 + 2))
    return root


class Killed(BaseException):
    """What kill -9 is to a process, within one: nothing catches it."""


class Interrupted(Effects):
    """Stops before the effect of this number, which is after the one before it."""

    def __init__(self, number: int, error: BaseException) -> None:
        self.count = 0
        self._number, self._error = number, error

    def before(self, what: str, path: Path) -> None:
        self.count += 1
        if self.count == self._number:
            raise self._error


# --- There and back ----------------------------------------------------------------


@pytest.mark.requirement("2.6")
def test_rollback_is_the_identity_with_all_metadata(application: Path, tmp_path: Path) -> None:
    before = picture(application)
    outcome = apply(application, tmp_path / "archive")
    assert outcome.changed
    assert picture(application) != before
    assert transaction.roll_back(tmp_path / "archive").kept == {}
    assert picture(application) == before


@pytest.mark.requirement("2.1")
@pytest.mark.requirement("2.2")
@pytest.mark.requirement("2.3")
@pytest.mark.requirement("2.4")
@pytest.mark.requirement("2.5")
def test_nothing_of_the_old_model_is_left(application: Path, tmp_path: Path) -> None:
    apply(application, tmp_path / "archive")
    left = [each for each in scan(application).findings if each.action != "report"]
    assert left == []
    assert not list(application.glob("**/saiga*.gguf"))
    assert not list(application.glob("*_SAIGA_*.sh"))
    assert not (application / "configure_model.sh").exists()
    assert not (application / "backend/app/services/saiga_service.py").exists()
    client = application / "backend/app/services/vistral_service.py"
    assert client.read_bytes() == CLIENT.read_bytes()
    for path in application.glob("backend/**/*.py"):
        compile(path.read_bytes(), str(path), "exec")
    for path in application.glob("**/requirements*/**/*"):
        assert b"\nllama" not in path.read_bytes().replace(b"llama-cpp-python-extras", b"")


TRY_IT = """
import app.main, app.api.admin, app.api.chat, app.api.health, app.services as services
from app.services.enhanced_rag_service import enhanced_rag_service
print(type(enhanced_rag_service.llm).__name__, services.__all__[1], app.main.settings.answer_tokens)
"""
# The application's own dependency, as far as its settings need it.
SETTINGS_LIBRARY = """
from pydantic import BaseModel as BaseSettings
SettingsConfigDict = dict
"""


@pytest.mark.requirement("4.3")
def test_the_application_runs_before_after_and_back_again(
    application: Path, tmp_path: Path
) -> None:
    (tmp_path / "pydantic_settings.py").write_text(SETTINGS_LIBRARY)

    def runs() -> str:
        environment = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-W", "ignore", "-c", TRY_IT]
        home = application / "backend"
        return subprocess.check_output(command, cwd=home, env=environment, text=True).strip()

    before = picture(application)
    assert runs() == "SaigaService saiga_service 8160"
    apply(application, tmp_path / "archive")
    assert runs() == "VistralService vistral_service 4064"
    transaction.roll_back(tmp_path / "archive")
    assert runs() == "SaigaService saiga_service 8160"
    assert picture(application) == before


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    root, archive = small_application(tmp_path / "app"), tmp_path / "archive"
    odd = os.fsdecode(os.fsencode(root) + b"/\xff.env")
    Path(odd).write_text("SAIGA_N_CTX=1\n")
    before = picture(root)
    options = ("--archive", archive, "--client", CLIENT)
    assert "\\udcff.env" in str(invoke("scan", root)[1]["findings"])
    assert invoke("plan", root, "-o", tmp_path / "plan", *options)[0] == 0
    assert invoke("apply", root, *options)[0] == 0
    assert invoke("apply", root, *options, "--yes")[0] == 0
    assert Path(odd).read_text() == "VISTRAL_N_CTX=4096\n"
    assert invoke("rollback", root)[0] == 0
    assert picture(root) == before


def test_an_edited_file_keeps_its_owner_mode_and_attributes(
    application: Path, tmp_path: Path
) -> None:
    before = picture(application)[".env"]
    apply(application, tmp_path / "archive")
    after = picture(application)[".env"]
    assert after[:3] == before[:3]
    assert after[4] == before[4]  # extended attributes


def test_everything_twice_changes_nothing_the_second_time(
    application: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "archive"
    assert apply(application, archive).changed
    applied = picture(application)
    assert not apply(application, archive).changed
    assert picture(application) == applied
    assert transaction.roll_back(archive).changed
    assert not transaction.roll_back(archive).changed
    assert apply(application, archive).changed
    assert picture(application).keys() == applied.keys()
    assert transaction.finish(archive).freed_bytes == len(MODEL)
    assert not transaction.finish(archive).changed
    assert not apply(application, archive).changed
    assert not (application / MARKER).exists()
    with pytest.raises(MigrationError, match="restore a backup"):
        transaction.roll_back(archive)


def test_models_are_moved_and_not_copied(application: Path, tmp_path: Path) -> None:
    model = application / "models/saiga_mistral_7b_q4_K.gguf"
    inode = model.stat().st_ino
    apply(application, tmp_path / "archive")
    home = latest(tmp_path / "archive")
    assert home
    (moved,) = (home / "models").iterdir()
    assert moved.stat().st_ino == inode


def test_models_outside_of_the_application(application: Path, tmp_path: Path) -> None:
    models = tmp_path / "llama.cpp/models"
    models.mkdir(parents=True)
    (models / "anything.gguf").write_bytes(MODEL)
    before = picture(models)
    result = scan(application, [models])
    transaction.apply(
        application, tmp_path / "archive", lambda: changes_of(result, CLIENT.read_bytes())[0]
    )
    assert not list(models.iterdir())
    transaction.roll_back(tmp_path / "archive")
    assert picture(models) == before


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    files=st.dictionaries(
        st.sampled_from([".env", "a/.env.b", "run.sh", "requirements.txt", "a/b/c.py", "x.yml"]),
        st.tuples(
            st.lists(
                st.sampled_from(
                    ["SAIGA_N_CTX=5", "llama-cpp-python", "import llama_cpp", "é=1", "", "x = 1"]
                )
            ),
            st.sampled_from(["\n", "\r\n"]),
            st.sampled_from([0o600, 0o644, 0o755, 0o400]),
            st.integers(0, 2 * 10**18),
        ),
        min_size=1,
    )
)
def test_apply_then_rollback_is_the_identity(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, Any]
) -> None:
    root = tmp_path_factory.mktemp("tree") / "app"
    root.mkdir()
    for name, (lines, end, mode, time) in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(end.join(lines).encode())
        (root / name).chmod(mode)
        os.utime(root / name, ns=(time, time))
    before = picture(root)
    if apply(root, root.parent / "archive").changed:
        transaction.roll_back(root.parent / "archive")
    assert picture(root) == before


# --- What others changed since -----------------------------------------------------


def test_what_changed_since_is_kept_aside_and_named(tmp_path: Path) -> None:
    root, archive = small_application(tmp_path / "app"), tmp_path / "archive"
    before = picture(root)
    apply(root, archive)
    (root / ".env").write_text("VISTRAL_N_CTX=1\nNEW=1\n")  # edited later
    (root / "app/saiga_service.py").write_text("mine")  # deleted by us, made again
    (root / "app/main.py").unlink()  # edited by us, deleted later
    (root / "models/saiga.gguf").write_bytes(b"another")  # downloaded again
    (root / "app/vistral_service.py").write_text("own client")
    assert len(transaction.status(archive)["changed_since"]) == 5
    kept = transaction.roll_back(archive).kept
    assert {
        str(Path(path).relative_to(root)): Path(at).read_bytes() for path, at in kept.items()
    } == {
        ".env": b"VISTRAL_N_CTX=1\nNEW=1\n",
        "app/saiga_service.py": b"mine",
        "models/saiga.gguf": b"another",
        "app/vistral_service.py": b"own client",
    }
    assert picture(root) == before


def test_new_files_of_others_stay_and_lost_folders_come_back(tmp_path: Path) -> None:
    root, archive = small_application(tmp_path / "app"), tmp_path / "archive"
    before = picture(root)
    apply(root, archive)
    (root / "app/new.txt").write_text("x")
    for path in (root / "models").iterdir():
        path.unlink()
    (root / "models").rmdir()
    transaction.roll_back(archive)
    after = picture(root)
    assert after.pop("app/new.txt")[-1] == b"x"
    for name in before.keys() - {"app", "app/.", "."}:
        assert after[name] == before[name]


def test_a_damaged_archive_changes_nothing(tmp_path: Path) -> None:
    root, archive = small_application(tmp_path / "app"), tmp_path / "archive"
    apply(root, archive)
    home = latest(archive)
    assert home
    damaged = next(each for each in (home / "originals").iterdir() if not each.is_symlink())
    damaged.write_bytes(b"rotten")
    applied = picture(root)
    with pytest.raises(MigrationError, match=r"damaged\n.*backup"):
        transaction.roll_back(archive)
    assert picture(root) == applied


# --- Interruptions -----------------------------------------------------------------


def effects_of(tmp_path: Path, act: Callable[[Path, Path, Effects], Any]) -> int:
    root, archive = small_application(tmp_path / "counted/app"), tmp_path / "counted/archive"
    counter = Interrupted(-1, Killed())
    act(root, archive, counter)
    return counter.count


@pytest.mark.requirement("2.6")
@pytest.mark.parametrize("then", ["apply", "rollback"])
def test_killed_at_every_effect_of_apply(tmp_path: Path, then: str) -> None:
    for number in range(1, effects_of(tmp_path, apply) + 1):
        root, archive = (
            small_application(tmp_path / f"{number}/app"),
            tmp_path / f"{number}/archive",
        )
        before = picture(root)
        with pytest.raises(Killed):
            apply(root, archive, Interrupted(number, Killed()))
        if then == "apply":
            apply(root, archive)
            assert not [each for each in scan(root).findings if each.action != "report"]
            assert not apply(root, archive).changed
        try:
            transaction.roll_back(archive)
        except MigrationError:
            assert then == "rollback"  # it was killed before there was anything to go back from
        assert picture(root) == before, number


@pytest.mark.parametrize("then", ["apply", "rollback"])
def test_killed_at_every_effect_of_rollback(tmp_path: Path, then: str) -> None:
    def there_and_back(root: Path, archive: Path, effects: Effects) -> None:
        apply(root, archive)
        transaction.roll_back(archive, effects)

    for number in range(1, effects_of(tmp_path, there_and_back) + 1):
        root, archive = (
            small_application(tmp_path / f"{number}/app"),
            tmp_path / f"{number}/archive",
        )
        before = picture(root)
        apply(root, archive)
        with pytest.raises(Killed):
            transaction.roll_back(archive, Interrupted(number, Killed()))
        if then == "apply":
            apply(root, archive)
            assert not [each for each in scan(root).findings if each.action != "report"]
        transaction.roll_back(archive)
        assert picture(root) == before, number


def test_killed_at_every_effect_of_finish(tmp_path: Path) -> None:
    def all_of_it(root: Path, archive: Path, effects: Effects) -> None:
        apply(root, archive)
        transaction.finish(archive, effects)

    for number in range(1, effects_of(tmp_path, all_of_it) + 1):
        root, archive = (
            small_application(tmp_path / f"{number}/app"),
            tmp_path / f"{number}/archive",
        )
        apply(root, archive)
        with pytest.raises(Killed):
            transaction.finish(archive, Interrupted(number, Killed()))
        transaction.finish(archive)
        home = latest(archive)
        assert home
        assert {each.name for each in home.iterdir()} == {"manifest.json", "state", "kept"}
        assert not (root / MARKER).exists()


def test_a_full_disk_at_every_effect_leaves_the_application_as_it_was(tmp_path: Path) -> None:
    for number in range(1, effects_of(tmp_path, apply)):
        root, archive = (
            small_application(tmp_path / f"{number}/app"),
            tmp_path / f"{number}/archive",
        )
        before = picture(root)
        full = OSError(errno.ENOSPC, "No space left on device")
        with pytest.raises((MigrationError, OSError), match="No space left"):
            apply(root, archive, Interrupted(number, full))
        assert picture(root) == before, number


KILLER = """
import os, signal, sys
from pathlib import Path
from tests.migration.test_transaction import apply
from vistrald.migration.effects import Effects

class Deadly(Effects):
    count = 0
    def after(self, what, path):
        self.count += 1
        if self.count == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)

apply(Path(sys.argv[1]), Path(sys.argv[2]), Deadly())
"""


@pytest.mark.parametrize("part", [0.2, 0.6, 0.9])
def test_kill_9(tmp_path: Path, part: float) -> None:
    number = int(effects_of(tmp_path, apply) * part)
    root, archive = small_application(tmp_path / "app"), tmp_path / "archive"
    before = picture(root)
    command = [sys.executable, "-c", KILLER, str(root), str(archive), str(number)]
    done = subprocess.run(command, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    apply(root, archive)
    assert not [each for each in scan(root).findings if each.action != "report"]
    transaction.roll_back(archive)
    assert picture(root) == before


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """A limit of the file size stands for it: write fails half way through an original."""
    root, archive = small_application(tmp_path / "app"), tmp_path / "archive"
    (root / "run.sh").write_text("echo $SAIGA_N_CTX\n" + "# filling\n" * 1000)
    before = picture(root)
    limited = ["prlimit", "--fsize=4096", sys.executable, "-m", "vistrald", "migrate", "apply"]
    options = ["--archive", str(archive), "--client", str(CLIENT), "--yes", "--json"]
    done = subprocess.run(
        [*limited, str(root), *options], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, json.loads(done.stdout)["ok"]) == (1, False)
    assert "File too large" in done.stderr
    assert picture(root) == before
    assert latest(archive) is None


def test_a_torn_record_of_the_state_does_not_count(tmp_path: Path) -> None:
    root, archive = small_application(tmp_path / "app"), tmp_path / "archive"
    apply(root, archive)
    home = latest(archive)
    assert home
    run = Run.open(home)
    assert run
    assert run.phase is Phase.APPLIED
    state = bytearray((home / "state").read_bytes())
    slot = state.index(b"applied") // SLOT_BYTES * SLOT_BYTES
    state[slot : slot + 5] = b"9 rol"
    (home / "state").write_bytes(state)
    assert run.phase is Phase.APPLYING


# --- Refusals ----------------------------------------------------------------------


def test_two_at_once_are_locked_out(tmp_path: Path) -> None:
    root, archive = small_application(tmp_path / "app"), tmp_path / "archive"
    refusals: list[str] = []

    class Meanwhile(Effects):
        def after(self, what: str, path: Path) -> None:
            if what == "rename" and not refusals:
                for act in (
                    lambda: apply(root, tmp_path / "other"),
                    lambda: apply(root, archive),
                    lambda: transaction.roll_back(archive),
                ):
                    with pytest.raises(MigrationError) as caught:
                        act()
                    refusals.append(str(caught.value))

    apply(root, archive, Meanwhile())
    assert len(refusals) == 3
    assert all("another migration is at work" in each for each in refusals)


def test_another_archive_in_the_midst_of_it_is_refused(tmp_path: Path) -> None:
    root = small_application(tmp_path / "app")
    apply(root, tmp_path / "archive")
    with pytest.raises(MigrationError, match="is being migrated with the archive"):
        apply(root, tmp_path / "other")


def test_new_dependences_after_apply_are_refused(tmp_path: Path) -> None:
    root = small_application(tmp_path / "app")
    apply(root, tmp_path / "archive")
    (root / "b.env").write_text("SAIGA_N_CTX=1\n")
    with pytest.raises(MigrationError, match="now has 1 more changes"):
        apply(root, tmp_path / "archive")


def test_an_archive_within_the_application_is_refused(tmp_path: Path) -> None:
    root = small_application(tmp_path / "app")
    before = picture(root)
    with pytest.raises(MigrationError, match="one in the other"):
        apply(root, root / "archive")
    assert picture(root) == before


def test_hard_links_and_other_file_systems_are_refused_together(tmp_path: Path) -> None:
    root = small_application(tmp_path / "app")
    (root / "copy.env").hardlink_to(root / ".env")
    shm = Path("/dev/shm")  # noqa: S108
    archive = shm / f"archive-{os.getpid()}"
    if shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip(f"{shm} and {tmp_path} are one file system here")
    with pytest.raises(MigrationError) as caught:
        apply(root, archive)
    assert not archive.exists()
    lines = str(caught.value).splitlines()
    assert any("saiga.gguf is on another file system" in line for line in lines)
    assert any(".env has 2 hard links" in line for line in lines)


def test_a_file_that_another_program_changes_undoes_it_all(tmp_path: Path) -> None:
    root, archive = small_application(tmp_path / "app"), tmp_path / "archive"

    class Meddling(Effects):
        def after(self, what: str, path: Path) -> None:
            if path.name == "vistral_service.py" and what == "rename":
                (root / ".env").write_text("SAIGA_N_CTX=1\n")

    with pytest.raises(MigrationError, match="changed by another program"):
        apply(root, archive, Meddling())
    assert (root / "app/saiga_service.py").exists()
    assert (root / ".env").read_text() == "SAIGA_N_CTX=8192\n"
    home = latest(archive)
    assert home
    assert [each.read_text() for each in (home / "kept").iterdir()] == ["SAIGA_N_CTX=1\n"]


def test_the_client_that_comes_with_vistrald_takes_the_place(tmp_path: Path) -> None:
    root = small_application(tmp_path / "app")
    assert invoke("apply", root, "--archive", tmp_path / "archive", "--yes")[1]["changed"]
    assert (root / "app/vistral_service.py").read_bytes() == read_client()
    assert not [each for each in scan(root).findings if each.action != "report"]


# --- The command line --------------------------------------------------------------


def invoke(*arguments: object) -> tuple[int, Any]:
    answer = CliRunner().invoke(main, ["migrate", *map(str, arguments), "--json"])
    return answer.exit_code, json.loads(answer.stdout)


def test_the_commands_one_after_the_other(application: Path, tmp_path: Path) -> None:
    before = picture(application)
    options = ("--archive", tmp_path / "archive", "--client", CLIENT)
    status, report = invoke("apply", application, *options)
    assert (status, report["changed"]) == (0, False)
    assert picture(application) == before
    assert not (tmp_path / "archive").exists()
    status, report = invoke("apply", application, *options, "--yes")
    assert (status, report["changed"], report["phase"]) == (0, True, "applied")
    assert {each["kind"] for each in report["for_a_person"]} >= {"memory-limit", "patched-name"}
    assert invoke("status", application)[1]["phase"] == "applied"
    assert invoke("finish", application)[1]["would_free_bytes"] == len(MODEL)
    assert invoke("rollback", application)[1]["changed"] is True
    assert picture(application) == before
    assert invoke("rollback", application)[0] == 1  # its folder says nothing of an archive now
    assert invoke("rollback", "--archive", tmp_path / "archive")[1]["changed"] is False
    assert invoke("status", application)[1] == {"ok": True, "phase": None}

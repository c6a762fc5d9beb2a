"""migrate: what moves an application off the old model, and back."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from vistrald.cli.output import CONFIG_INVALID, REFUSED, as_json_option, finish, print_json, refuse
from vistrald.migration import plan as planning
from vistrald.migration import transaction
from vistrald.migration.changes import Change, changes_of, read_client
from vistrald.migration.finding import Finding, shown
from vistrald.migration.host import host_facts
from vistrald.migration.prepare import MigrationError, check
from vistrald.migration.scan import Scan, scan

application_argument = click.argument("application", type=click.Path(path_type=Path))
models_option = click.option(
    "--models",
    "model_folders",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    multiple=True,
    help="A folder of old models outside of APPLICATION; may be repeated.",
)
client_option = click.option(
    "--client",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Another client than the one that comes with vistrald.",
)
archive_option = click.option(
    "--archive",
    type=click.Path(path_type=Path),
    help="Where originals and old models go; on the application's file system.",
)


@click.group()
def migrate() -> None:
    """Move an application off the old model, in one transaction that can be undone."""


@migrate.command(name="scan")
@application_argument
@models_option
@as_json_option
def scan_command(application: Path, model_folders: tuple[Path, ...], as_json: bool) -> None:
    """Find everything in APPLICATION that depends on the old model; changes nothing.

    Exits 0, or 2 if APPLICATION is not a folder.
    """
    result = read(application, model_folders, as_json)
    if as_json:
        print_json({"ok": True} | result.as_dict())
        return
    for each in result.findings:
        person = "  (a person must decide)" if each.person else ""
        what = shown(each.what) or each.kind
        click.echo(f"{each.place}  {each.action}  {what}: {each.reason()}{person}")
    counts = ", ".join(f"{count} {action}" for action, count in result.counts.items())
    click.echo(f"{result.files} files, {len(result.findings)} findings: {counts or 'none'}")


@migrate.command()
@application_argument
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder of the plan.")
@click.option("--language", type=click.Choice(["ru", "en"]), default="ru", show_default=True)
@archive_option
@models_option
@client_option
@as_json_option
def plan(application: Path, output: Path | None, as_json: bool, **options: Any) -> None:
    """Write the step-by-step plan of APPLICATION's migration: plan.md and plan.html.

    Changes nothing in APPLICATION. Exits 0, 1 if there is no client to put in, 2 if APPLICATION
    is not a folder.
    """
    if output is None and not as_json:
        raise click.UsageError("name a folder for the plan with -o, or ask for --json")
    result = read(application, options["model_folders"], as_json)
    archive = options["archive"] or result.root.with_name(f"{result.root.name}-archive")
    report: dict[str, Any] = {"ok": False, "application": str(application)}

    def act() -> dict[str, Any]:
        changes, failed = plan_changes(result, options["client"])
        made = planning.make_plan(
            result,
            changes,
            failed,
            archive=archive.absolute(),
            host=host_facts(result.root),
            made=datetime.now().astimezone(),
            language=options["language"],
            model_folders=options["model_folders"],
        )
        written = planning.write_plan(made, output) if output else []
        return made | {
            "written": [str(path) for path in written],
            "text": "\n".join(map(str, written)),
        }

    _answer(report, act, as_json)


@migrate.command()
@application_argument
@click.option(
    "--archive",
    type=click.Path(path_type=Path),
    required=True,
    help="Where originals and old models go; on the application's file system.",
)
@models_option
@client_option
@click.option("--yes", is_flag=True, help="Act; without it only say what would be done.")
@as_json_option
def apply(application: Path, archive: Path, yes: bool, as_json: bool, **options: Any) -> None:
    """Migrate APPLICATION in one transaction, or go on with one that was interrupted.

    Stop what uses the application first. Exits 0, 1 if it was refused or undone.
    """
    report: dict[str, Any] = {"ok": False, "application": str(application), "changed": False}
    seen: list[Finding] = []

    def wanted() -> list[Change]:
        result = read(application, options["model_folders"], as_json)
        changes, failed = plan_changes(result, options["client"])
        seen[:] = [each for each in (*result.findings, *failed) if each.person]
        return changes

    def act() -> dict[str, Any]:
        if not yes:
            changes = wanted()
            check(application.resolve(), archive.resolve(), changes)
            lines = [shown(f"{each.kind} {each.path}") for each in changes]
            return {"would": lines, "text": "\n".join([*lines, "Nothing was done; add --yes."])}
        outcome = transaction.apply(application, archive, wanted)
        undo = f"vistrald migrate rollback {application}"
        return outcome.as_dict() | {"text": f"{_told(outcome)}; to undo it: {undo}", "undo": undo}

    _answer(report, act, as_json, lambda: {"for_a_person": [each.as_dict() for each in seen]})


@migrate.command()
@click.argument("application", type=click.Path(path_type=Path), required=False)
@archive_option
@as_json_option
def rollback(application: Path | None, archive: Path | None, as_json: bool) -> None:
    """Put everything back as it was; what was changed since is kept in the archive and named.

    Exits 0, 1 if there is nothing to go back to or the archive is damaged.
    """
    report: dict[str, Any] = {"ok": False, "changed": False}

    def act() -> dict[str, Any]:
        outcome = transaction.roll_back(_archive(application, archive))
        kept = [
            f"{path} was changed since; that version: {at}" for path, at in outcome.kept.items()
        ]
        return outcome.as_dict() | {"text": "\n".join([*kept, _told(outcome)])}

    _answer(report, act, as_json)


@migrate.command(name="finish")
@click.argument("application", type=click.Path(path_type=Path), required=False)
@archive_option
@click.option("--yes", is_flag=True, help="Act; there is no way back.")
@as_json_option
def finish_command(
    application: Path | None, archive: Path | None, yes: bool, as_json: bool
) -> None:
    """Free the old models and the originals. There is no rollback after it."""
    report: dict[str, Any] = {"ok": False, "changed": False}

    def act() -> dict[str, Any]:
        place = _archive(application, archive)
        if not yes:
            freed = transaction.status(place).get("model_bytes", 0)
            return {
                "would_free_bytes": freed,
                "text": f"Would free {freed} bytes of models and end the way back; add --yes.",
            }
        outcome = transaction.finish(place)
        return outcome.as_dict() | {"text": f"{_told(outcome)}, {outcome.freed_bytes} bytes freed"}

    _answer(report, act, as_json)


@migrate.command()
@click.argument("application", type=click.Path(path_type=Path), required=False)
@archive_option
@as_json_option
def status(application: Path | None, archive: Path | None, as_json: bool) -> None:
    """Say where a migration stands, and what was changed since."""
    report: dict[str, Any] = {"ok": False}

    def act() -> dict[str, Any]:
        if application and not archive and transaction.find_archive(application.resolve()) is None:
            return {"phase": None, "text": f"{application} is not being migrated"}
        found = transaction.status(_archive(application, archive))
        changed = [f"changed since: {path}" for path in found["changed_since"]]
        return found | {"text": "\n".join([f"{found['archive']}: {found['phase']}", *changed])}

    _answer(report, act, as_json)


def read(application: Path, model_folders: tuple[Path, ...], as_json: bool) -> Scan:
    try:
        return scan(application, model_folders)
    except NotADirectoryError as error:
        report = {"ok": False, "application": str(application)}
        refuse(report, as_json, str(error), CONFIG_INVALID)


def plan_changes(result: Scan, client: Path | None) -> tuple[list[Change], list[Finding]]:
    """Raises MigrationError if a client is needed and there is none."""
    if not result.clients:
        return changes_of(result, b"")
    try:
        return changes_of(result, client.read_bytes() if client else read_client())
    except OSError as error:
        raise MigrationError(f"{error}; name one with --client") from None


def _archive(application: Path | None, archive: Path | None) -> Path:
    if archive:
        return archive
    if application and (found := transaction.find_archive(application.resolve())):
        return found
    raise MigrationError(
        f"{application or 'no application'} is not being migrated, as far as its folder says; "
        "name the archive with --archive"
    )


def _answer(
    report: dict[str, Any],
    act: Callable[[], dict[str, Any]],
    as_json: bool,
    extra: Callable[[], dict[str, Any]] = dict,
) -> None:
    try:
        answer = act()
    except (MigrationError, OSError) as error:
        refuse(report | extra(), as_json, shown(str(error)), REFUSED)
    text = shown(answer.pop("text"))
    finish(report | answer | extra() | {"ok": True}, as_json, text)


def _told(outcome: transaction.Outcome) -> str:
    done = f"{outcome.steps} steps" if outcome.changed else "nothing to do"
    return f"{outcome.phase or 'not migrated'}: {done}"

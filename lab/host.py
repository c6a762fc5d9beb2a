"""One host of a lab, of either kind."""

import shlex
import subprocess
from collections.abc import Sequence

from lab import container, process, state, vm
from lab.command import ssh_options
from lab.errors import LabError
from lab.state import HostRecord


class Host:
    """A host, running or not."""

    def __init__(self, record: HostRecord) -> None:
        self.record = record
        self.name = record.name
        self.address = record.address
        self._kind = vm if record.vm else container

    def ssh(self, *arguments: str) -> list[str]:
        """Return the command that logs in to the host, or runs a shell's command line there."""
        home = state.folder(self.record.lab)
        return [str(home / "ssh"), *ssh_options(home / "key"), self.address, *arguments]

    def run(
        self,
        argv: Sequence[str],
        *,
        check: bool = True,
        input: str = "",  # noqa: A002 - named as in subprocess.run
        timeout: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the host as root; LabError if it fails, unless `check` is off."""
        done = subprocess.run(
            self.ssh(shlex.join(argv)),
            check=False,
            input=input,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode:
            raise LabError(
                f"`{shlex.join(argv)}` in host {self.name} failed with exit code"
                f" {done.returncode}:\n{done.stdout}{done.stderr}"
            )
        return done

    @property
    def is_running(self) -> bool:
        """Whether the host is switched on, be it booting."""
        return process.running(self._kind.console(self.record)) is not None

    def start(self) -> None:
        """Switch the host on, making what it needs; it is not ready yet."""
        self._kind.start(self.record)

    def stop(self) -> None:
        """Switch the host off at once, as by pulling the plug; its disk stays."""
        self._kind.stop(self.record)

    def wait_ready(self) -> None:
        """Return when the host answers by SSH."""

        def answers() -> bool:
            if not self.is_running:
                raise LabError(f"host {self.name} ended while it booted; {self._console()}")
            return self.run(["true"], check=False).returncode == 0

        if not process.wait_until(answers, self._kind.READY_SECONDS):
            raise LabError(f"host {self.name} does not answer by SSH; {self._console()}")

    def reboot(self) -> None:
        """Reboot the host and return when it answers again."""
        boot_id = ["cat", "/proc/sys/kernel/random/boot_id"]
        before = self.run(boot_id).stdout
        # The connection may break before the command ends.
        self.run(["systemctl", "reboot"], check=False)

        def is_back() -> bool:
            done = self.run(boot_id, check=False)
            return done.returncode == 0 and done.stdout != before

        if not process.wait_until(is_back, self._kind.READY_SECONDS):
            raise LabError(f"host {self.name} did not come back; {self._console()}")

    def _console(self) -> str:
        log = self._kind.console(self.record).with_suffix(".log")
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        return f"the end of its console {log}:\n{tail}"

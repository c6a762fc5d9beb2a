"""The controller's half of vistral_fetch: asks the host until the file is there, and tells."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

# Told often at first and seldom later: 13 GB by a slow line take hours.
WAITS = (3, 5, 5, 10, 10, 30)


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "time left unknown"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    left = f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
    return f"{left} left"


def line(host: str, part: str, answer: dict[str, Any]) -> str:
    """One line of progress: how much, how fast, how long still, and what went wrong last."""
    size = answer["size"]
    left = "complete" if answer["state"] == "done" else duration(answer["seconds_left"])
    return (
        f"{host}: {part.rpartition('/')[2]} {answer['done'] / size:.0%}, "
        f"{answer['done'] / 1e9:.2f} of {size / 1e9:.2f} GB, {answer['rate'] / 1e6:.1f} MB/s, "
        f"{left}, from {answer['source']}"
        + (f" (after: {answer['note']})" if answer["note"] else "")
    )


class ActionModule(ActionBase):
    """Runs the module on the host again and again."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> Any:
        result = super().run(tmp, task_vars)
        host = (task_vars or {}).get("inventory_hostname", "")
        arguments = dict(self._task.args)
        asked = 0
        while True:
            now = {"wait": WAITS[min(asked, len(WAITS) - 1)], "watch_only": asked > 0}
            answer = self._execute_module(
                module_name="vistral_fetch", module_args=arguments | now, task_vars=task_vars
            )
            if answer.get("failed") or "state" not in answer:
                return result | answer
            if "size" in answer:
                Display().display(line(host, arguments["part"], answer))
            if answer["state"] != "running":
                break
            asked += 1
        if answer["state"] == "failed":
            answer |= {"failed": True, "msg": self._fault(arguments, answer)}
        return result | answer

    @staticmethod
    def _fault(arguments: dict[str, Any], answer: dict[str, Any]) -> str:
        there, size = answer["done"] / 1e9, int(arguments["size"]) / 1e9
        return (
            f"{arguments['part']}: {there:.2f} of {size:.2f} GB are there and stay for the next "
            f"run; nothing was installed. {answer['message']}"
        )

"""Every metric is in the daemon's README, and the other way round."""

import re
from pathlib import Path

from flask.testing import FlaskClient

README = Path(__file__).parents[2] / "daemon/README.md"
# A counter's second sample, which says when it was created, is the client library's own.
EXPOSED = re.compile(r"^# TYPE (vistrald_\w+?)(_total|_created)? \w+$", re.MULTILINE)
DESCRIBED = re.compile(r"^\| `(vistrald_\w+?)(?:_total)?[`{]", re.MULTILINE)


def exposed(client: FlaskClient) -> set[str]:
    return {name for name, _ in EXPOSED.findall(client.get("/metrics").text)}


def test_the_readme_describes_every_metric_and_no_other(client: FlaskClient) -> None:
    assert set(DESCRIBED.findall(README.read_text())) == exposed(client)


def value(client: FlaskClient, sample: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"{sample} "))


def test_an_answer_moves_the_histograms(client: FlaskClient) -> None:
    names = ("time_to_first_token", "inter_token")
    before = [value(client, f"vistrald_{name}_seconds_count") for name in names]
    decodes = value(client, "vistrald_n_decode_total")
    body = {"prompt": "Count to ten.", "max_tokens": 6, "seed": 1}
    predicted = client.post("/api/v1/generate", json=body).json["timings"]["predicted_n"]
    after = [value(client, f"vistrald_{name}_seconds_count") for name in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, predicted - 1]
    assert value(client, "vistrald_n_decode_total") > decodes
    assert value(client, "vistrald_predicted_tokens_seconds") > 0

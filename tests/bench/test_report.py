import json
from pathlib import Path

import pytest

from bench import peers, servers
from bench.corpus import read
from bench.machine import describe
from bench.model import packaged
from bench.ratios import ROWS, Sample
from bench.report import BEGIN, END, Report, as_json, better, markdown, plot, put_into
from bench.visit import QUICK, visit


def server(name: str) -> servers.Server:
    return servers.Server(name, "1.2", lambda home, port: [f"{home}/{name}", str(port)], "/health")


@pytest.fixture
def measured() -> Report:
    """vistrald twice as good as llama-server wherever more is better, half as good elsewhere."""
    names = ("vistrald", "llama-server", "llama_cpp.server")
    values = {"vistrald": 20.0, "llama-server": 10.0, "llama_cpp.server": 10.0}
    samples = [
        Sample(number, name, row.key, values[name] * (number + 1))
        for number in range(3)
        for name in names
        for row in ROWS
    ]
    return Report(
        machine=describe(),
        setup=servers.Setup(packaged(), threads=2),
        rounds=3,
        language="en",
        servers=[server(name) for name in names],
        samples=samples,
        load_before=0.1,
    )


def test_the_document_has_every_row_server_and_bar(measured: Report) -> None:
    text = markdown(measured)
    for row in ROWS:
        assert f"| {row.title}, {row.unit} | 40 (20 – 60) | 20 (10 – 30) |" in text
    assert "| decode alone | vistrald / llama-server | 2.00 – 2.00 – 2.00 | ≥ 0.97 | met |" in text
    assert "| warm TTFT | vistrald / llama-server | 2.00 – 2.00 – 2.00 | ≤ 1 | missed |" in text
    assert "| vistrald / vistrald, no drafts | not measured | ≥ 1.5 |  |" in text
    assert measured.machine.processor in text


def test_better_is_above_one_whatever_the_unit(measured: Report) -> None:
    for row in ROWS:
        found = better(measured.samples, "vistrald", row)
        assert found is not None
        assert found.median == (2 if row.better == "more" else 0.5)


def test_raw_samples_are_a_line_for_each_row_of_a_server(measured: Report) -> None:
    text = as_json(measured)
    assert json.loads(text)["samples"]["vistrald"]["warm"] == [[20], [40], [60]]
    assert '"warm": [ [ 20.0 ], [ 40.0 ], [ 60.0 ] ],' in text


def test_only_what_stands_between_the_markers_is_replaced() -> None:
    document = f"# Head\n{BEGIN}\nold\n{END}\ntail\n"
    assert put_into(document, "new") == f"# Head\n{BEGIN}\n\nnew\n\n{END}\ntail\n"
    assert put_into(put_into(document, "new"), "new") == put_into(document, "new")
    with pytest.raises(ValueError, match="measured: begin"):
        put_into("# Head", "new")


def test_the_plot_is_a_picture(measured: Report, tmp_path: Path) -> None:
    plot(measured, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vistrald", "llama-server", "llama_cpp.server"])
def test_a_visit_measures_every_row(name: str, tmp_path: Path) -> None:
    """The peers only where an earlier `make bench` has compiled them: it takes ten minutes."""
    setup = servers.Setup(packaged(), threads=1)
    if name == "llama-server" and not peers.llama_server_path().exists():
        pytest.skip("llama-server is not compiled; make bench does it")
    if name == "llama_cpp.server" and not peers.llama_cpp_server_path().exists():
        pytest.skip("llama_cpp.server has no venv; make bench makes it")
    make = {
        "vistrald": servers.vistrald,
        "llama-server": servers.llama_server,
        "llama_cpp.server": servers.llama_cpp_server,
    }[name]
    found = dict(visit(make(setup), tmp_path, read("en"), QUICK))
    assert {row.key for row in ROWS} <= found.keys()
    assert all(value > 0 for value in found.values())

"""The benchmarks' own parts: each system gives back what it was given, and figures are judged as they should be."""

import ast
import graphlib
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.report import goals, pages, tables
from benchmarks.systems import modules
from benchmarks.workloads import turns
from benchmarks.workloads.pagecache import cached, read_directly
from benchmarks.workloads.players import Failed

ROOT = Path(__file__).parents[2]
FILES = modules()

# All systems in one process of their own: some have threads that no other test should inherit. A line for each.
ROUND_TRIP = """
import importlib, json, os, pathlib, sys
import numpy as np
from benchmarks.systems import Rows, Unsupported, modules

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # some libraries print, from below Python as well
rng = np.random.default_rng(0)

def rows(start, stop, shape):
    keys = [f"sample_{i:08d}:class_{i % 3}" for i in range(start, stop)]
    return Rows(keys=keys, values=rng.standard_normal((stop - start, *shape), dtype=np.float32))

def round_trip(system, folder, shape):
    folder.mkdir(parents=True)
    first, second = rows(0, 100, shape), rows(100, 110, shape)
    system.classes = np.arange(100) % 3
    system.write(folder, first)
    keys, values = first.keys, first.values
    system.open(folder, "a")
    try:
        system.append(second)
        keys, values = keys + second.keys, np.concatenate([values, second.values])
    except Unsupported:
        pass
    system.close()
    system.open(folder)
    numbers, wanted = rng.integers(len(keys), size=16), system.kept(values)
    found = {
        "take": system.take(numbers),
        "fetch": system.fetch([keys[number] for number in numbers]),
        "read_all": system.read_all(),
        "of_classes": system.of_classes([0, 2]),
    }
    expected = {"take": wanted[numbers], "fetch": wanted[numbers], "read_all": wanted}
    if len(keys) == 100:
        expected["of_classes"] = wanted[system.classes != 1]
    system.close()
    wrong = [name for name in expected if not np.array_equal(found[name], expected[name])]
    return f"other rows from {', '.join(wrong)}" if wrong else "ok"

place = pathlib.Path(sys.argv[1])
for module in modules():
    try:
        systems = importlib.import_module(f"benchmarks.systems.{module}").SYSTEMS
    except ImportError as error:
        print(json.dumps([module, "", f"absent: {error}"]), file=answers, flush=True)
        continue
    for system in systems:
        for shape in ((8,), (3, 4)) if system.takes_part is None else ():
            try:
                result = round_trip(system, place / f"{module}-{systems.index(system)}-{len(shape)}", shape)
            except Exception as error:
                result = f"{type(error).__name__}: {error}"
            print(json.dumps([module, f"{system.name} {shape}", result]), file=answers, flush=True)
"""


@pytest.fixture(scope="module")
def round_trips(tmp_path_factory):
    place = tmp_path_factory.mktemp("systems")
    command = [sys.executable, "-W", "ignore", "-c", ROUND_TRIP, str(place)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("module", FILES)
def test_a_system_gives_back_the_rows_it_was_given(module, round_trips):
    results = {name: result for file, name, result in round_trips if file == module}
    if absent := [result for result in results.values() if result.startswith("absent")]:
        pytest.skip(absent[0])
    assert results
    if find_spec("torch") is None:  # NumPy has no bfloat16 of its own
        results = {name: result for name, result in results.items() if "bfloat16" not in name}
    assert set(results.values()) == {"ok"}, results


def test_sides_take_turns_and_slow_ones_get_fewer_parts():
    asked = []

    def side(name, seconds):
        def run(first, count):
            asked.append(name)
            return seconds * count

        return run

    pace = turns.Pace(repeat=5, aim=1.0, most=100.0)
    taken = turns.in_turns({"a": side("a", 0.01), "b": side("b", 0.5), "slow": side("slow", 50.0)}, pace, parts=100)
    assert taken.figures["a"] == pytest.approx([0.01] * 5)
    assert taken.figures["b"] == pytest.approx([0.5] * 5)
    assert taken.figures["slow"] == [50.0]
    assert taken.notes == {"slow": "once"}
    assert "".join(asked[-6:]) == "baabba"  # each comes first in every second turn


def test_a_side_that_fails_is_put_aside_and_the_others_go_on():

    def broken(first, count):
        raise Failed("no such thing")

    taken = turns.in_turns({"a": lambda first, count: 1.0, "broken": broken}, turns.Pace(repeat=5))
    assert taken.aside == {"broken": "no such thing"}
    assert list(taken.figures) == ["a"]


def test_goals_are_judged_by_medians_within_a_group():
    figures = {
        "embstore": [1e-4, 1e-4, 9.0],
        "NumPy in RAM": [1e-4] * 3,
        "LMDB": [6e-4] * 3,
        "zarr, default": [2e-3] * 3,
        "memmap + JSON": [1e-4] * 3,
        "embstore, zstd": [5e-3] * 3,
    }
    rows = turns.Measurement(
        "row-batches", "200,000 x 768", figures, detail="batches of 256", aside={"Lance": "absent"}
    )
    found = {(one.goal, one.wanted): one for one in goals.verdicts([rows])}
    assert found["random batches by row", "1.1 x NumPy in RAM + 0.1 ms"].met
    assert found["random batches by row", "5 x faster than LMDB"].found == "6.00 x"
    other = found["random batches by row", "30 x faster than all others"]
    assert (other.found, other.met) == ("20.00 x (zarr, default)", False)
    shown = tables.table([rows])
    assert "| LMDB | 600 us | 6 x |" in shown
    assert "| Lance | | | | absent |" in shown
    assert "**no**" in goals.goal_table(list(found.values()))


def test_what_is_saved_is_read_again(tmp_path):
    measurement = turns.Measurement("disk", "10 x 8", {"embstore": [4096.0]}, unit="bytes", notes={"embstore": "x"})
    tables.save([measurement], tmp_path / "a.json", tmp_path)
    assert goals.read_results(tmp_path / "a.json") == [measurement]
    content = json.loads((tmp_path / "a.json").read_text())
    assert {"command", "versions", "machine", "goals"} <= set(content)


def test_files_are_dropped_from_the_page_cache_and_read_around_it(tmp_path):
    path = tmp_path / "values.bin"
    path.write_bytes(bytes(10 * 4096))
    assert 0.0 <= cached(tmp_path) <= 1.0
    try:
        assert read_directly(path, 128, 1000, [0, 5, 30], depth=2) >= 3000
    except OSError as error:  # tmpfs of older kernels has no O_DIRECT
        pytest.skip(str(error))


def test_pages_are_those_that_the_result_files_make():
    assert pages.TABLES.read_text() == pages.all_tables(), "run python -m benchmarks.report.pages"
    assert pages.PAGE.read_text() == pages.page_with(pages.ratio_table()), "run python -m benchmarks.report.pages"
    assert pages.ratio_table() in pages.PAGE.read_text()
    for path in pages.RESULTS.glob("*.json"):
        assert f"`{path.name}`" in (pages.RESULTS / "README.md").read_text()


def test_every_figure_of_a_result_file_is_in_the_tables():
    """Of each system, the median stands in a row of its own; of embstore, which is in each group, that of the first."""
    shown = pages.TABLES.read_text()
    for path in pages.RESULTS.glob("*.json"):
        for one in goals.read_results(path):
            for name, figures in one.figures.items():
                assert (
                    not figures
                    or name == goals.OURS
                    or f"| {name} | {tables.figure(one.median(name), one.unit)} |" in shown
                )


def _imports(path, known):
    """Yield the benchmarks' modules that a file imports, inside functions as well."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module in known:
            found = {f"{node.module}.{name.name}" for name in node.names} & known
            yield from found or {node.module}


def test_no_module_imports_itself_in_a_circle():
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (ROOT / "benchmarks").rglob("*.py")
    }
    graph = {name: set(_imports(path, files.keys())) for name, path in files.items()}
    assert "benchmarks.systems.base" in graph["benchmarks.systems.loading"]
    graphlib.TopologicalSorter(graph).prepare()


def test_modules_of_the_benchmarks_are_imported_by_their_whole_names():
    """Under another name such a module counts as a system whose library is absent, and is left out."""
    own = {path.stem for path in (ROOT / "benchmarks").rglob("*") if path.is_dir() or path.suffix == ".py"}
    for path in (ROOT / "benchmarks").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.module.partition(".")[0] not in own, path

"""What a run tells of itself: metrics, event files, the plot, and how much of a device it uses."""

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest

from skycairn.model import lossplot
from skycairn.model.metrics import Board, Learned, Tally, append, lines_of, plain, scalars
from skycairn.model.peaks import peak, used

LINE = {
    "step": 20,
    "loss": 1.5,
    "mfu": None,
    "validation": {"loss": math.inf, "modalities": {"gaia.parallax": 2.0}},
    "directions": {"gaia>desi": {"loss": 1.25, "objects": 3}},
}


def benchmark(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[2] / "benchmarks" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look
    spec.loader.exec_module(module)
    return module


def test_means_are_of_steps_that_were_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 104.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    tally = Tally(waited=2.0)
    tally.steps += [Learned(3.0, 1.0, False, 8, 100, 10**12), Learned(math.nan, math.inf, True, 8, 100, 10**12)]
    assert tally.metrics(3.0, 1e12) == {
        **{"loss": 3.0, "gradient": 1.0, "skipped": 1, "objects_s": 4.0, "tokens_s": 50.0},
        **{"useful_gflops_s": 500.0, "mfu": 0.5, "waiting": 0.25},
    }


def test_lines_are_plain_json_and_what_is_not_finite_is_null(tmp_path: Path) -> None:
    append(tmp_path / "out", LINE)
    append(tmp_path / "out", {"step": 40})
    assert lines_of(tmp_path / "out") == [plain(LINE), {"step": 40}] and lines_of(tmp_path) == []
    assert plain(LINE)["validation"]["loss"] is None
    assert dict(scalars(plain(LINE))) == {
        **{"step": 20.0, "loss": 1.5, "validation/modalities/gaia.parallax": 2.0},
        **{"directions/gaia>desi/loss": 1.25, "directions/gaia>desi/objects": 3.0},
    }


def test_event_files_say_what_the_lines_say(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    board = Board(tmp_path, 0)
    board.add(LINE)
    board.close()
    (file,) = tmp_path.iterdir()
    found = {v.tag: (e.step, v.tensor.float_val[0]) for e in EventFileLoader(str(file)).Load() for v in e.summary.value}
    assert found == {name: (20, value) for name, value in scalars(plain(LINE)) if name != "step"}


def test_without_tensorboard_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r"no TensorBoard here; pip install 'skycairn\[train\]'"):
        Board(tmp_path, 0)


def test_the_plot_has_both_losses_and_is_the_same_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no losses yet" in lossplot.write(tmp_path)
    lines = [{"step": s, "loss": 3.0 / s if s != 2 else None, "validation": {"loss": 3.5 / s}} for s in range(1, 5)]
    assert lossplot.curves(lines)[0] == [(1, 3.0), (3, 1.0), (4, 0.75)] and len(lossplot.curves(lines)[1]) == 4
    assert lossplot.curves([{"step": 1, "loss": 2.0}]) == ([(1, 2.0)], [])
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert lossplot.write(tmp_path) == f"the loss is drawn in {tmp_path / 'loss.svg'}"
    drawn = (tmp_path / "loss.svg").read_text()
    assert "training" in drawn and "validation" in drawn and "nats a token" in drawn
    lossplot.write(tmp_path)
    assert (tmp_path / "loss.svg").read_text() == drawn
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "no matplotlib here; pip install 'skycairn[plot]'" in lossplot.write(tmp_path)


def test_peaks_are_of_known_devices_alone() -> None:
    assert peak("NVIDIA H100 80GB HBM3", "bf16") == peak("NVIDIA H200", "bf16") == 989e12
    assert peak("NVIDIA H100 PCIe", "bf16") == 756e12 and peak("NVIDIA A100-SXM4-80GB", "bf16") == 312e12
    assert peak("NVIDIA L40S", "bf16") == 362e12 and peak("NVIDIA L4", "bf16") == 121e12
    assert peak("Tesla V100-SXM2-32GB", "bf16") is None and peak("Tesla V100-SXM2-32GB", "fp32") == 15.7e12
    assert peak("Some Other 9000", "bf16") is None and peak("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16") is None
    assert peak("Tesla V100-PCIE-16GB", "fp32") == 14e12
    assert used(2e12, 4.0, 1e12) == 0.5 and used(2e12, 4.0, None) is None


def test_the_benchmark_of_a_gpu_reckons_right_and_says_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = benchmark("gpu")
    line = str(gpu.Line("base", "full", "ours", 0.1, 256, 40 * 10**12, 989e12, 0.25))
    assert line == "| base | full | ours | 100.0 | 2,560 | 400.0 | 40.4% | 2.50 |"
    assert str(gpu.Line("base", "full", "peer", 0.25, 256, 40 * 10**12, None, None)).endswith("| 160.0 |  |  |")
    assert gpu.HEAD.splitlines()[0].count("|") == gpu.HEAD.splitlines()[1].count("|") == line.count("|")
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="torch sees no GPU here"):
        gpu.main()

"""benchmarks/codec_throughput.py: what it times is over when the clock is read."""

import importlib.util
from pathlib import Path

import torch


def test_a_gpu_has_done_its_work_before_the_clock_is_read(monkeypatch):
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "codec_throughput.py"
    spec = importlib.util.spec_from_file_location("codec_throughput", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    done = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append("finished"))
    assert module.rate(lambda: done.append("launched"), 0.0) > 0
    assert done == ["launched", "finished"] * 4
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    module.rate(lambda: None, 0.0)
    assert len(done) == 8

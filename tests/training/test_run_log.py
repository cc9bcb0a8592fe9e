"""What a run writes down, and what it does where it cannot."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from i2sb.training.run_log import RunLog, TensorBoardCurves


def test_log_survives_a_line_cut_off_and_says_that_it_resumed(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"event": "train", "iteration": 1, "loss": 2.0}\n{"event": "tr')
    with RunLog(tmp_path, curves=None, iteration=1, num_itr=3) as log:
        log.record("train", 2, {"loss": 1.0, "images_per_second": 3.0})
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert lines[1] == '{"event": "tr'
    assert [json.loads(line) for line in lines[2:]] == [
        {"event": "resumed", "iteration": 1},
        {"event": "train", "iteration": 2, "loss": 1.0, "images_per_second": 3.0},
    ]


def test_curves_and_pictures_reach_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunLog(
        tmp_path, curves=lambda iteration: TensorBoardCurves(tmp_path / "tb", iteration), iteration=0, num_itr=3
    ) as log:
        log.record("train", 1, {"loss": 0.5, "images_per_second": 3.0})
        log.picture("validation", 1, Image.new("RGB", (4, 4)))
    events = EventAccumulator(str(tmp_path / "tb")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 0.5)]
    assert len(events.Images("validation")) == 1


def test_silent_log_writes_nothing(tmp_path):
    with RunLog(
        tmp_path, curves=lambda iteration: TensorBoardCurves(tmp_path, iteration), iteration=0, num_itr=3, silent=True
    ) as log:
        log.record("train", 1, {"loss": 0.5, "images_per_second": 1.0})
        log.say("hello")
        log.advance(1)
    assert list(tmp_path.iterdir()) == []


def test_a_log_that_cannot_be_written_does_not_stop_a_run(tmp_path, capsys):
    with RunLog(tmp_path, curves=None, iteration=0, num_itr=2) as log:
        real, log._file = log._file, open("/dev/full", "w")
        for iteration in (1, 2):
            log.record("train", iteration, {"loss": 1.0, "images_per_second": 1.0})
        full, log._file = log._file, real
    assert capsys.readouterr().err.count("log.jsonl: not written (No space left on device); the run goes on") == 1
    with pytest.raises(OSError):
        full.close()

"""Progress bars."""

from __future__ import annotations

from i2sb.progress import progress_bar


def test_bars_are_drawn_seldom_into_files_and_not_at_all_for_nothing(capsys):
    with progress_bar(1000, "image") as bar:  # pytest's standard error is no terminal
        for _ in range(1000):
            bar.update()
    drawn = capsys.readouterr().err
    assert "1000/1000" in drawn and drawn.count("\r") < 10
    for nothing in (progress_bar(0, "image"), progress_bar(5, "image", quiet=True)):
        nothing.update()
        nothing.close()
    assert capsys.readouterr().err == ""

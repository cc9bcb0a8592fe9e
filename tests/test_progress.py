"""Progress: bars on terminals, lines elsewhere."""

from __future__ import annotations

import pytest

from helpers.programs import run_python
from i2sb import progress
from i2sb.progress import progress_bar


@pytest.fixture
def clock(monkeypatch):
    """The time that progress goes by, in seconds, to be set."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_there_is_a_line_when_due_and_at_the_end(clock, capsys):
    with progress_bar(1000, "it", initial=400) as bar:
        for second in range(1, 101):
            clock[0] = second
            bar.set_postfix_str(f"loss {1 / second:.4f}", refresh=False)
            bar.update(5)
    assert capsys.readouterr().err.splitlines() == [
        "550/1000 it, 55 %, 00:30 gone, 01:30 left,  5.00it/s, loss 0.0333",
        "700/1000 it, 70 %, 01:00 gone, 01:00 left,  5.00it/s, loss 0.0167",
        "850/1000 it, 85 %, 01:30 gone, 00:30 left,  5.00it/s, loss 0.0111",
        "900/1000 it, 90 %, 01:40 gone, 00:20 left,  5.00it/s, loss 0.0100",
    ]


def test_what_goes_on_within_one_unit_is_told_when_a_line_is_due(clock, capsys):
    with progress_bar(2, "picture") as bar:
        for step in range(70):
            clock[0] += 1
            bar.set_postfix_str(f"a.png {step}/100")
        told = capsys.readouterr().err.splitlines()
    assert [line.split(", ")[-1] for line in told] == ["a.png 29/100", "a.png 59/100"]


def test_nothing_is_told_of_nothing_nor_twice(clock, capsys):
    for nothing in (progress_bar(0, "image"), progress_bar(5, "image", quiet=True)):
        nothing.update()
        nothing.close()
    idle = progress_bar(5, "image")
    idle.close()
    assert capsys.readouterr().err == ""
    bar = progress_bar(5, "image")
    clock[0] = 31
    bar.update()
    bar.close()
    bar.close()
    assert capsys.readouterr().err.count("\n") == 1


def test_of_a_size_that_nobody_knows_what_is_there_is_told(clock, capsys):
    with progress_bar(None, "B", scaled=True) as bar:
        clock[0] = 2
        bar.update(3_000_000)
    assert capsys.readouterr().err == "3.00M B, 00:02 gone, 1.50MB/s\n"


@pytest.mark.parametrize("rows", [24, 0])
def test_a_terminal_gets_a_bar_one_without_a_size_lines(rows):
    drawing = (
        "import fcntl, os, pty, struct, termios; master, slave = pty.openpty(); os.dup2(slave, 2)\n"
        f"fcntl.ioctl(2, termios.TIOCSWINSZ, struct.pack('HHHH', {rows}, 80, 0, 0))\n"
        "from i2sb.progress import progress_bar\n"
        "with progress_bar(3, 'image') as bar: bar.update(3)\n"
        "drawn = b''; os.write(2, b'END')\n"
        "while b'END' not in drawn: drawn += os.read(master, 4096)\n"
        "print(ascii(drawn.decode()))"
    )
    drawn = run_python("-c", drawing).stdout
    assert ("100%|" in drawn) == (rows > 0) and ("3/3 image, 100 %" in drawn) == (rows == 0)

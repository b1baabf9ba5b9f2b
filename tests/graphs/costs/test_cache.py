"""Measurements are remembered by whoever makes them, whoever else does."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from planner.graphs.costs.cache import recall, remember

WRITER = """
import sys
from pathlib import Path
from planner.graphs.costs.cache import remember

for i in range(40):
    remember(Path(sys.argv[1]), "seconds", "here", {f"{sys.argv[2]} {i}": float(i)})
"""


def test_threads_do_not_write_over_each_others_entries(tmp_path: Path) -> None:
    ready = threading.Barrier(4)

    def work(name: int) -> None:
        ready.wait()
        for i in range(40):
            remember(tmp_path, "seconds", "here", {f"{name} {i}": float(i)})

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(recall(tmp_path, "seconds", "here")) == 160


def test_processes_do_not_write_over_each_others_entries(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    running = [subprocess.Popen([*command, name]) for name in ("one", "other")]
    assert [process.wait() for process in running] == [0, 0]
    assert len(recall(tmp_path, "seconds", "here")) == 80


def test_a_file_is_read_once_until_another_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    real = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path: read.append(path) or real(path))
    remember(tmp_path, "seconds", "here", {"one": 1.0})
    for _ in range(3):
        found = recall(tmp_path, "seconds", "here")
        assert found == {"one": 1.0}
        found["other"] = 3.0  # the caller's own
    assert len(read) == 1
    remember(tmp_path, "seconds", "here", {"other": 2.0})
    assert recall(tmp_path, "seconds", "here") == {"one": 1.0, "other": 2.0}
    assert len(read) == 2
    assert recall(tmp_path, "seconds", "elsewhere") == {}

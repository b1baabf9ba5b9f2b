"""What is shown while one waits, and that nothing is when nobody looks."""

import pytest

from planner.progress import on_terminal, silent


def test_silent_when_standard_error_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    with on_terminal() as progress:
        assert progress is silent
        progress("solving")
    assert capsys.readouterr() == ("", "")


def test_the_current_sentence_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with on_terminal() as progress:
        progress("capturing Net")
        progress("solving 18 ops")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "solving 18 ops" in shown.err

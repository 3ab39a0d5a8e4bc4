"""Files that change while we run: the new content counts once it is whole, and the old one until then."""

from __future__ import annotations

from pathlib import Path

import pytest

from dispatcher.security.watched_files import FILE_BYTES_MAX, FileUnusableError, WatchedFiles, one_text


def number(text: str) -> int:
    if not text.strip().isdigit():
        raise ValueError("is not a number")
    return int(text)


def test_a_change_is_read_and_a_broken_one_is_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "n"
    path.write_text("1")
    watched = WatchedFiles([str(path)], one_text(number))
    assert watched.value == 1
    assert not watched.refresh()
    path.write_text("2")
    assert watched.refresh()
    assert watched.value == 2
    path.write_text("two hundred secret words")
    assert not watched.refresh()
    assert watched.value == 2
    assert "unusable" in caplog.text
    assert "hundred" not in caplog.text
    path.unlink()
    assert not watched.refresh()
    path.write_text("3")
    assert watched.refresh()
    assert watched.value == 3


def test_a_link_that_is_swapped_is_a_change(tmp_path: Path) -> None:
    for name in ("1", "2"):
        (tmp_path / name).write_text(name)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "1")
    watched = WatchedFiles([str(link)], one_text(number))
    (tmp_path / "new").symlink_to(tmp_path / "2")
    (tmp_path / "new").replace(link)
    assert watched.refresh()
    assert watched.value == 2


def test_without_a_first_reading_there_is_no_start(tmp_path: Path) -> None:
    for content in (None, b"x", b"\xff", b"1" * (FILE_BYTES_MAX + 1)):
        path = tmp_path / "n"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(FileUnusableError):
            WatchedFiles([str(path)], one_text(number))

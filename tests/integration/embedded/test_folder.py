"""The folder that `dispatcher dev` keeps: one run at a time, a key that stays."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from dispatcher.embedded import folder as module
from dispatcher.embedded.folder import FolderInUseError, LocalFolder
from dispatcher.security.secrets import Keyring


def test_a_folder_in_use_is_refused_with_the_process_id_of_the_user_and_free_afterwards(tmp_path: Path) -> None:
    with LocalFolder(tmp_path / "a" / "b"):
        with pytest.raises(FolderInUseError) as refused, LocalFolder(tmp_path / "a" / "b"):
            pass
        assert refused.value.pid == str(os.getpid())
    with LocalFolder(tmp_path / "a" / "b"):
        pass


def test_the_key_is_usable_private_and_the_same_at_each_run(tmp_path: Path) -> None:
    with LocalFolder(tmp_path) as folder:
        keys = folder.secret_keys()
    assert Keyring.parse(keys).primary_key_id == "local"
    assert stat.S_IMODE((tmp_path / "secret.keys").stat().st_mode) == 0o600
    with LocalFolder(tmp_path) as folder:
        assert folder.secret_keys() == keys
    (tmp_path / "secret.keys").unlink()
    (tmp_path / "secret.keys.new").write_text("half of a k")
    with LocalFolder(tmp_path) as folder:
        assert folder.secret_keys() not in (keys, "half of a k")


def test_the_log_goes_on_until_it_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOG_BYTES_MAX", 8)
    folder = LocalFolder(tmp_path)
    for text, expected in (("one\n", "one\n"), ("two two\n", "one\ntwo two\n"), ("three\n", "three\n")):
        with folder.open_log() as log:
            log.write(text)
        assert folder.log_file.read_text() == expected

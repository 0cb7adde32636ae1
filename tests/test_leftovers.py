"""What a killed process left half written goes at the next start; what a live one writes stays."""

import os
import signal
import subprocess
import sys
import time

import pytest

from spectral_theorem import storage
from spectral_theorem.shards import Store


def dead_process():
    """Return the number of a process that was there and is gone."""
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


def test_only_what_nobody_writes_any_more_goes(tmp_path):
    here, dead, own = storage._here(), dead_process(), os.getpid()
    elsewhere = "0" * 8 if here != "0" * 8 else "1" * 8
    goes = {f".a.parquet.{here}-{dead}-0123abcd.tmp": False, ".b.parquet.77-0123abcd.tmp": True, ".c.tmp": True}
    goes[f".d.parquet.{elsewhere}-{dead}-0123abcd.tmp"] = True
    stays = {
        f".e.parquet.{here}-{own}-0123abcd.tmp": False,
        f".f.parquet.{elsewhere}-{dead}-0123abcd.tmp": False,
        ".g.parquet.77-0123abcd.tmp": False,
        "h.parquet": True,
        "i.tmp": True,
    }
    for name, old in {**goes, **stays}.items():
        (tmp_path / name).write_bytes(b"half")
        if old:
            then = time.time() - 2 * storage.FORGOTTEN
            os.utime(tmp_path / name, (then, then))
    assert storage.remove_leftovers(tmp_path) == len(goes)
    assert {path.name for path in tmp_path.iterdir()} == {*stays}
    assert storage.remove_leftovers(tmp_path / "absent") == 0


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_writer_that_was_killed_leaves_a_file_that_another_removes_while_a_third_writes(tmp_path):
    program = (
        "import os, pathlib, signal, sys\n"
        "from spectral_theorem.storage import write_atomically\n"
        "def write(file):\n"
        "    file.write(b'half'); file.flush()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_atomically(pathlib.Path(sys.argv[1]), write)\n"
    )
    (tmp_path / "cells").mkdir()
    file = tmp_path / "cells" / "part.parquet"
    killed = subprocess.run([sys.executable, "-c", program, str(file)], check=False)
    (left,) = file.parent.iterdir()
    assert killed.returncode == -signal.SIGKILL and left.read_bytes() == b"half"

    def write(whole):
        Store(tmp_path).tidy("", "cells")  # another process starts while this one writes
        assert [path for path in file.parent.iterdir()] != [] and not left.exists()
        whole.write(b"whole")

    storage.write_atomically(file, write)
    assert [path.name for path in file.parent.iterdir()] == ["part.parquet"] and file.read_bytes() == b"whole"

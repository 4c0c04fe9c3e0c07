"""How many arenas the C library's allocator uses."""

import subprocess
import sys
from pathlib import Path

from xds.allocator import ARENAS

# Threads that allocate at once get an arena each, where they may. What there is, the C library tells in XML.
PROGRAM = """
import ctypes, sys, threading
from xds.allocator import limit_arenas
if sys.argv[2] == "limited":
    assert limit_arenas()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
libc.free.argtypes = libc.fclose.argtypes = (ctypes.c_void_p,)
libc.malloc_info.argtypes = (ctypes.c_int, ctypes.c_void_p)
together, done = threading.Barrier(9), threading.Event()
def allocate():
    held = libc.malloc(50_000)
    together.wait()
    done.wait()
    libc.free(held)
threads = [threading.Thread(target=allocate) for _ in range(8)]
for thread in threads:
    thread.start()
together.wait()
file = libc.fopen(sys.argv[1].encode(), b"w")
libc.malloc_info(0, file)
libc.fclose(file)
done.set()
"""


def arenas(directory: Path, how: str) -> int:
    file = directory / how
    subprocess.run([sys.executable, "-c", PROGRAM, str(file), how], check=True, timeout=60)
    return file.read_text().count("<heap nr=")


def test_threads_share_a_few(tmp_path: Path) -> None:
    assert arenas(tmp_path, "limited") <= ARENAS < arenas(tmp_path, "not limited")

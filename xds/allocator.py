"""How many arenas the C library's allocator uses.

glibc gives nearly every thread an arena of its own, up to eight a core, and each keeps a little of what was once allocated in it. A
server in Python gains nothing by that, as its threads take turns, and what they keep adds up: in twenty minutes of
`benchmarks/soak.py` resident memory grew by 10 MB, though what was in use did not grow. So two arenas have to do.
"""

import ctypes
from typing import Final

ARENAS: Final = 2

_M_ARENA_MAX: Final = -8  # malloc.h


def limit_arenas() -> bool:
    """Use no more than `ARENAS` from now on; False where the C library knows no arenas. Comes before threads do."""
    try:
        return bool(ctypes.CDLL(None).mallopt(_M_ARENA_MAX, ARENAS))
    except (AttributeError, OSError):
        return False

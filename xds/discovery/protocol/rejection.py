"""Which resources a client means when it rejects a response.

There is no field for it. Envoy names clusters and listeners in its text (`Error adding/updating cluster(s) a: …, b: …`), and
gRPC names every resource it refuses (`[resource index 0: a: …]`). Any other text names nobody for certain, even where it quotes
names: the caller finds out by trying halves.
"""

import re
from collections.abc import Iterable

_LISTED = re.compile(r"Error adding/updating (?:cluster|listener)\(s\) (.*)", re.DOTALL)
_INDEXED = "resource index "


def named(text: str, names: Iterable[str]) -> set[str]:
    """Those of `names` that `text` gives as the cause, in one of the forms that are sure."""
    listed = _LISTED.search(text)
    if listed is not None:
        # A cause may run over several lines and hold colons itself: a name counts where an entry of the list starts with it.
        causes, start = listed.group(1), r"(?:^|, |\n)"
    elif _INDEXED in text:
        causes, start = text, _INDEXED + r"\d+: "
    else:
        return set()
    return {name for name in names if f"{name}: " in causes and re.search(f"{start}{re.escape(name)}: ", causes)}

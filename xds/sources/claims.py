"""Which document speaks for an object, where several files may: pure bookkeeping, with the time passed in."""

from collections.abc import Iterator, Sequence

from xds.errors import Problem
from xds.objects.decoding import Decoded
from xds.objects.meta import Ref
from xds.sources.changes import Change


def file_ref(path: str) -> Ref:
    """What a file goes by when something in it cannot be read."""
    return Ref("File", "", path)


class Claims:
    """The documents of all files, by object. The first document of the first file, sorted by path, has the object.

    What no file claims any more is deleted only after `patience` seconds, and what changed with it as late.
    """

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self._files: dict[str, dict[Ref, list[Decoded]]] = {}
        self._claimants: dict[Ref, set[str]] = {}
        self._changed: dict[Ref, None] = {}  # whose change is to be told again
        self._vanished: dict[Ref, float] = {}  # what nothing claims any more, and since when

    @property
    def due(self) -> float | None:
        """When the next deletion is to be taken, and all that waits for it; None while nothing has vanished."""
        return min(self._vanished.values()) + self.patience if self._vanished else None

    def replace(self, path: str, documents: Sequence[Decoded]) -> None:
        """A file now has these documents. Where some can't be read, those that it had before and that are not found stay.

        A document without a `ref` counts as one that can't be read, unless its problems are warnings only.
        """
        before = self._files.get(path, {})
        now: dict[Ref, list[Decoded]] = {}
        for document in documents:
            if document.ref is not None:
                now.setdefault(document.ref, []).append(document)
        unread = [problem for document in documents if document.ref is None for problem in document.problems]
        if unreadable := tuple(problem for problem in unread if not problem.warning):
            own = file_ref(path)
            now = before | now
            now[own] = [Decoded(own, problems=unreadable, where=path)]
        for ref in before.keys() - now.keys():
            self._claimants[ref].discard(path)
        for ref in now.keys() - before.keys():
            self._claimants.setdefault(ref, set()).add(path)
        self._changed.update((ref, None) for ref in [*before, *now] if before.get(ref) != now.get(ref))
        if now:
            self._files[path] = now
        else:
            self._files.pop(path, None)

    def settle(self, now: float) -> Iterator[Change]:
        """What has changed since the last time, and what vanished long enough ago.

        While something has vanished that may come back, all else waits with it: who deletes a rule and changes another in one step
        means neither without the other.
        """
        for ref in self._changed:
            if self._claimants[ref]:
                self._vanished.pop(ref, None)
            else:
                self._vanished.setdefault(ref, now)
        if self.due is not None and now < self.due:
            return
        for ref in self._changed:
            if self._claimants[ref]:
                yield self._change(ref)
        self._changed = {}
        for ref, since in list(self._vanished.items()):
            if now >= since + self.patience:
                del self._vanished[ref], self._claimants[ref]
                yield Change(ref)

    def _change(self, ref: Ref) -> Change:
        first, *others = (document for path in sorted(self._claimants[ref]) for document in self._files[path][ref])
        rivals = tuple(
            Problem("$.metadata.name", f"{other.where} has this object as well; the one here counts", first.where, warning=True)
            for other in others
        )
        return Change(ref, first.object, first.problems + rivals)

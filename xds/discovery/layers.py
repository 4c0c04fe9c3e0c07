"""Several providers as one: a stream gets the union of what each gives it, and of one name what the first has."""

from typing import Any, Protocol

from xds.discovery.resources import Assignable, Assignment, Group


class Gives(Protocol):
    """What a `Provider` does when a stream comes and goes."""

    def open(self, stream: Assignable) -> Assignment:
        """The first assignment of a new stream."""

    def close(self, stream: Assignable) -> None:
        """The stream has ended."""


class Layers:
    """What all of `providers` give, each stream its own. The class that proxies are shown in is that of the first."""

    def __init__(self, *providers: Gives) -> None:
        self._providers = providers
        self._open: dict[Assignable, tuple[_Layer, ...]] = {}

    def open(self, stream: Assignable) -> Assignment:
        """The first assignment of a new stream."""
        layers: list[_Layer] = []
        try:
            for provider in self._providers:
                layer = _Layer(self, stream)
                layer.assignment = provider.open(layer)
                layers.append(layer)
        except BaseException:
            for provider, layer in zip(self._providers, layers, strict=False):
                provider.close(layer)
            raise
        self._open[stream] = tuple(layers)
        return self.assignment(stream)

    def close(self, stream: Assignable) -> None:
        """The stream has ended."""
        for provider, layer in zip(self._providers, self._open.pop(stream, ()), strict=False):
            provider.close(layer)

    def assignment(self, stream: Assignable) -> Assignment:
        """The union of what the layers of `stream` have."""
        groups: dict[str, tuple[Group, ...]] = {}
        layers = self._open[stream]
        for layer in layers:
            for url, own in layer.assignment.groups.items():
                groups[url] = (*groups.get(url, ()), *own)
        return Assignment(layers[0].assignment.name, groups)


class _Layer:
    """A stream, as one of the providers sees it."""

    def __init__(self, layers: Layers, stream: Assignable) -> None:
        self._layers = layers
        self._stream = stream
        self.node: Any = stream.node
        self.node_metadata = stream.node_metadata
        self.peer_identity = stream.peer_identity
        self.pieces = stream.pieces
        self.assignment = Assignment("", {})

    def assign(self, assignment: Assignment) -> None:
        self.assignment = assignment
        self._stream.assign(self._layers.assignment(self._stream))

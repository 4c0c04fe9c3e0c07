"""The xDS transport protocol without I/O."""

from xds.discovery.protocol.delta import DeltaSession
from xds.discovery.protocol.holdings import DeltaRequest
from xds.discovery.protocol.response import Response, Responses
from xds.discovery.protocol.session import Nack, Session, Watch
from xds.discovery.protocol.sotw import SotwSession
from xds.discovery.protocol.unsettled import Memory

__all__ = ["DeltaRequest", "DeltaSession", "Memory", "Nack", "Response", "Responses", "Session", "SotwSession", "Watch"]

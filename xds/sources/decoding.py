"""temporary"""
import msgspec
from xds.objects import KINDS, Kind
from xds.objects.meta import decode_hook
from xds.sources.changes import Change
_d = {k: msgspec.json.Decoder(v.struct, dec_hook=decode_hook) for k, v in KINDS.items()}
def decoded(kind: Kind, raw: bytes | msgspec.Raw) -> Change:
    o = _d[kind.kind].decode(raw)
    return Change(o.ref, o)

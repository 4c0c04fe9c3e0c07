"""Regular expressions, which Envoy and Istio have alike: RE2."""

from typing import TYPE_CHECKING, Final

from xds.objects.constraints import MAX_PROGRAM_SIZE, program_size

if TYPE_CHECKING:
    from xds.pb import envoy_type_matcher_v3_RegexMatcher_Init as RegexMatcher

ANY = ".*"
UNASKED: Final = 100  # instructions that any Envoy takes: `re2.max_program_size.error_level`


def regex_matcher(pattern: str) -> "RegexMatcher":
    """Envoy's form of `pattern`, which has been found to be a regular expression. A lone `*`, which is none, means any (Istio)."""
    if pattern == "*":
        pattern = ANY
    if program_size(pattern) <= UNASKED:
        return {"regex": pattern}
    # Envoy refuses a larger one, and with it the whole route table, unless the proxy's bootstrap sets a runtime key. This field is
    # deprecated in favour of that, and the only way to say it for proxies whose bootstrap is not ours.
    return {"regex": pattern, "google_re2": {"max_program_size": {"value": MAX_PROGRAM_SIZE}}}

"""Options of the whole suite."""

import os
from collections.abc import Generator

import hypothesis
import pytest

REQUIRE_ALL = "XDS_REQUIRE_ALL"

# A busy machine is no finding. New examples are tried by whoever works on the code; CI tries the same ones for the same code.
hypothesis.settings.register_profile(
    "suite",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    print_blob=True,
    derandomize=os.environ.get(REQUIRE_ALL) == "1",
)
hypothesis.settings.load_profile("suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update", action="store_true", help="Write what the goldens should be as what they are now; then read git diff.")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where everything is there that tests need, as in CI, one that is skipped has failed."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get(REQUIRE_ALL) == "1":
        report.outcome = "failed"
        report.longrepr = f"skipped, where {REQUIRE_ALL}=1 says that nothing may be: {report.longrepr}"
    return report

import pytest

from quire.runtime import build


@pytest.fixture(autouse=True, scope="session")
def compiled_once(tmp_path_factory):
    """A cache of compiled kernels of the session's own.

    Tests look at values: but for those that ask for more, kernels are compiled with less
    optimisation and the headers read once, which takes a third of the time.
    """
    headers = tmp_path_factory.mktemp("headers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUIRE_CACHE", str(tmp_path_factory.mktemp("kernels")))
        patch.setenv("QUIRE_CXXFLAGS", build.read_once(headers, "-O1"))
        yield


@pytest.fixture(scope="module")
def optimised():
    """Kernels compiled as users have them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("QUIRE_CXXFLAGS")
        yield

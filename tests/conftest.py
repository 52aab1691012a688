"""One thread for the tiny tensors of most tests: handing work to a second one costs more than the work."""

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # read when NumPy is imported, and by processes of tests
    os.environ.setdefault(name, "1")

import pytest  # noqa: E402
import torch  # noqa: E402

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when kernels are imported

# Files that take longest begin first, so that no worker is left with one of them at the end.
LONGEST = (
    "pocket",
    "server",
    "kernels",
    "pocket_mar",
    "demo_page",
    "pocket_lumina",
    "eval_processes",
    "llamagen_official",
)


def pytest_collection_modifyitems(items):
    places = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="session")
def _kept_apart(tmp_path_factory):
    """What is kept in the user's cache folder is of these tests alone, also in their processes."""
    before = os.environ.get("VARGEN_CACHE")
    os.environ["VARGEN_CACHE"] = str(tmp_path_factory.mktemp("kept"))
    yield
    if before is None:
        del os.environ["VARGEN_CACHE"]
    else:
        os.environ["VARGEN_CACHE"] = before


@pytest.fixture(scope="session")
def repository(tmp_path_factory):
    """GLM-Image's whole repository, tiny and random; whoever changes it takes a copy."""
    from glm_folder import saved

    return saved(tmp_path_factory.mktemp("hub") / "GLM-Image")


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A folder for what the evaluation keeps, shared by all tests."""
    return tmp_path_factory.mktemp("cache")

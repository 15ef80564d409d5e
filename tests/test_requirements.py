"""What is locked can be installed wherever the package promises to run."""

from importlib.metadata import distributions

from packaging.specifiers import SpecifierSet

OLDEST = "3.11.0"
"""The first release that `requires-python` in pyproject.toml takes; Debian 12 has 3.11.2."""


def test_every_locked_package_takes_the_oldest_python_that_ours_takes() -> None:
    wants = {one.metadata["Name"]: one.metadata["Requires-Python"] for one in distributions()}
    assert SpecifierSet(wants["interpreter"]).contains(OLDEST)
    assert not {name: want for name, want in wants.items() if want and not SpecifierSet(want).contains(OLDEST)}

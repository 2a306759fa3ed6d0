"""Versions of the packages that results depend on."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("stagemeter", "torch", "transformers", "fvcore", "mlflow")


def package_versions() -> dict[str, str]:
    """Return the installed version of each package that results depend on, or ``not installed``."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions

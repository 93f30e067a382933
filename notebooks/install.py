"""Install the package into a notebook's runtime, and keep the runtime's own JAX and TensorFlow.

%run checkout/notebooks/install.py

A runtime's builds of JAX, TensorFlow and PyTorch fit its accelerator, and tensorflow-cpu, which the
package requires elsewhere, lies in the same folder as tensorflow and would overwrite it. Hence pip
installs the package alone, and then its requirements but for such builds, each of which is pinned
at the version that is there. A build that is absent is installed as usual.
"""

import dataclasses
import importlib
import importlib.metadata
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Mapping

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PACKAGE = "cmap_jax"
CHECKOUT = pathlib.Path(__file__).resolve().parents[1]
EXTRAS = ("training", "tensorflow")
_ENVIRONMENT = {
    "CMAP_JAX_WITHOUT_TENSORFLOW": "1",  # leaves out both extras' requirements, see setup.py
    "PIP_ROOT_USER_ACTION": "ignore",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
}
# Distributions of the module tensorflow.
_TENSORFLOW = re.compile(r"(tensorflow|tf-nightly)(-(cpu|gpu|tpu|intel|macos|rocm))?")
# Distributions that belong to the runtime, with the libraries that its accelerator needs.
_KEPT = re.compile(
    rf"{_TENSORFLOW.pattern}|tensorboard|jax(lib|-(cuda|rocm)\d+-(plugin|pjrt))?|libtpu(-nightly)?"
    r"|nvidia-.+|torch(vision|audio)?|numpy"
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """An installation beside what is there.

    Attributes:
        requirements: those that pip is to meet. A kept distribution that the package needs is among
            them at its installed version, since pip then minds what it requires itself.
        pins: the installed version of each kept distribution, as pip's constraints.
        notes: a sentence for each kept distribution that is older than the package asks for.
    """

    requirements: list[str]
    pins: list[str]
    notes: list[str]


def make_plan(requirements: Iterable[str], installed: Mapping[str, str]) -> Plan:
    """Return what is to be installed, and what is to stay as it is.

    Args:
        requirements: those of the package's metadata, with those of its `EXTRAS`.
        installed: versions by normalized name.
    """
    plan = Plan([], [f"{n}=={v}" for n, v in sorted(installed.items()) if is_kept(n)], [])
    for requirement in map(Requirement, requirements):
        if not _applies(requirement):
            continue
        name = _kept_name(canonicalize_name(requirement.name), installed)
        if name is None:
            requirement.marker = None
            plan.requirements.append(str(requirement))
            continue
        plan.requirements.append(f"{name}=={installed[name]}")
        if not requirement.specifier.contains(installed[name], prereleases=True):
            plan.notes.append(
                f"{name} {installed[name]} of this runtime is kept, though {PACKAGE} asks for "
                f"{requirement.specifier}: should something fail, choose a newer runtime version"
            )
    return plan


def _applies(requirement: Requirement) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in EXTRAS)


def is_kept(name: str) -> bool:
    """Tell whether a distribution belongs to the runtime, by its normalized name."""
    return _KEPT.fullmatch(name) is not None


def _kept_name(name: str, installed: Mapping[str, str]) -> str | None:
    """Return the installed and kept distribution that stands for ``name``; None if there is none.

    Any distribution of TensorFlow stands for every other one.
    """
    if _TENSORFLOW.fullmatch(name):
        return next((other for other in installed if _TENSORFLOW.fullmatch(other)), None)
    return name if is_kept(name) and name in installed else None


def installed_versions() -> dict[str, str]:
    """Return the version of each installed distribution by its normalized name."""
    distributions = importlib.metadata.distributions()
    names = ((d.metadata["Name"], d.version) for d in distributions)
    return {canonicalize_name(name): version for name, version in names if name}


def loaded_modules(changed: Iterable[str]) -> list[str]:
    """Return the modules of distributions that this process had loaded before they changed."""
    names = set(changed)
    return sorted(
        module
        for module, distributions in importlib.metadata.packages_distributions().items()
        if module in sys.modules and names & set(map(canonicalize_name, distributions))
    )


def main() -> None:
    """Install the package and what it needs; say what was kept, and whether to restart.

    The package itself comes last: where it can be imported, everything is there.

    Raises:
        subprocess.CalledProcessError: pip could not; it has said why.
    """
    before = installed_versions()
    with tempfile.TemporaryDirectory() as scratch:
        _pip("wheel", "--no-deps", "--wheel-dir", scratch, str(CHECKOUT))
        (wheel,) = pathlib.Path(scratch).glob("*.whl")
        plan = make_plan(_requirements(wheel), before)
        constraints = pathlib.Path(scratch, "constraints.txt")
        constraints.write_text("\n".join(plan.pins))
        _pip("install", "--constraint", str(constraints), *plan.requirements)
        _pip("install", "--no-deps", str(wheel))
    importlib.invalidate_caches()
    after = installed_versions()
    version = after[canonicalize_name(PACKAGE)]
    print(f"{PACKAGE} {version} is installed beside {', '.join(plan.pins)}")
    for note in plan.notes:
        print(note)
    changed = [name for name, version in before.items() if after.get(name) != version]
    if modules := loaded_modules(changed):
        print(
            f"Restart the session (Runtime > Restart session): {', '.join(modules)} had been "
            "loaded before newer versions were installed"
        )


def _requirements(wheel: pathlib.Path) -> list[str]:
    """Return the requirements in a wheel's metadata."""
    (folder,) = (f for f in zipfile.Path(wheel).iterdir() if f.name.endswith(".dist-info"))
    return importlib.metadata.PathDistribution(folder).requires


def _pip(*arguments: str) -> None:
    """Run pip and print all that it says, which a notebook shows from no other process."""
    ended = subprocess.run(
        [sys.executable, "-m", "pip", *arguments, "--quiet"],
        env=os.environ | _ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print(ended.stdout, end="")
    ended.check_returncode()


if __name__ == "__main__":
    main()

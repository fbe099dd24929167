"""Maps the top-level folders into the `penstock` import package; all metadata is in pyproject.toml."""

from setuptools import find_packages, setup

PARTS = ("proxy", "scheduler", "kernels", "cache", "models", "compress", "tune")

packages = ["penstock"]
package_dir = {"penstock": "penstock"}
for part in PARTS:
    packages.append(f"penstock.{part}")
    package_dir[f"penstock.{part}"] = part
    for nested in find_packages(part, exclude=["recipe", "recipe.*"]):
        packages.append(f"penstock.{part}.{nested}")
        package_dir[f"penstock.{part}.{nested}"] = f"{part}/{nested.replace('.', '/')}"

setup(
    packages=packages,
    package_dir=package_dir,
    include_package_data=False,
    package_data={
        "penstock.cache.semantic": ["*.c"],
        "penstock.kernels": ["tuned/*.json"],
        "penstock.kernels.cpu.native": ["*.c", "*.h"],
        "penstock.proxy.dashboard": ["page/*"],
        "penstock.models": [
            f"{model}/*.{kind}"
            for model in ("builtin", "builtin-large")
            for kind in ("json", "safetensors", "jinja", "md")
        ],
    },
)

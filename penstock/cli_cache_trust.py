"""`penstock cache trust`: what verification has taught, and what is served because of it."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .cache.key import namespace_hash
from .cli_cache_show import print_json, scope_name
from .errors import ConfigError

if TYPE_CHECKING:
    from .cache.opened import OpenedCache
    from .cache.trust.overview import Family


def trust(
    cache: "OpenedCache",
    max_error_rate: float,
    tenants: Mapping[bytes, str],
    *,
    file: str | None,
    as_json: bool,
) -> int:
    from .cache.trust.overview import families, plot

    found = families(cache, max_error_rate)
    if as_json:
        print_json([_as_json(family) for family in found])
    elif not found:
        print("nothing was verified yet: near hits that the model verifies are what is learnt from")
    for family in found:
        if not as_json:
            _show(family, max_error_rate, tenants)
    if file is not None and found:
        try:
            plot(found, file)
        except ImportError:
            raise ConfigError("Plots need matplotlib; install penstock[plot].", param="plot") from None
        except (OSError, ValueError) as error:
            raise ConfigError(f"{file} cannot be written: {error}.", param="plot") from error
    return 0


def _show(family: "Family", max_error_rate: float, tenants: Mapping[bytes, str]) -> None:
    print(f"{scope_name(family.tenant + namespace_hash(''), tenants)}, model {family.name[-8:].hex()}")
    print(f"  verified   {family.labels} near hits, {family.same} with the same answer")
    if family.explored:
        print(f"  explored   {family.explored} that could be served, {family.explored_same} right")
    if family.serves:
        print(
            f"  serves     from a score of {family.threshold:.2f} on: {family.servable} of the verified ones, "
            f"{family.error_rate:.2%} of them wrong by estimate, at most {max_error_rate:.2%} allowed"
        )
    else:
        print(f"  serves     nothing yet: too few labels, or too many wrong ones, for {max_error_rate:.2%}")


def _as_json(family: "Family") -> dict[str, Any]:
    return {
        "tenant": family.tenant.hex(),
        "family": family.name.hex(),
        "labels": family.labels,
        "same": family.same,
        "explored": family.explored,
        "explored_same": family.explored_same,
        "threshold": family.threshold if math.isfinite(family.threshold) else None,
        "servable": family.servable,
        "error_rate": family.error_rate if family.serves else None,
    }

"""All checks at once, each with a deadline: what hangs is named, and nobody waits for it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

from runtime.doctor import environment, files, machine, network, packages, state
from runtime.doctor.abreast import abreast
from runtime.doctor.engines import engines_and_gpus
from runtime.doctor.finding import Check, Finding
from runtime.doctor.memory_need import model_plan
from runtime.errors import LLMError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from runtime.doctor.site import Site

CHECKS: Final = (
    Check(id="python", what="looks at Python", look=packages.python),
    Check(id="packages", what="imports the packages", look=packages.dependencies),
    Check(id="settings", what="reads the settings", look=environment.settings),
    Check(id="environment", what="reads the environment", look=environment.variables),
    Check(id="locale", what="looks at the encoding", look=environment.encoding),
    Check(id="clock", what="looks at the clock", look=environment.clock),
    Check(id="cpu", what="looks at the processor", look=machine.processor),
    Check(id="memory", what="looks at the memory", look=machine.main_memory),
    Check(id="limits", what="looks at the limits", look=machine.limits),
    Check(id="engines", what="tries the engines", look=engines_and_gpus, overdue="fail"),
    Check(id="disk", what="writes to the folders", look=files.folders, overdue="fail"),
    Check(id="models", what="looks at the models", look=files.models, patient=True),
    Check(id="state", what="reads the state files", look=state.state),
    Check(id="locks", what="looks for locks", look=state.locks),
    Check(id="proxy", what="reads the proxy settings", look=network.proxies),
    Check(id="loopback", what="tries the loopback", look=network.loopback, overdue="fail"),
    Check(id="port", what="tries the port", look=network.gateway_port),
    Check(id="model", what="plans the memory", look=model_plan),
)


def examine(
    site: Site,
    checks: Sequence[Check] = CHECKS,
    *,
    on_wait: Callable[[Sequence[str]], None] | None = None,
) -> tuple[Finding, ...]:
    """Look at everything; takes no longer than the site's patience, unless in full.

    Args:
        site: What to look at.
        checks: Which checks.
        on_wait: Called every second with what is still being waited for.
    """

    def tell(waiting: Sequence[int]) -> None:
        if on_wait and waiting:
            on_wait([checks[at].what for at in waiting])

    looks = abreast(
        [functools.partial(_looked, check, site) for check in checks],
        until_s=[None if check.patient and site.full else site.until_s for check in checks],
        on_wait=tell,
    )
    found: list[Finding] = []
    for check, look in zip(checks, looks, strict=True):
        if look.error is not None:
            found.append(_raised(check, look.error))
        elif look.result is None:
            found.append(
                Finding(
                    id=check.id,
                    status=check.overdue,
                    found=f"did not come to an end in time: the part that {check.what} hangs.",
                    remedy="Give it longer: llama-runtime doctor --patience 30",
                )
            )
        else:
            found.extend(look.result)
    return tuple(found)


def _looked(check: Check, site: Site) -> tuple[Finding, ...]:
    return tuple(check.look(site))


def _raised(check: Check, error: Exception) -> Finding:
    if isinstance(error, LLMError):
        return Finding(id=check.id, status="fail", found=error.message, remedy=error.hint)
    return Finding(
        id=check.id,
        status="fail",
        found=f"the part that {check.what} failed: {type(error).__name__}: {error}",
        remedy="This is a defect of llama-runtime or of this machine: please report it.",
    )

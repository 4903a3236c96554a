"""To a Ray cluster and what it says: connecting, what is refused, where to place, its errors."""

from contextlib import suppress
from typing import Any, TypeAlias

from millpond import lazy
from millpond.errors import MillpondError, OptionError, OutOfMemory, WorkerLost
from millpond.runtime.node import Versions
from millpond.runtime.ray.reach import NotInTime, check_answers, within

ray: Any = lazy.extra("ray", extra="ray", what="runtime='ray'")

NAMESPACE = "millpond"
START_S = 60.0
INIT_S = 120.0  # For Ray's own start; it gives most of what it waits for a minute.

Handle: TypeAlias = Any  # Of an actor or an object of Ray's.


def connect(address: str | None, cpus: int | None) -> bool:
    """Connect, or start a cluster on this machine; whether it is ours to end."""
    if ray.is_initialized():
        return False
    quiet = {"log_to_driver": False, "configure_logging": False, "namespace": NAMESPACE}
    if address is not None:
        check_answers(_found(address))
    try:
        with within(INIT_S):
            if address is not None:
                ray.init(address=address, **quiet)
            else:
                _report_nothing()
                ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
    except (Exception, NotInTime) as error:  # Of this very class, where a new cluster fails.
        ray.shutdown()  # What has started of it.
        why = f"it took more than {INIT_S:g} s." if isinstance(error, NotInTime) else error
        raise OptionError(
            f"runtime='ray': no connection to a cluster at {address or 'this machine'!r}: {why} "
            "Check that it runs (`ray status`), and that Ray and Python have its versions."
        ) from error
    return True


def _found(address: str) -> str:
    """What Ray takes `address` for, such as "auto"."""
    with suppress(ImportError, ValueError, OSError):
        from ray._private.services import canonicalize_bootstrap_address

        return canonicalize_bootstrap_address(address) or address
    return address


def is_connected() -> bool:
    """False once somebody has shut Ray down: whatever is asked of it then starts a new cluster."""
    return bool(ray.is_initialized())


def check_connected() -> None:
    if not is_connected():
        raise MillpondError(
            "runtime='ray': this process has left the cluster (ray.shutdown()). Open a new session."
        )


def _report_nothing() -> None:
    """A cluster that we start tells nobody about itself; Ray's would report its use."""
    with suppress(ImportError):
        from ray._common.usage.usage_lib import set_usage_stats_enabled_via_env_var

        set_usage_stats_enabled_via_env_var(False)


def check_security(allow_insecure: bool) -> None:
    """Refuse a cluster without tokens. Its workers' word counts: it may ignore our token."""
    asked = ray.remote(_has_token_auth).options(num_cpus=0, max_retries=3)
    try:
        secure = _has_token_auth() and ray.get(asked.remote(), timeout=START_S)
    except ray.exceptions.GetTimeoutError as error:
        raise WorkerLost(
            f"runtime='ray': the cluster has run nothing within {START_S:g} s. Look whether its "
            "nodes are alive and can start processes (`ray status`)."
        ) from error
    if not secure and not allow_insecure:
        raise OptionError(
            "runtime='ray': this cluster runs without token authentication, so whoever reaches "
            "its ports runs code on it and reads your data. Start it, and this program, with "
            "RAY_AUTH_MODE=token (Ray makes a token by `ray get-auth-token --generate`), or "
            "pass allow_insecure=True if only trusted machines reach it."
        )


def _has_token_auth() -> bool:
    try:
        from ray._private.authentication.authentication_utils import is_token_auth_enabled
    except ImportError:
        return False  # A version that says it elsewhere, or not at all.
    return bool(is_token_auth_enabled())


def check_same(ours: Versions, theirs: Versions, node: str) -> None:
    """Refuse a node whose versions differ from the session's."""
    if ours != theirs:
        raise OptionError(
            f"runtime='ray': node {node} has {theirs}, but this session has {ours}. Partitions "
            "depend on these versions: install the same on all nodes."
        )


def near(node: str) -> Handle:
    """Place there, or elsewhere if there is no room."""
    return ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=True)


def only(node: str) -> Handle:
    return ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)


def translated(error: BaseException) -> BaseException:
    """Our error for Ray's, by its class."""
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return OutOfMemory(f"Ray ended the task, because its node ran out of memory: {error}")
    # A RayTaskError was raised where a task starts: our bug, or a broken installation.
    lost = isinstance(error, ray.exceptions.RayError)
    if lost and not isinstance(error, ray.exceptions.RayTaskError):
        first_line = str(error).strip().partition("\n")[0]
        return WorkerLost(f"{type(error).__name__}: {first_line}".removesuffix(": "))
    return error

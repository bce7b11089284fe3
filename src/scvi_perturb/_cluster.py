"""Work spread over the machines of a cluster, by ray."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

T = TypeVar("T")

#: How often a task is run again whose worker died.
_RETRIES: Final = 2


class WorkerError(RuntimeError):
    """A process of a cluster died, and the message says with which work."""


def by_ray(
    function: Callable[..., T], items: Sequence[Any], *, names: Sequence[str], shared: object = None
) -> Iterator[tuple[int, T]]:
    """Yield place and result of `function(item, shared)` for each item, as they are finished.

    A cluster that the process is connected to is used; without one, ray starts on this machine.
    `shared` is sent to each machine once. `names` say in errors what was lost. What fails for want
    of a worker is run again, twice.

    Raises `ImportError`: If ray is not installed. Raises `WorkerError`: If a worker dies each time.
    """
    try:
        import ray
    except ImportError:
        msg = "Running on a cluster needs ray; install it with `pip install 'scvi-perturb[scale]'`."
        raise ImportError(msg) from None
    if not ray.is_initialized():
        ray.init(include_dashboard=False, logging_level=logging.ERROR)
    remote: Any = ray.remote(max_retries=_RETRIES)(function)
    held = ray.put(shared)
    waiting = {remote.remote(item, held): place for place, item in enumerate(items)}
    try:
        while waiting:
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            place = waiting.pop(done)
            try:
                yield place, ray.get(done)
            except ray.exceptions.RayTaskError:  # an error of the function itself
                raise
            except ray.exceptions.RayError as error:
                msg = (
                    f"The worker that had {names[place]} died {_RETRIES + 1} times "
                    f"({type(error).__name__}), most likely for want of memory. Use machines with "
                    "more memory, fewer workers on each, or smaller parts."
                )
                raise WorkerError(msg) from error
    finally:
        for one in waiting:
            ray.cancel(one, force=True)

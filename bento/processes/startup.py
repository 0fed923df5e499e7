"""Start-up: what BentoML is told, and loading beside the probes, which answer meanwhile."""

from __future__ import annotations

import gc
import logging
import os
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings
from uvicorn.config import HTTP_PROTOCOLS

from bento.contract.errors import NotReady, ServiceError, describe
from bento.processes.workers import give_up
from bento.settings import Settings

logger = logging.getLogger("vision_encoder")

S = TypeVar("S", bound=BaseSettings)
T = TypeVar("T")


def read_settings(kind: type[S]) -> S:
    """Read settings. Raises `SystemExit` with a sentence when a variable is not valid."""
    try:
        return kind()
    except ValidationError as error:
        raise SystemExit(f"a variable is not valid: {describe(error)}") from None


def service_options(settings: Settings, timeout: float, connection: str) -> dict[str, Any]:
    """Return the options of `bentoml.service`, and set what BentoML has no option for.

    `connection` names the class of uvicorn's connections, `MODULE:CLASS`; `timeout` is in seconds.
    """
    HTTP_PROTOCOLS["auto"] = connection  # which is what BentoML takes
    if settings.device.startswith("cuda:"):
        # BentoML would hide all GPUs but the first; DEVICE says which one
        os.environ.setdefault("BENTOML_DISABLE_GPU_ALLOCATION", "1")
    exports_spans = bool({"BENTOML_CONFIG", "BENTOML_CONFIG_OPTIONS"} & os.environ.keys())
    return {
        "name": "vision-encoder",
        "workers": settings.workers,
        "resources": {"gpu": 1} if settings.device.startswith("cuda") else {"cpu": "2"},
        "http": {"host": settings.host, "port": settings.port},
        "traffic": {"timeout": timeout},
        # RequestMiddleware logs and counts each request once: BentoML's counters are by path, of
        # which a client can ask for any number. Spans cost half of a request's CPU time in the
        # framework, and go nowhere unless BentoML is configured to export them.
        "logging": {"access": {"enabled": False}},
        "metrics": {"enabled": False},
        "tracing": {} if exports_spans else {"excluded_urls": ".*"},
    }


class Startup(Generic[T]):
    """Loads on a thread of its own: /livez answers meanwhile, /readyz waits for it.

    When `load` fails, the service ends and says why.
    """

    def __init__(self, load: Callable[[], T]) -> None:
        self._load = load
        self._loaded: T | None = None
        threading.Thread(target=self._run, name="load", daemon=True).start()

    @property
    def loaded(self) -> T:
        """What `load` returned. Raises `NotReady` until it has."""
        if self._loaded is None:
            raise NotReady("the model is still loading; /readyz says when it is ready")
        return self._loaded

    @property
    def done(self) -> bool:
        return self._loaded is not None

    def _run(self) -> None:
        try:
            loaded = self._load()
        except ServiceError as error:
            give_up(str(error))
        except Exception:
            logger.exception("the model could not be loaded")
            give_up("see the traceback above")
        else:
            gc.collect()
            gc.freeze()  # what is loaded stays: looking through it paused everyone for 0.2 s
            self._loaded = loaded

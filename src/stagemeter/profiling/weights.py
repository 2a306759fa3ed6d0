"""Models with weights: random ones that are the same every time, or those of a checkpoint's folder."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagemeter.core.errors import StagemeterError

if TYPE_CHECKING:
    import torch

#: Standard deviation of random weights, as in transformers.
_DEVIATION = 0.02
#: Random numbers that fill weights, repeated. No multiple of a layer's size, so that no two rows or experts are equal.
_RANDOM_NUMBERS = 2**22 + 1
#: Files of weights that can run code when they are read.
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def build_model(kind: Any, settings: Any, device: torch.device, dtype: str) -> Any:
    """Build a transformers model of a class and a configuration: without weights on meta, else with random ones."""
    import torch
    from transformers.initialization import no_init_weights

    with torch.device(device), no_init_weights():
        model = kind._from_config(copy.deepcopy(settings), dtype=getattr(torch, dtype)).eval()
    # Otherwise done as weights are loaded.
    model.tie_weights()
    if device.type != "meta":
        fill_randomly(model)
    return model


def fill_randomly(model: Any) -> None:
    """Fill weights so that activations stay in range: matrices normally distributed, norms one, biases zero."""
    import torch

    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(_RANDOM_NUMBERS, generator=generator) * _DEVIATION
    numbers = numbers.to(model.device, model.dtype)
    start = 0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
                continue
            # Drawing each number would take longer than a request. Each parameter goes on where the last one ended, so
            # that parameters of one size differ.
            left = parameter.view(-1)
            while left.numel():
                part = numbers[start : start + left.numel()]
                left[: part.numel()] = part
                left, start = left[part.numel() :], (start + part.numel()) % _RANDOM_NUMBERS


def require_weights(folder: Path) -> None:
    """Refuse a folder without weights, or with pickles only, which can run code when they are read."""
    if list(folder.glob("*.safetensors")):
        return
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise StagemeterError(
            f"{folder}: the weights are pickles ({', '.join(pickles[:3])}), which can run code when they are read. "
            "Convert them to safetensors"
        )
    raise StagemeterError(
        f"{folder}: the folder holds no *.safetensors files. Leave --weights out to run random ones, or use "
        "`stagemeter analyze --model`, which needs the config.json alone"
    )


def load_model(kind: Any, settings: Any, folder: Path, dtype: str) -> Any:
    """Load the weights of a checkpoint's folder; refuse pickles, and keys that do not fit. No code of the folder runs.

    With the data type ``auto``, weights keep that of the checkpoint.
    """
    from safetensors import SafetensorError

    require_weights(folder)
    try:
        model, loading = kind.from_pretrained(
            folder,
            config=copy.deepcopy(settings),
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except (SafetensorError, OSError) as error:
        raise StagemeterError(f"{folder}: the weights cannot be read ({error}). Download them again") from error
    problems = {
        "missing": loading["missing_keys"],
        "unexpected": loading["unexpected_keys"],
        "of another shape": [key[0] if isinstance(key, tuple) else key for key in loading["mismatched_keys"]],
    }
    found = [f"{_some(keys)} {kind_of}" for kind_of, keys in problems.items() if keys]
    if found:
        raise StagemeterError(
            f"{folder}: the weights do not fit config.json ({'; '.join(found)}). Give a whole checkpoint"
        )
    return model.eval()


def _some(keys: Iterable[str]) -> str:
    names = sorted(keys)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more

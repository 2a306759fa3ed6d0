"""The model that is analyzed: built without weights from a configuration, or loaded from a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import outside_path
from stagemeter.hardware.machine import torch_device
from stagemeter.models.configuration import complete
from stagemeter.models.families.deepseek_ocr.configuration import (
    NAME,
    DeepseekOCRArchitecture,
    architecture_from_config,
    published_architecture,
    require_no_window,
    transformers_config,
)
from stagemeter.models.families.deepseek_ocr.family import VISION_MODULES
from stagemeter.models.lookup import read_config
from stagemeter.profiling.scopes import Scope, annotate, scoped_modules

if TYPE_CHECKING:
    import torch

#: Standard deviation of random weights, as transformers initialises them.
_WEIGHT_DEVIATION = 0.02
#: Random numbers that random weights are made of, over and over. Not a multiple of any size of a layer, so that no two
#: rows or experts are alike.
_RANDOM_NUMBERS = 2**22 + 1
#: Formats of weights that can run code when they are read.
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass
class DeepSeekOCRSession:
    """A DeepSeek-OCR model and where it lives.

    Use `from_config` or `from_local`.

    Attributes
    ----------
    model : torch.nn.Module
        transformers' ``UnlimitedOcrForConditionalGeneration``.
    architecture : DeepseekOCRArchitecture
        Its sizes.
    device : torch.device
        Where its weights are; ``meta`` for a model without weights.
    name : str
        ``deepseek-ocr`` or the folder it was loaded from.
    tokenizer : object or None
        The tokenizer of the checkpoint's folder, None where there is none.
    """

    model: Any
    architecture: DeepseekOCRArchitecture
    device: torch.device
    name: str = NAME
    tokenizer: Any = None

    @classmethod
    def from_config(
        cls,
        config: DeepseekOCRArchitecture | Mapping[str, Any] | None = None,
        device: str = "meta",
        dtype: str = "bfloat16",
        use_flash_attn: bool = True,
        name: str = NAME,
    ) -> DeepSeekOCRSession:
        """Build the architecture without weights.

        Parameters
        ----------
        config : DeepseekOCRArchitecture or mapping, optional
            Sizes, or what a ``config.json`` holds. Default: the published DeepSeek-OCR.
        device : str
            ``meta`` for shapes alone; anything else gets random weights, the same ones every time.
        dtype : str
            Data type of the weights.
        use_flash_attn : bool
            See `from_local`.
        name : str
            Name in reports.

        Raises
        ------
        StagemeterError
            If the configuration cannot be used or there is no such device.
        """
        import torch
        from transformers.initialization import no_init_weights
        from transformers.models.unlimited_ocr.modeling_unlimited_ocr import UnlimitedOcrForConditionalGeneration

        if config is None:
            architecture = published_architecture()
        elif isinstance(config, DeepseekOCRArchitecture):
            architecture = config
            require_no_window(architecture, "the given architecture")
        else:
            source = "the given configuration"
            architecture = architecture_from_config(complete(config, source), source)
        target = torch_device(device)
        settings: Any = transformers_config(architecture, _attention(use_flash_attn))
        with torch.device(target), no_init_weights(), _default_dtype(getattr(torch, dtype)):
            model: Any = UnlimitedOcrForConditionalGeneration(settings)
            model.eval()
        if target.type != "meta":
            _fill_randomly(model)
        return cls(model=model, architecture=architecture, device=target, name=name)

    @classmethod
    def from_local(
        cls, model_path: str | Path, device: str = "cuda:0", use_flash_attn: bool = True, dtype: str = "auto"
    ) -> DeepSeekOCRSession:
        """Load a checkpoint's folder: its configuration, its safetensors files and its tokenizer.

        No code of the folder is run; the keys of the official checkpoint are mapped to transformers' own modules.

        Parameters
        ----------
        model_path : str or Path
            Folder of the checkpoint.
        device : str
            Where to put the weights; ``meta`` reads the configuration alone.
        use_flash_attn : bool
            Attention through torch's fused operator, which takes a flash-attention kernel where there is one and the
            attention has no bias (SAM's has). False: as separate products.
        dtype : str
            Data type of the weights; ``auto``: that of the checkpoint.

        Raises
        ------
        StagemeterError
            If there is no such folder or device, the architecture is another, the weights are pickles, or keys are
            missing or unexpected.
        """
        folder = outside_path(model_path, "model_path")
        if not folder.is_dir():
            raise StagemeterError(f"{folder} is not a folder: give the folder of a DeepSeek-OCR checkpoint")
        target = torch_device(device)
        source = str(folder / "config.json")
        architecture = architecture_from_config(complete(read_config(folder), source), source)
        if target.type == "meta":
            session = cls.from_config(architecture, use_flash_attn=use_flash_attn, name=str(folder))
        else:
            model = _load_weights(folder, architecture, _attention(use_flash_attn), dtype).to(target).eval()
            session = cls(model=model, architecture=architecture, device=target, name=str(folder))
        session.tokenizer = _load_tokenizer(folder)
        return session

    def run_inference(
        self, input_ids: torch.Tensor, model_kwargs: Mapping[str, Any], new_tokens: int, scope: Scope = annotate
    ) -> torch.Tensor:
        """Read pages and generate text, greedily: the request that the counts are of.

        Each stage runs in a range of its name: ``prefill`` is the first forward pass and contains ``sam``, ``clip``
        and ``projector``; each ``decode`` is one further pass over one token.

        Parameters
        ----------
        input_ids : torch.Tensor
            Shape ``(batch, prompt tokens)``, see `DeepseekOCRStaticAnalyzer.prepare_inputs`.
        model_kwargs : mapping
            ``images`` and ``images_spatial_crop``, from there too.
        new_tokens : int
            Tokens to generate: the first by the prefill, each other by a decode step that reuses keys and values.
            There are always as many; an end-of-text token does not end it.
        scope : callable
            Opens a range of a name. Default: for torch's profiler and NVTX.

        Returns
        -------
        torch.Tensor
            Shape ``(batch, new_tokens)``, int64.
        """
        import torch
        from transformers.cache_utils import DynamicCache

        modules = {stage: self.model.get_submodule(path) for stage, path in VISION_MODULES.items()}
        page = _page_arguments(model_kwargs)
        # Given no configuration, the cache keeps everything; the model's own would ask for its sliding window.
        cache = DynamicCache(config=None)
        batch, length = input_ids.shape
        positions = torch.arange(length + new_tokens, device=self.device).expand(batch, -1)

        def forward(tokens: torch.Tensor, start: int, **page: Any) -> torch.Tensor:
            out = self.model(
                input_ids=tokens,
                position_ids=positions[:, start : start + tokens.shape[1]],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
                **page,
            )
            following: torch.Tensor = out.logits[:, -1].argmax(-1, keepdim=True)
            return following

        with torch.inference_mode(), scoped_modules(modules, scope):
            with scope("prefill"):
                generated = [forward(input_ids, 0, **page)]
            for step in range(new_tokens - 1):
                with scope("decode"):
                    generated.append(forward(generated[-1], length + step))
        return torch.cat(generated, dim=1)

    def without_weights(self) -> DeepSeekOCRSession:
        """Return a session of the same architecture to count on: on the meta device, where that needs no memory.

        Its data type is bfloat16 and its attention is fused, whatever this session's are: costs are counted in
        elements, which do not depend on the one, and describe fused attention, as the closed forms do.
        """
        import torch

        fused = self.model.config._attn_implementation != "eager"
        if self.device.type == "meta" and self.model.dtype == torch.bfloat16 and fused:
            return self
        return self.from_config(self.architecture, name=self.name)


def _page_arguments(model_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Turn pages as the authors' code takes them into what transformers' model takes."""
    import torch

    local_views, global_views = zip(*model_kwargs["images"], strict=True)
    arguments: dict[str, Any] = {"pixel_values": torch.cat(global_views)}
    tiles = torch.cat(local_views)
    if len(tiles):
        arguments["pixel_values_local"] = tiles
        arguments["num_local_patches"] = [len(views) for views in local_views]
        arguments["patches_grid"] = model_kwargs["images_spatial_crop"].tolist()
    return arguments


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make new weights of a data type at once: made in float32 first, they would need up to three times the memory."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _fill_randomly(model: Any) -> None:
    """Give a model weights that keep activations in range: normal ones, norms that scale by one, biases of zero."""
    import torch

    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(_RANDOM_NUMBERS, generator=generator) * _WEIGHT_DEVIATION
    numbers = numbers.to(model.device, model.dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
                continue
            # One by one they would take longer to draw than a request takes to run.
            for part in parameter.view(-1).split(_RANDOM_NUMBERS):
                part.copy_(numbers[: part.numel()])


def _attention(use_flash_attn: bool) -> str:
    return "sdpa" if use_flash_attn else "eager"


def require_weights(folder: Path) -> None:
    """Refuse a folder without weights that can be read safely.

    Raises
    ------
    StagemeterError
        If there are none, or pickles alone.
    """
    if not list(folder.glob("*.safetensors")):
        pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        if pickles:
            raise StagemeterError(
                f"{folder} holds its weights as pickles ({', '.join(pickles[:3])}), which can run code when they are "
                "read; convert them to safetensors"
            )
        raise StagemeterError(
            f"{folder} holds no *.safetensors files; without weights, DeepSeekOCRSession.from_config builds the "
            "architecture, and `stagemeter analyze --model` needs the config.json alone"
        )


def _load_weights(folder: Path, architecture: DeepseekOCRArchitecture, attention: str, dtype: str) -> Any:
    from safetensors import SafetensorError
    from transformers.models.unlimited_ocr import modeling_unlimited_ocr

    require_weights(folder)
    try:
        architecture_class: Any = modeling_unlimited_ocr.UnlimitedOcrForConditionalGeneration
        model, loading = architecture_class.from_pretrained(
            folder,
            config=transformers_config(architecture, attention),
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except (SafetensorError, OSError) as error:
        raise StagemeterError(f"{folder}: the weights cannot be read: {error}") from error
    problems = {
        "missing": loading["missing_keys"],
        "unexpected": loading["unexpected_keys"],
        "of another shape": [key[0] if isinstance(key, tuple) else key for key in loading["mismatched_keys"]],
    }
    found = [f"{_some(keys)} {kind}" for kind, keys in problems.items() if keys]
    if found:
        raise StagemeterError(f"{folder} is not a DeepSeek-OCR checkpoint of its config.json: {'; '.join(found)}")
    return model


def _some(keys: Iterable[str]) -> str:
    names = sorted(keys)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _load_tokenizer(folder: Path) -> Any:
    if not (folder / "tokenizer.json").is_file():
        return None
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)

"""A model family: an ordered list of stages, and how a request becomes their inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from stagemeter.core.cost import Cost
from stagemeter.core.weight_storage import QuantizedWeights
from stagemeter.core.workload import Workload
from stagemeter.models.lora import Adapter
from stagemeter.models.page_views import PageRules, PageViews
from stagemeter.models.quantization import Quantization
from stagemeter.models.resolution import Resolution

if TYPE_CHECKING:
    from stagemeter.models.pages.settings import ProcessorSettings

Architecture = TypeVar("Architecture")

#: Values of the variables of a closed form, by name.
Variables = Mapping[str, int]


class CacheRecorder(Protocol):
    """A recorder of what is appended to a KV cache; the counter is one."""

    def record_cache_update(self, key: Any, value: Any, added: int) -> None:
        """Record that a cache holds `key` and `value`, and that `added` elements of both are new."""

    def record_state(self, state: Any, added: int) -> None:
        """Record that a cache keeps a state with `added` new elements, and later copies into it."""

    def paused(self) -> AbstractContextManager[None]:
        """Record nothing in a block, such as one that fills a cache with tokens of earlier passes."""

    def known_values(self) -> AbstractContextManager[Any]:
        """Know the values of token ids, masks and the like in a block, although a model has only shapes."""


class LanguageModel(Protocol):
    """A decoder, with or without closed forms."""

    @property
    def max_positions(self) -> int:
        """Longest sequence that the model was made for."""

    def kv_cache_elements(self, workload: Workload, tokens: int) -> int:
        """Return the elements of the cache when each sequence of a workload has some tokens."""

    def quantized_weights(self) -> QuantizedWeights:
        """Return the weights that are stored in fewer bits than the model calculates in."""


#: Runs a part of a model, from the model, its sizes, a workload and the counter.
Runner = Callable[[Any, Any, Workload, CacheRecorder], None]


def with_values(run: Runner) -> Runner:
    """Return a runner for code that asks for values, such as which tokens stand for a page."""

    def run_with_values(model: Any, sizes: Any, workload: Workload, recorder: CacheRecorder) -> None:
        with recorder.known_values():
            run(model, sizes, workload, recorder)

    return run_with_values


@dataclass(frozen=True, slots=True)
class StageParameters:
    """Parameters of one stage in the checkpoint, by closed form.

    `active` are those that one token uses, fewer if experts are chosen; `unused` those that no pass reads. `total`
    includes both.
    """

    total: int
    active: int
    unused: int = 0


#: Cost of a pass while text is generated, from sizes, workload, new tokens per sequence, tokens before them in the
#: cache, how many of the new ones the output head scores, and whether all choose the same experts; not as many
#: different ones as they can. The tokens before may be an array.
GenerationPass = Callable[[Any, Workload, int, Any, int, bool], Cost]

#: Variable of a closed form: the experts whose weights a pass reads, in every layer with experts.
EXPERTS_READ = "experts_read"
#: Variable of the closed form of what a prefill needs: 1 if its last token yields a new one, 0 if more follow.
YIELDS = "yields"


#: Variable of a call that runs together with the one before, on further pages: it reads no weights of its own.
JOINED = "joined"


def own_variables(values: Variables) -> Variables:
    """Return the variables of a closed form without `JOINED`."""
    return {name: value for name, value in values.items() if name != JOINED} if JOINED in values else values


def unless_joined(cost: Cost, values: Variables) -> Cost:
    """Return the cost of a call, without weights if they are read together with those of the call before."""
    return replace(cost, weight_reads=0, packed_weight_bytes=0) if values.get(JOINED) else cost


@dataclass(frozen=True, slots=True)
class ExpertsRead:
    """Bounds on the experts of a layer that one pass reads; the tokens decide the number.

    `fewest` are read if all tokens choose the same experts, `most` if they choose as many different ones as they can.
    Closed forms are evaluated with `most`.
    """

    fewest: int
    most: int


@dataclass(frozen=True, slots=True)
class ModelForm(Generic[Architecture]):
    """The closed form of what the model needs in a stage; for the fields, see `Stage`."""

    variables: Mapping[str, str]
    calls: Callable[[Architecture, Workload], list[Variables]]
    cost: Callable[[Architecture, Variables], Cost]
    working_set: Callable[[Architecture, Variables], int]
    bends: Callable[[Architecture, Workload], tuple[int, ...]] = lambda architecture, workload: ()
    adapter: Callable[[Architecture, Variables, Adapter], Cost] | None = None
    generation_pass: GenerationPass | None = None


@dataclass(frozen=True, slots=True)
class Stage(Generic[Architecture]):
    """A named part of a model.

    Its closed form says what transformers executes. What the model's mathematics needs can be less, see `needed`.

    Attributes
    ----------
    name, title : str
        Name in reports and metrics, and description in a few words.
    modules : tuple of str
        Modules that run in it, none inside another.
    owns : tuple of str
        Modules whose parameters belong to it. Each parameter of a model belongs to at most one stage.
    parameters : callable
        Parameters, by closed form if there is one.
    run : callable
        Runs the stage's own modules on inputs of a workload's shapes, see `Runner`.
    variables : mapping
        Variables of the closed form, with their meanings.
    calls : callable
        Variables of each call that a workload makes. A stage may be called for several groups of views.
    cost : callable or None
        Cost of one call from its variables, by additions and products only: symbols and arrays pass through.
        None without a closed form: the stage is counted by running it.
    working_set : callable or None
        Elements that the most demanding operator of one call reads and writes, without weights and cached tokens: a
        lower bound on what is in memory at once. None without a closed form.
    whole_pass : str
        The pass of the whole model in which the stage runs: ``forward`` or ``decode``.
    experts : callable or None
        Experts that one pass of a workload can read. Weight reads of the closed form are linear in `EXPERTS_READ`.
    adapter : callable or None
        Cost of a LoRA adapter alone in one call from its variables; None if no layer can take an adapter.
    bends : callable
        Of ``decode``: contexts at which the growth of a step's cost changes, such as the length of a window. Between
        them the cost grows by the same amount each step.
    generation_pass : callable or None
        Of ``prefill``: the cost of a later pass over several new tokens, such as drafted ones.
    model : ModelForm or None
        The closed form of what the model needs, where transformers executes other work; None: it is the same.
    execution : callable
        Clauses after "transformers" that say why it executes other work; for some sizes and a workload.
    """

    name: str
    title: str
    modules: tuple[str, ...]
    owns: tuple[str, ...]
    parameters: Callable[[Architecture], StageParameters]
    run: Runner
    variables: Mapping[str, str] = field(default_factory=dict)
    calls: Callable[[Architecture, Workload], list[Variables]] = lambda architecture, workload: []
    cost: Callable[[Architecture, Variables], Cost] | None = None
    working_set: Callable[[Architecture, Variables], int] | None = None
    whole_pass: str = "forward"
    experts: Callable[[Architecture, Workload], ExpertsRead] | None = None
    adapter: Callable[[Architecture, Variables, Adapter], Cost] | None = None
    bends: Callable[[Architecture, Workload], tuple[int, ...]] = lambda architecture, workload: ()
    generation_pass: GenerationPass | None = None
    model: ModelForm[Architecture] | None = None
    execution: Callable[[Architecture, Workload], tuple[str, ...]] = lambda architecture, workload: ()

    @property
    def needed(self) -> Form[Architecture]:
        """The closed form of what the model needs."""
        return self if self.model is None else self.model


#: A closed form: what transformers executes in a stage, or what the model needs.
Form = Stage[Architecture] | ModelForm[Architecture]


@dataclass(frozen=True, slots=True)
class Note:
    """A note on numbers that holds only for some requests; `applies` decides by decoder and workload."""

    text: str
    applies: Callable[[Any, Workload], bool]

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Family(Generic[Architecture]):
    """Models of one kind.

    Attributes
    ----------
    model_types : tuple of str
        Types of configurations, or names of their classes. A configuration, the content of a ``config.json``, has one
        of them if it is of this family. Empty: `takes` alone decides.
    takes : callable
        Whether a configuration with one of these is of this family.
    architecture_from_config : callable
        Reads the sizes from a configuration, or raises `StagemeterError`; the second argument names its source.
    build : callable
        Builds the model from sizes and configuration, without weights, on the meta device and in bfloat16.
    shipped : mapping
        Configurations that come with the family, by the names of their models.
    stages : tuple of Stage
        In the order of a request.
    other_parameters : callable
        Parameters of the checkpoint that belong to no stage, by name.
    architecture_from_sizes : callable
        Builds an architecture from its sizes as plain data, the ``architecture`` of a report's closed form.
    whole_passes : mapping
        Passes of the whole model by name, see `Stage.whole_pass`.
    notes : tuple of str or Note
        Notes on its numbers, see `notes_on`.
    prompt_tokens : callable
        Length of a prompt, from the tokens of its page and of its text. An encoder-decoder encodes both; its prompt is
        what the decoder begins with.
    rules : callable or None
        Decides the views of pages by the settings of processors and of a request. None for models that read only text.
    modes : mapping
        Resolutions by name that a request can ask for; empty if the model's own processor decides the views.
    videos : bool
        Whether the rules also cover videos.
    quantized : callable or None
        Sizes of a model whose checkpoint is quantized. None if the layout of quantized checkpoints is unknown: their
        weights are then counted as not quantized.
    predictor : callable or None
        Modules for predicting further tokens beside the model, from a configuration, its source and quantization.
    tags : callable or None
        Tokens that the prompt has around a further page, besides its image tokens, from the sizes of the model and the
        page's views. None: a request has one page.
    pixels : callable or None
        Pixels of a picture's views at a workload, by the model's argument. None: a profile takes random numbers.
    """

    name: str
    title: str
    architecture_from_config: Callable[[Mapping[str, Any], str], Architecture]
    build: Callable[[Architecture, Mapping[str, Any]], Any]
    shipped: Mapping[str, Traversable]
    decoder: Callable[[Architecture], LanguageModel]
    stages: tuple[Stage[Architecture], ...]
    other_parameters: Callable[[Architecture], dict[str, int]]
    architecture_from_sizes: Callable[[Mapping[str, Any]], Architecture]
    whole_passes: Mapping[str, Runner]
    model_types: tuple[str, ...] = ()
    takes: Callable[[Mapping[str, Any]], bool] = lambda config: True
    notes: tuple[str | Note, ...] = ()
    prompt_tokens: Callable[[Architecture, int, int], int] = lambda architecture, image, text: image + text
    quantized: Callable[[Architecture, Quantization], Architecture] | None = None
    rules: Callable[[Architecture, ProcessorSettings], PageRules] | None = None
    modes: Mapping[str, Resolution] = field(default_factory=dict)
    videos: bool = False
    predictor: Callable[[Mapping[str, Any], str, Quantization | None], Any] | None = None
    tags: Callable[[Architecture, PageViews], int] | None = None
    pixels: Callable[[Any, Workload], Mapping[str, Any]] | None = None

    @property
    def reads_pages(self) -> bool:
        """Whether pictures of pages are part of its workloads; otherwise they are text alone."""
        return self.rules is not None

    @property
    def has_closed_forms(self) -> bool:
        """Whether every stage has a closed form."""
        return all(stage.cost is not None for stage in self.stages)

    def page_in_prompt(self, architecture: Architecture) -> bool:
        """Return whether a page's tokens are part of the prompt; an encoder-decoder's are not."""
        return self.prompt_tokens(architecture, 2, 0) > 1

    def notes_on(self, architecture: Architecture, workload: Workload) -> list[str]:
        """Return the notes on the numbers of a workload."""
        decoder = self.decoder(architecture)
        return [
            note if isinstance(note, str) else note.text
            for note in self.notes
            if isinstance(note, str) or note.applies(decoder, workload)
        ]

    def stage(self, name: str) -> Stage[Architecture]:
        """Return a stage by its name, or raise ValueError with the known names."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        known = ", ".join(stage.name for stage in self.stages)
        raise ValueError(f"unknown stage {name!r}; the stages of {self.name} are {known}")


def weight_bytes(family: Family[Any], architecture: Any, item_size: int) -> int:
    """Return the bytes of all weights as a checkpoint stores them; `item_size` is that of a weight not quantized."""
    quantized = family.decoder(architecture).quantized_weights()
    return quantized.checkpoint_bytes(all_parameters(family, architecture), item_size)


def bytes_read_of_weights(family: Family[Any], architecture: Any, item_size: int) -> int:
    """Return the bytes of the weights that some pass reads: a lower bound on what a device holds."""
    unused = sum(stage.parameters(architecture).unused for stage in family.stages)
    # What no pass reads is never quantized.
    return weight_bytes(family, architecture, item_size) - unused * item_size


def all_parameters(family: Family[Any], architecture: Any) -> int:
    """Return the parameters of a whole checkpoint by closed form."""
    stages = sum(stage.parameters(architecture).total for stage in family.stages)
    return stages + sum(family.other_parameters(architecture).values())

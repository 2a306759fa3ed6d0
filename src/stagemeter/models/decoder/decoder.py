"""Decoders made of layers: sizes, parameters and closed forms."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce

from stagemeter.core.cost import Cost
from stagemeter.core.weight_storage import QuantizedMatrix, QuantizedWeights, Storage
from stagemeter.core.workload import Workload
from stagemeter.models.blocks import NamedLinear, Operator, larger, repeated, smaller, sum_of, working_set
from stagemeter.models.decoder.attention import DecoderPass, GroupedQueryAttention, LatentAttention
from stagemeter.models.decoder.cross_attention import SourceAttention
from stagemeter.models.decoder.feed_forward import Experts, ExpertsBeside, GatedFeedForward
from stagemeter.models.decoder.gated_delta_net import GatedDeltaNet
from stagemeter.models.decoder.lightning import LightningAttention
from stagemeter.models.decoder.mamba2 import StateSpace
from stagemeter.models.decoder.per_layer_embeddings import PerLayerEmbedding, PerLayerInput
from stagemeter.models.decoder.shared_transformer import SharedTransformer
from stagemeter.models.family import ExpertsRead
from stagemeter.models.lora import Adapter
from stagemeter.models.sizes import Sizes, sizes_reader


@dataclass(frozen=True, slots=True)
class Layer:
    """Layers that are alike.

    Attributes
    ----------
    attention
        How tokens attend to one another, or what stands in its place.
    feed_forward : GatedFeedForward, Experts, ExpertsBeside or None
        What follows; None where nothing does.
    times : int
        How many such layers there are.
    norms : int
        Norms as wide as the model, of one layer.
    numbers : int
        Single numbers that a checkpoint holds of one layer, such as a factor of its result.
    per_layer_input : PerLayerInput or None
        What it takes of its token besides what the layer before hands it.
    """

    attention: (
        GroupedQueryAttention
        | LatentAttention
        | SourceAttention
        | GatedDeltaNet
        | LightningAttention
        | StateSpace
        | SharedTransformer
    )
    feed_forward: GatedFeedForward | Experts | ExpertsBeside | None
    times: int
    norms: int = 2
    numbers: int = 0
    per_layer_input: PerLayerInput | None = None

    @property
    def last_token_only(self) -> bool:
        """Whether it runs on no token of a prompt but the last."""
        return isinstance(self.attention, GroupedQueryAttention) and self.attention.shared

    @property
    def experts(self) -> Experts | None:
        """Its mixture of experts, if it has one."""
        kind = self.feed_forward
        return kind.routed if isinstance(kind, ExpertsBeside) else kind if isinstance(kind, Experts) else None

    def pass_of(self, of: DecoderPass) -> DecoderPass:
        """What a pass through the decoder is to it."""
        return replace(of, tokens=1, causal=False) if self.last_token_only and of.causal else of

    def linear_layers(self, hidden: int, of: DecoderPass) -> list[NamedLinear]:
        """Its linear layers in one pass; routers and experts are none."""
        of = self.pass_of(of)
        rows = of.batch * of.tokens
        return [
            *self.attention.linear_layers(hidden, of),
            *(self.feed_forward.linear_layers(hidden, rows) if self.feed_forward else []),
            *(self.per_layer_input.linear_layers(hidden, rows) if self.per_layer_input else []),
        ]

    def operators(self, hidden: int, of: DecoderPass) -> list[Cost]:
        """Costs of its operators in one pass."""
        of = self.pass_of(of)
        rows = of.batch * of.tokens
        own_input = self.per_layer_input.linear_layers(hidden, rows) if self.per_layer_input else []
        return [
            *self.attention.operators(hidden, of),
            *(self.feed_forward.operators(hidden, rows, of.experts_read) if self.feed_forward else []),
            *(layer.cost for layer in own_input),
        ]

    def stored_as(self, storage: Storage) -> Layer:
        """The same with its matrices stored as `storage` says."""
        return replace(
            self,
            attention=self.attention.stored_as(storage),
            feed_forward=self.feed_forward.stored_as(storage) if self.feed_forward else None,
            per_layer_input=self.per_layer_input.stored_as(storage) if self.per_layer_input else None,
        )

    def parameters(self, hidden: int, active: bool = False) -> int:
        """Parameters of one such layer: all of them, or those that one token uses."""
        own_input = self.per_layer_input.parameters(hidden) if self.per_layer_input else 0
        feed_forward = self.feed_forward.parameters(hidden, active) if self.feed_forward else 0
        return self.attention.parameters(hidden) + feed_forward + own_input + self.norms * hidden + self.numbers


@dataclass(frozen=True, slots=True)
class Decoder(Sizes):
    """A language model that generates text: embedding, layers, a norm and an output head.

    Attributes
    ----------
    hidden : int
        Width.
    vocabulary : int
        Tokens that the embedding and the output head know.
    max_positions : int
        Longest sequence that it was made for.
    layers : tuple of Layer
        The layers by kind; the order of kinds does not matter to what they cost.
    tied : bool
        Whether the output head's weights are the embedding's.
    head_quantized : QuantizedMatrix or None
        How the output head's matrix is stored, if it is in fewer bits than the rest.
    per_layer_embedding : PerLayerEmbedding or None
        What makes the inputs that layers take of their token, if they take any.
    other_tokens : int
        Tokens that the embedding knows besides, and the output head does not.
    shared_blocks : int
        Different transformers that layers with shared ones have between them.
    head_everywhere : bool
        Whether the output head runs on every position of a prompt, and not on the last alone.
    """

    hidden: int
    vocabulary: int
    max_positions: int
    layers: tuple[Layer, ...]
    tied: bool = False
    head_quantized: QuantizedMatrix | None = None
    per_layer_embedding: PerLayerEmbedding | None = None
    other_tokens: int = 0
    shared_blocks: int = 0
    head_everywhere: bool = False

    def written(self, batch: int, tokens: int) -> int:
        """Positions that the output head runs on in a pass of some tokens of each sequence."""
        return batch * (tokens if self.head_everywhere else 1)

    @property
    def source(self) -> int:
        """Tokens of a source that some layers attend to; 0 where none does."""
        return max(
            layer.attention.source if isinstance(layer.attention, SourceAttention) else 0 for layer in self.layers
        )

    @property
    def window(self) -> int:
        """Tokens that a token attends to at most in layers that limit them; 0 where no layer does."""
        return max(layer.attention.window for layer in self.layers)

    def window_of(self, workload: Workload) -> int:
        """Tokens that a token of a request attends to at most where a window limits them; 0 where none does."""
        kept = any(layer.attention.keeps_prompt for layer in self.layers)
        return self.window + workload.prompt_tokens * kept if self.window else 0

    def windowed(self, workload: Workload) -> int:
        """Tokens that a decode step attends to in layers with a window, where others attend to the whole context."""
        return smaller(workload.decode_context, self.window_of(workload)) if self.window else workload.decode_context

    def prefill_variables(self, tokens: int) -> dict[str, int]:
        """Variables that its layers add to a prefill of some tokens, see `DecoderPass`."""
        added: dict[str, int] = {}
        for layer in self.layers:
            added |= layer.attention.prefill_variables(tokens)
        return added

    def experts_read(self, tokens: int) -> ExpertsRead:
        """How many experts of a layer some tokens can touch; none where there are no experts."""
        kinds = [layer.experts for layer in self.layers if layer.experts and not layer.experts.every_one]
        if not kinds:
            return ExpertsRead(0, 0)
        most = reduce(larger, (smaller(kind.experts, tokens * kind.experts_per_token) for kind in kinds))
        return ExpertsRead(fewest=max(kind.experts_per_token for kind in kinds), most=most)

    def cached_elements(self, batch: int, tokens: int, prompt: int = 0) -> int:
        """Elements of the key-value cache that holds some tokens of each sequence, of which `prompt` are the prompt."""
        elements = 0
        for layer in self.layers:
            # A window is full with one token less than it spans: the next one takes the last place.
            limit = layer.attention.window - 1 + prompt * layer.attention.keeps_prompt
            held = smaller(tokens, limit) if layer.attention.window else tokens
            elements += layer.times * layer.attention.cached_elements(batch, held)
        return elements

    def cache_of(self, workload: Workload, tokens: int) -> int:
        """Elements of the cache of a workload's sequences when they have some tokens."""
        return self.cached_elements(workload.batch_size, tokens, workload.prompt_tokens)

    def stored_as(self, storage: Storage, outside: Storage) -> Decoder:
        """The same with the matrices of its layers stored as `storage` says, and those of other modules as `outside`.

        A head that shares the embedding's matrix is stored as that is.
        """
        embedding = self.per_layer_embedding
        return replace(
            self,
            layers=tuple(layer.stored_as(storage) for layer in self.layers),
            head_quantized=None if self.tied else outside("lm_head"),
            per_layer_embedding=embedding and replace(embedding, quantized=outside(embedding.projection(1, 1).name)),
        )

    def quantized_weights(self) -> QuantizedWeights:
        """Weights that are stored in fewer bits: what a pass that uses all experts reads of them."""
        experts = max((layer.experts.experts for layer in self.layers if layer.experts), default=0)
        whole = DecoderPass(1, 1, 1, 1, experts, causal=False)
        plain = self.stored_as(lambda *modules: None, lambda *modules: None)
        mine, all_plain = (pass_cost(decoder, whole) + _read_again(decoder, whole) * -1 for decoder in (self, plain))
        return QuantizedWeights(all_plain.weight_reads - mine.weight_reads, mine.packed_weight_bytes)


#: Longest sequence of a model that has no limit.
ENDLESS = 1 << 62

#: Builds a decoder from its sizes as plain data.
decoder_from_sizes = sizes_reader(Decoder)


def layer_operators(decoder: Decoder, of: DecoderPass) -> list[Operator]:
    """Operators of one pass through the layers; norms, rotations and softmax are elementwise and not counted."""
    operators: list[Operator] = [(layer.cost, 1) for layer in _outside_of_layers(decoder, of)]
    for layer in decoder.layers:
        operators += repeated(layer.operators(decoder.hidden, of), layer.times)
    return operators


def _read_again(decoder: Decoder, of: DecoderPass) -> Cost:
    """What a pass does with weights that an earlier layer had already."""
    return sum_of(
        (linear.cost, layer.times - decoder.shared_blocks)
        for layer in decoder.layers
        if isinstance(layer.attention, SharedTransformer)
        for linear in layer.attention.shared_layers(decoder.hidden, of)
    )


def _outside_of_layers(decoder: Decoder, of: DecoderPass) -> list[NamedLinear]:
    """Linear layers that run once for all layers."""
    embedding = decoder.per_layer_embedding
    return [embedding.projection(decoder.hidden, of.batch * of.tokens)] if embedding else []


def head_operator(decoder: Decoder, positions: int) -> Operator:
    """The output head at some positions; generating needs one position per sequence and pass."""
    return _head("", decoder, positions).cost, 1


def _head(name: str, decoder: Decoder, positions: int) -> NamedLinear:
    return NamedLinear(name, positions, decoder.hidden, decoder.vocabulary, quantized=decoder.head_quantized)


def adapter_cost(decoder: Decoder, of: DecoderPass, adapter: Adapter, module: str, head: str) -> Cost:
    """Cost of a low-rank adapter in one pass through the layers and the output head, apart from that of the layers.

    Parameters
    ----------
    decoder : Decoder
        Sizes.
    of : DecoderPass
        The pass.
    adapter : Adapter
        The adapter.
    module, head : str
        Names of the modules that hold the layers, and of the output head.

    Raises
    ------
    StagemeterError
        If it stands beside no layer, or beside some of those that are alike.
    """
    indices = range(sum(layer.times for layer in decoder.layers))
    known: list[str] = []
    taken: list[Operator] = []
    for linear in _outside_of_layers(decoder, of):
        known.append(linear.name)
        if adapter.takes(f"{module}.{linear.name}", head):
            taken.append((linear.adapter(adapter.rank), 1))
    for layer in decoder.layers:
        for linear in layer.linear_layers(decoder.hidden, of):
            known.append(linear.name)
            if adapter.takes_part([f"{module}.layers.{index}.{linear.name}" for index in indices], head):
                taken.append((linear.adapter(adapter.rank), layer.times))
    if adapter.takes(head, head):
        taken.append((_head(head, decoder, decoder.written(of.batch, of.tokens)).adapter(adapter.rank), 1))
    if not taken:
        raise adapter.no_target([*known, head])
    return sum_of(taken)


def pass_cost(decoder: Decoder, of: DecoderPass) -> Cost:
    """Cost of one pass through the layers, and of the output head."""
    return sum_of([*layer_operators(decoder, of), head_operator(decoder, decoder.written(of.batch, of.tokens))])


def pass_working_set(decoder: Decoder, of: DecoderPass) -> int:
    """Elements that the most demanding operator of a pass reads and writes, see `blocks.working_set`."""
    return working_set([*layer_operators(decoder, of), head_operator(decoder, decoder.written(of.batch, of.tokens))])


def embedding_parameters(decoder: Decoder) -> int:
    """Parameters of the token embedding."""
    return (decoder.vocabulary + decoder.other_tokens) * decoder.hidden


def head_parameters(decoder: Decoder) -> int:
    """Parameters of the output head; none where they are the embedding's."""
    return 0 if decoder.tied else decoder.vocabulary * decoder.hidden


def layer_parameters(decoder: Decoder, active: bool = False) -> int:
    """Parameters of the layers and the last norm: all of them, or those that one token uses."""
    layers = sum(layer.times * layer.parameters(decoder.hidden, active) for layer in decoder.layers)
    embedding = decoder.per_layer_embedding
    own_inputs = embedding.parameters(decoder.hidden) if embedding else 0
    shared = [layer.attention for layer in decoder.layers if isinstance(layer.attention, SharedTransformer)]
    blocks = sum(decoder.shared_blocks * kind.shared_parameters(decoder.hidden) for kind in shared)
    return layers + blocks + decoder.hidden + own_inputs

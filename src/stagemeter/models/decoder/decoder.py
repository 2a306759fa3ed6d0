"""Decoders made of layers: sizes, parameters and closed forms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

from stagemeter.core.cost import Cost, total
from stagemeter.core.weight_storage import QuantizedMatrix, QuantizedWeights, Storage
from stagemeter.core.workload import Workload
from stagemeter.models.blocks import NamedLinear, Operator, larger, repeated, smaller, sum_of, working_set
from stagemeter.models.decoder.feed_forward import Experts, FeedForward
from stagemeter.models.decoder.mixer import DecoderPass, Held, Mixer, Shape, executed_pass
from stagemeter.models.decoder.per_layer_embeddings import PerLayerEmbedding, PerLayerInput
from stagemeter.models.decoder.visibility import Limit
from stagemeter.models.family import ExpertsRead
from stagemeter.models.lora import Adapter
from stagemeter.models.settings import Settings
from stagemeter.models.sizes import Sizes, later, sizes_reader

#: Longest sequence of a model without a limit.
ENDLESS = 1 << 62


@dataclass(frozen=True, slots=True)
class Layer:
    """A group of equal layers; `times` is their number.

    Attributes
    ----------
    norms : int
        Norms per layer, each as wide as the model.
    numbers : int
        Scalar parameters per layer, such as a factor of its result.
    per_layer_input : PerLayerInput or None
        The layer's own input from each token, besides the previous layer's output.
    """

    attention: Mixer
    feed_forward: FeedForward | None
    times: int
    norms: int = 2
    numbers: int = later(0)
    per_layer_input: PerLayerInput | None = later(None)

    @property
    def experts(self) -> Experts | None:
        """The mixture of experts, if the layer has one."""
        return self.feed_forward.mixture if self.feed_forward else None

    def pass_of(self, of: DecoderPass) -> DecoderPass:
        """Return the part of a decoder's pass that the layer runs."""
        return of.of_last if self.attention.last_token_only and of.prefill and of.scored == 1 else of

    def linear_layers(self, hidden: int, of: DecoderPass) -> list[NamedLinear]:
        """Return the linear layers of one pass, without routers and experts."""
        of = self.pass_of(of)
        rows = of.batch * of.tokens
        return [
            *self.attention.linear_layers(hidden, of),
            *(self.feed_forward.linear_layers(hidden, rows) if self.feed_forward else []),
            *(self.per_layer_input.linear_layers(hidden, rows) if self.per_layer_input else []),
        ]

    def operators(self, hidden: int, of: DecoderPass) -> list[Cost]:
        """Return the costs of the operators of one pass."""
        return self.operators_of(hidden, self.pass_of(of))

    def operators_of(self, hidden: int, of: DecoderPass) -> list[Cost]:
        """Return the costs of the operators of the part of a pass that the layer runs."""
        rows = of.batch * of.tokens
        own_input = self.per_layer_input.linear_layers(hidden, rows) if self.per_layer_input else []
        return [
            *self.attention.operators(hidden, of),
            *self.network_operators(hidden, of),
            *(layer.cost for layer in own_input),
        ]

    def network_operators(self, hidden: int, of: DecoderPass) -> list[Cost]:
        """Return the costs of the feed-forward network in one pass."""
        network = self.feed_forward
        return network.operators(hidden, of.batch * of.tokens, of.experts_read, of.model) if network else []

    def stored_as(self, storage: Storage) -> Layer:
        """Return a copy whose matrices are stored as `storage` says."""
        return replace(
            self,
            attention=self.attention.stored_as(storage),
            feed_forward=self.feed_forward.stored_as(storage) if self.feed_forward else None,
            per_layer_input=self.per_layer_input.stored_as(storage) if self.per_layer_input else None,
        )

    def parameters(self, hidden: int, active: bool = False) -> int:
        """Return the parameters of one layer: all, or those that one token uses."""
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
    vocabulary, other_tokens : int
        Tokens of embedding and output head, and tokens that only the embedding has.
    max_positions : int
        Longest sequence that the model was made for.
    layers : tuple of Layer
        Groups of equal layers; the order does not change the cost.
    tied : bool
        Whether the output head shares the embedding's weights.
    head_quantized : QuantizedMatrix or None
        Storage of the output head's matrix; None if it is not quantized.
    per_layer_embedding : PerLayerEmbedding or None
        Source of the layers' own inputs, if they have any.
    shared_blocks : int
        Number of different shared transformers, see `SharedTransformer`.
    head_everywhere : bool
        Whether the output head runs on every position of a prompt, and not only on the last.
    other_parameters : int
        Parameters besides layers, embedding, last norm and head, such as learned positions.
    """

    hidden: int
    vocabulary: int
    max_positions: int
    layers: tuple[Layer, ...]
    tied: bool = False
    head_quantized: QuantizedMatrix | None = later(None)
    per_layer_embedding: PerLayerEmbedding | None = later(None)
    other_tokens: int = later(0)
    shared_blocks: int = later(0)
    head_everywhere: bool = later(False)
    other_parameters: int = later(0)

    @classmethod
    def read(cls, settings: Settings, layers: Sequence[Layer], tied: bool = False) -> Decoder:
        """Read sizes and put equal layers together; `tied` is the default of ``tie_word_embeddings``.

        The settings need ``hidden_size``, ``vocab_size`` and ``max_position_embeddings``. `layers` holds one per layer
        or group.
        """
        times: Counter[Layer] = Counter()
        for layer in layers:
            times[replace(layer, times=1)] += layer.times
        return cls(
            hidden=settings.whole("hidden_size"),
            vocabulary=settings.whole("vocab_size"),
            max_positions=settings.whole("max_position_embeddings", most=ENDLESS),
            layers=tuple(replace(layer, times=count) for layer, count in times.items()),
            tied=settings.flag("tie_word_embeddings", tied),
        )

    @property
    def window(self) -> int:
        """The largest window of any layer in tokens; 0 if no layer has one."""
        return max(layer.attention.window for layer in self.layers)

    @property
    def limit(self) -> Limit:
        """The limit of the layers that have one, by the model's mathematics; it is the same for all."""
        limits = {limit for layer in self.layers if (limit := layer.attention.limit).tokens}
        if len(limits) > 1:
            raise ValueError(f"layers: they have {len(limits)} different limits on what a token attends to")
        return limits.pop() if limits else Limit()

    def window_of(self, workload: Workload) -> int:
        """Return the window at a workload in tokens, with the prompt if it is kept; 0 without a window."""
        kept = any(layer.attention.keeps_prompt for layer in self.layers)
        return self.window + workload.prompt_tokens * kept if self.window else 0

    def windowed(self, workload: Workload) -> int:
        """Return the tokens that a decode step attends to in layers with a window; the context without one."""
        return smaller(workload.decode_context, self.window_of(workload)) if self.window else workload.decode_context

    def windowed_past(self, workload: Workload) -> int:
        """Return the tokens before a prefill that the cache of layers with a window holds; all without one."""
        past = workload.past_tokens
        # The next token takes the last place of a window.
        return smaller(past, self.window_of(workload) - 1) if self.window else past

    def absorbed(self, past: int, visible: int) -> int:
        """Return 1 where latent attention absorbs its expansion for new tokens of a prompt; its layers are alike."""
        return reduce(larger, (layer.attention.absorbed(past, visible) for layer in self.layers))

    def prefill_variables(self, tokens: int, past: int = 0) -> dict[str, int]:
        """Return the variables that the layers add to a prefill, see `Mixer.prefill_variables`."""
        added: dict[str, int] = {}
        for layer in self.layers:
            added |= layer.attention.prefill_variables(tokens, past)
        return added

    def decoder_inputs(self, batch: int, tokens: int, cached: int) -> dict[str, Shape]:
        """Return the shapes of the module's inputs besides token embeddings and cache, by argument."""
        inputs: dict[str, Shape] = {}
        for layer in self.layers:
            inputs |= layer.attention.decoder_inputs(self.hidden, batch, tokens, cached)
        if self.per_layer_embedding is not None:
            shape = (batch, tokens, self.per_layer_embedding.layers, self.per_layer_embedding.width)
            inputs["per_layer_inputs"] = shape
        return inputs

    def experts_read(self, tokens: int) -> ExpertsRead:
        """Return bounds on the experts of a layer that some tokens use; zeros without experts."""
        kinds = [layer.experts for layer in self.layers if layer.experts]
        if not kinds:
            return ExpertsRead(0, 0)
        most = reduce(larger, (smaller(kind.experts, tokens * kind.experts_per_token) for kind in kinds))
        return ExpertsRead(fewest=max(kind.experts_per_token for kind in kinds), most=most)

    def encoder_tokens(self, workload: Workload) -> int:
        """Return the tokens of an encoder's output that each sequence of a workload attends to."""
        return reduce(larger, (layer.attention.encoder_tokens_of(workload) for layer in self.layers))

    def kv_cache_elements(self, workload: Workload, tokens: int) -> int:
        """Return the elements of the KV cache when each sequence of a workload has some tokens."""
        elements, encoder_tokens = 0, self.encoder_tokens(workload)
        for layer in self.layers:
            # The next token takes the last place of a window, so the cache holds one token less.
            limit = layer.attention.window - 1 + workload.prompt_tokens * layer.attention.keeps_prompt
            held = smaller(tokens, limit) if layer.attention.window else tokens
            elements += layer.times * layer.attention.cached_elements(
                self.hidden, Held(workload.batch_size, held, encoder_tokens)
            )
        return elements

    def stored_as(self, storage: Storage, outside: Storage) -> Decoder:
        """Return a copy with layers stored as `storage` says, and other modules as `outside` says.

        A tied output head is stored as the embedding is.
        """
        embedding = self.per_layer_embedding
        return replace(
            self,
            layers=tuple(layer.stored_as(storage) for layer in self.layers),
            head_quantized=None if self.tied else outside("lm_head"),
            per_layer_embedding=embedding and replace(embedding, quantized=outside(embedding.projection(1, 1).name)),
        )

    def quantized_weights(self) -> QuantizedWeights:
        """Return the quantized weights: those that a pass with all experts reads."""
        experts = max((layer.experts.experts for layer in self.layers if layer.experts), default=0)
        # A prefill of one token reads all weights.
        whole = executed_pass(1, 1, 1, experts, prefill=True, encoder_tokens=1, own=self.prefill_variables(1))
        plain = self.stored_as(lambda *modules: None, lambda *modules: None)
        mine, all_plain = (decoder.cost(whole) + decoder._read_again(whole) * -1 for decoder in (self, plain))
        return QuantizedWeights(all_plain.weight_reads - mine.weight_reads, mine.packed_weight_bytes)

    def _read_again(self, of: DecoderPass) -> Cost:
        """Return the cost of weights that an earlier layer of the same pass already read."""
        return sum_of(
            (linear.cost, layer.times - self.shared_blocks)
            for layer in self.layers
            for linear in layer.attention.shared_layers(self.hidden, of)
        )

    def head(self, of: DecoderPass, name: str = "") -> NamedLinear:
        """Return the output head in a pass; generating needs one position per sequence, verifying one per token."""
        positions = of.batch * (of.tokens if self.head_everywhere and not of.model else of.scored)
        return NamedLinear(name, positions, self.hidden, self.vocabulary, quantized=self.head_quantized)

    def _outside_of_layers(self, of: DecoderPass) -> list[NamedLinear]:
        """Return the linear layers that run once for all layers."""
        embedding = self.per_layer_embedding
        return [embedding.projection(self.hidden, of.batch * of.tokens)] if embedding else []

    def layer_operators(self, of: DecoderPass) -> list[Operator]:
        """Return the operators of one pass through the layers; norms, rotations and softmax are not counted."""
        operators: list[Operator] = [(layer.cost, 1) for layer in self._outside_of_layers(of)]
        for layer in self.layers:
            # Layers that run on the last token alone serve what it yields.
            runs = of.yields if layer.attention.last_token_only else 1
            operators += repeated(layer.operators(self.hidden, of), layer.times * runs)
        return operators

    def cost(self, of: DecoderPass) -> Cost:
        """Return the cost of one pass through layers and output head."""
        return sum_of([*self.layer_operators(of), (self.head(of).cost, of.yields)])

    def execution(self, executed: DecoderPass, needed: DecoderPass) -> tuple[str, ...]:
        """Return why transformers executes other work than the model needs in a pass, as clauses after its name."""
        clauses = []
        for layer in self.layers:
            passes = [layer.pass_of(of) for of in (executed, needed)]
            mixing = {total(layer.attention.operators(self.hidden, of)).macs for of in passes}
            network = {total(layer.network_operators(self.hidden, of)).macs for of in passes}
            clauses += [layer.attention.execution(needed)] if len(mixing) > 1 else []
            clauses += [layer.feed_forward.EXECUTION] if layer.feed_forward and len(network) > 1 else []
        if self.head(executed) != self.head(needed):
            clauses.append("runs the output head on every position of the prompt")
        if executed.yields != needed.yields:
            clauses.append("runs the output head after each chunk of the prompt")
        return tuple(dict.fromkeys(clauses))

    def working_set(self, of: DecoderPass) -> int:
        """Return the elements that the most demanding operator holds, see `blocks.working_set`."""
        return working_set([*self.layer_operators(of), (self.head(of).cost, 1)])

    def lora_cost(self, of: DecoderPass, adapter: Adapter, module: str, head: str) -> Cost:
        """Return the cost of a LoRA adapter alone in one pass, or raise StagemeterError if it fits no layers.

        `module` and `head` name the modules of the layers and of the output head.
        """
        indices = range(sum(layer.times for layer in self.layers))
        output = self.head(of, head)
        outside = self._outside_of_layers(of)
        inside = [(linear, layer.times) for layer in self.layers for linear in layer.linear_layers(self.hidden, of)]
        taken = [(linear, 1) for linear in outside if adapter.takes(f"{module}.{linear.name}", head)]
        taken += [
            (linear, times)
            for linear, times in inside
            if adapter.takes_part([f"{module}.layers.{index}.{linear.name}" for index in indices], head)
        ]
        taken += [(output, 1)] if adapter.takes(head, head) else []
        if of.prefill and not taken:
            # A prefill runs every layer; a decode step makes no keys and values of an encoder's output.
            raise adapter.no_target([*(linear.name for linear in (*outside, *(found for found, _ in inside))), head])
        return sum_of((linear.adapter(adapter.rank), times) for linear, times in taken)

    def embedding_parameters(self) -> int:
        """Return the parameters of the token embedding."""
        return (self.vocabulary + self.other_tokens) * self.hidden

    def head_parameters(self) -> int:
        """Return the parameters of the output head; 0 if it is tied."""
        return 0 if self.tied else self.vocabulary * self.hidden

    def layer_parameters(self, active: bool = False) -> int:
        """Return the parameters of layers and last norm: all, or those that one token uses."""
        layers = sum(layer.times * layer.parameters(self.hidden, active) for layer in self.layers)
        embedding = self.per_layer_embedding.parameters(self.hidden) if self.per_layer_embedding else 0
        shared = sum(layer.attention.shared_parameters(self.hidden) for layer in self.layers)
        return layers + self.shared_blocks * shared + self.hidden + embedding + self.other_parameters


#: Builds a decoder from its sizes as plain data.
decoder_from_sizes = sizes_reader(Decoder)

"""transformers' models with no more products than their mathematics needs, counted by torch's own counter.

The replacements give the same numbers as transformers' modules. Attention multiplies each query with the keys that the
mask shows it and no others, a token meets its own experts alone, a recurrence runs token by token, and latent attention
absorbs the expansion of keys and values in steps with a cache. They serve tests as a count of model FLOPs that does not
come from closed forms.
"""

import importlib
from contextlib import contextmanager
from functools import partial
from unittest import mock

import torch
from torch.nn import functional
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.models.deepseek_v3 import modeling_deepseek_v3
from transformers.models.deepseek_v32 import modeling_deepseek_v32
from transformers.models.llama4 import modeling_llama4
from transformers.models.minimax import modeling_minimax

VISIBLE = "visible"
#: New tokens of the pass that runs, and those before it; a convolution's inputs do not tell them apart.
_PASS = {"tokens": 0, "past": 0}
#: Modeling files that have functions of a recurrence, and convolve tokens before it.
RECURRENT = ("qwen3_next", "qwen3_5", "qwen3_5_moe")
STATE_SPACE = ("mamba2", "zamba2")


def visible_attention(module, query, key, value, attention_mask, scaling=None, softcap=None, indices=None, **_):
    """Attend from each query to the keys that the mask shows, of those that an indexer chose if one did.

    Arguments and results are those of transformers.
    """
    batch, heads, queries, width = query.shape
    scaling = width**-0.5 if scaling is None else scaling
    key, value = (tensor.repeat_interleave(heads // tensor.shape[1], dim=1) for tensor in (key, value))
    out = query.new_zeros(batch, queries, heads, value.shape[-1])
    for row in range(batch):
        for place in range(queries):
            seen = shown(attention_mask, row, place, key.shape[2], indices)
            scores = query[row, :, place, None] @ key[row][:, seen].mT * scaling
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            sinks = getattr(module, "sinks", None)
            beside = scores if sinks is None else torch.cat([scores, sinks[:, None, None]], dim=-1)
            weights = beside.softmax(-1, dtype=torch.float32).to(query.dtype)[..., : scores.shape[-1]]
            out[row, place] = (weights @ value[row][:, seen])[:, 0]
    return out, None


def shown(mask, row, place, keys, chosen=None):
    """Return the places of the keys that a mask shows to one query, of the chosen ones if some were chosen."""
    # MiniMax's mask of a step has one column, which stands for all keys.
    seen = torch.arange(keys) if mask is None else (mask[row, 0, place, :keys].expand(keys) == 0).nonzero()[:, 0]
    return seen if chosen is None else seen[torch.isin(seen, chosen[row, place].long())]


def shown_unordered(mask, row, place, keys, chosen=None):
    """Return places of keys as many as a query can have were it not for the order of tokens, as `shown` does."""
    see = torch.ones(1, keys) if mask is None else (mask[row, 0, :, :keys].expand(-1, keys) == 0).float()
    seen = see.sum(dim=1)
    # A query that sees fewer keys than the one before begins a chunk, in which all see each other.
    chunk = torch.cat([torch.zeros(1), (seen[1:] < seen[:-1]).cumsum(0).float()])
    number = int(seen[chunk == chunk[place if len(see) > 1 else 0]].max())
    return torch.arange(number if chosen is None else min(number, chosen.shape[-1]))


def absorbed(module, hidden_states, position_embeddings, attention_mask, past_key_values, **kwargs):
    """Run latent attention on the compressed vectors of the cache, with an indexer's choice where there is one."""
    batch, length = hidden_states.shape[:-1]
    heads, rank, plain = module.num_heads, module.kv_lora_rank, module.qk_nope_head_dim
    indexer = getattr(module, "indexer", None)
    compressed_query = module.q_a_layernorm(module.q_a_proj(hidden_states)) if module.q_lora_rank else None
    queries = module.q_proj(hidden_states) if compressed_query is None else module.q_b_proj(compressed_query)
    queries = queries.view(batch, length, heads, -1).transpose(1, 2)
    query, rotated_query = queries.split([plain, module.qk_rope_head_dim], dim=-1)
    latent, rotated = module.kv_a_proj_with_mqa(hidden_states).split([rank, module.qk_rope_head_dim], dim=-1)
    latent = module.kv_a_layernorm(latent)[:, None]
    turn = (
        modeling_deepseek_v3.apply_rotary_pos_emb_interleave
        if getattr(module.config, "rope_interleave", True)
        else modeling_deepseek_v3.apply_rotary_pos_emb
    )
    rotated_query, rotated = turn(rotated_query, rotated[:, None], *position_embeddings)
    latent, rotated = past_key_values.update(latent, rotated, module.layer_idx)
    to_key, to_value = module.kv_b_proj.weight.view(heads, -1, rank).split([plain, module.v_head_dim], dim=1)
    # A LoRA adapter adds of_rank @ to_rank to the matrix, and is absorbed as it is.
    adapter = getattr(module.kv_b_proj, "stagemeter_adapter", None)
    to_rank, of_rank = (None, None) if adapter is None else (layer.weight for layer in adapter)
    parts = (
        (None, None) if adapter is None else of_rank.view(heads, -1, len(to_rank)).split([plain, module.v_head_dim], 1)
    )
    # One product per head and token takes the query into the space of the compressed vectors.
    absorbed_query = query @ to_key if adapter is None else query @ to_key + query @ parts[0] @ to_rank
    absorbed_query = torch.cat([absorbed_query, rotated_query], dim=-1)
    chosen = None
    if indexer is not None:
        mask = attention_mask[:, 0] if attention_mask is not None else query.new_zeros(batch, length, latent.shape[2])
        arguments = (hidden_states, compressed_query, position_embeddings, mask, None)
        chosen = indexer(*arguments, past_key_values=past_key_values)
    out = query.new_zeros(batch, length, heads, module.v_head_dim)
    for row in range(batch):
        for place in range(length):
            seen = shown(attention_mask, row, place, latent.shape[2], chosen)
            keys = torch.cat([latent[row, 0, seen], rotated[row, 0, seen]], dim=-1)
            scores = absorbed_query[row, :, place] @ keys.mT * module.scaling
            context = scores.softmax(-1, dtype=torch.float32).to(query.dtype) @ latent[row, 0, seen]
            out[row, place] = (context[:, None] @ to_value.mT)[:, 0]
            if adapter is not None:
                out[row, place] += (context[:, None] @ to_rank.mT @ parts[1].mT)[:, 0]
    return module.o_proj(out.reshape(batch, length, -1)), None


def least_latent(plain_forward, absorb_prompt=False):
    """Return a forward of latent attention that absorbs the expansion in steps, and in a prompt only if told."""

    def forward(module, hidden_states, position_embeddings, attention_mask, past_key_values=None, **kwargs):
        arguments = (module, hidden_states, position_embeddings, attention_mask, past_key_values)
        step = hidden_states.shape[1] == 1 and past_key_values.get_seq_length(module.layer_idx)
        absorb = absorb_prompt or step
        return absorbed(*arguments, **kwargs) if absorb else plain_forward(*arguments, **kwargs)

    return forward


def visible_choice(module, hidden_states, compressed_query, position_embeddings, mask, position_ids, past_key_values):
    """Choose tokens as an indexer does, from scores of the tokens that the mask shows and no others."""
    batch, length = hidden_states.shape[:2]
    rotary = module.qk_rope_head_dim
    query = module.wq_b(compressed_query).view(batch, length, module.n_heads, module.head_dim)
    key = module.k_norm(module.wk(hidden_states))[:, :, None]
    turned = modeling_deepseek_v32.apply_rotary_pos_emb(
        query[..., :rotary], key[..., :rotary], *position_embeddings, unsqueeze_dim=2
    )
    query, key = (torch.cat([part, whole[..., rotary:]], -1) for part, whole in zip(turned, (query, key), strict=True))
    key = past_key_values.update_indexer(key[:, :, 0], module.layer_idx)
    weights = module.weights_proj(hidden_states)
    scores = key.new_full((batch, length, key.shape[1]), float("-inf"))
    for row in range(batch):
        for place in range(length):
            seen = shown(mask[:, None], row, place, key.shape[1])
            of_heads = functional.relu(query[row, place] @ key[row, seen].mT)
            scores[row, place, seen] = (weights[row, place, None] @ of_heads)[0]
    return scores.topk(min(module.index_topk, key.shape[1]), dim=-1).indices


def routed_experts(module, hidden_states):
    """Run the experts of Llama 4 on the tokens that the router gives them."""
    rows = hidden_states.reshape(-1, module.hidden_dim)
    scores, logits = module.router(rows)
    out = module.shared_expert(rows)
    for number in range(module.num_experts):
        tokens = (scores[:, number] > 0).nonzero()[:, 0]
        if len(tokens):
            gate, up = (rows[tokens] * scores[tokens, number, None] @ module.experts.gate_up_proj[number]).chunk(2, -1)
            out[tokens] += (up * module.experts.act_fn(gate)) @ module.experts.down_proj[number]
    return out, logits


def delta_rule(query, key, value, g, beta, initial_state=None, output_final_state=False, **_):
    """Run the gated delta rule token by token: read the state with the key, write it, read it with the query."""
    heads = value.shape[2]
    query, key = (tensor.repeat_interleave(heads // tensor.shape[2], dim=2) for tensor in (query, key))
    query, key = (functional.normalize(tensor.float(), dim=-1, eps=1e-6) for tensor in (query, key))
    query, value = query / query.shape[-1] ** 0.5, value.float()
    batch, length = key.shape[:2]
    state = key.new_zeros(batch, heads, key.shape[-1], value.shape[-1])
    state = state if initial_state is None else initial_state.to(value)
    out = torch.zeros_like(value)
    for place in range(length):
        state = state * g[:, place].exp()[..., None, None]
        read = key[:, place, :, None] @ state
        change = (value[:, place, :, None] - read) * beta[:, place, :, None, None]
        state = state + key[:, place, :, :, None] @ change
        out[:, place] = (query[:, place, :, None] @ state)[:, :, 0]
    return out.to(query.dtype), state if output_final_state else None


def state_space_scan(
    hidden_states, dt, A, B, C, chunk_size, D=None, dt_bias=None, initial_states=None, dt_softplus=False,  # noqa: N803
    dt_limit=(0.0, float("inf")), return_final_states=False, **_,
):  # fmt: skip
    """Run a state-space model token by token: write the state, and read it."""
    batch, length, heads, width = hidden_states.shape
    dt = dt if dt_bias is None else dt + dt_bias
    dt = (functional.softplus(dt) if dt_softplus else dt).clamp(*dt_limit)
    into, out_of = (tensor.float().repeat_interleave(heads // tensor.shape[2], dim=2) for tensor in (B, C))
    state = into.new_zeros(batch, heads, width, into.shape[-1])
    state = state if initial_states is None else initial_states.to(state)
    out = torch.zeros_like(hidden_states)
    for place in range(length):
        step = dt[:, place, :, None]
        change = (hidden_states[:, place] * step)[..., None] @ into[:, place, :, None]
        state = state * (A * dt[:, place]).exp()[..., None, None] + change
        out[:, place] = (state @ out_of[:, place, :, :, None])[..., 0]
    out = out if D is None else out + hidden_states * D[:, None]
    return (out, state) if return_final_states else out


def state_space_step(state, hidden_states, dt, A, B, C, D=None, dt_bias=None, dt_softplus=False, z=None, **_):  # noqa: N803
    """Run one token through a state-space model, and keep its state."""
    sizes = {"D": None if D is None else D[:, 0], "dt_bias": None if dt_bias is None else dt_bias[:, 0]}
    # Factors come once per element of a head.
    out, kept = state_space_scan(
        hidden_states[:, None], dt[:, None, :, 0], A[:, 0, 0], B[:, None], C[:, None], 1, **sizes,
        initial_states=state, dt_softplus=dt_softplus, return_final_states=True,
    )  # fmt: skip
    state.copy_(kept)
    return out[:, 0]


def convolve(hidden_states, weight, bias=None, activation=None, zeros=True, **_):
    """Convolve the tokens of a prompt: one position per token, with zeros before the first or those that are kept."""
    if _PASS["past"] and zeros:
        hidden_states, zeros = hidden_states[:, :, -(_PASS["tokens"] + weight.shape[-1] - 1) :], False
    # transformers fills a prompt that is shorter than the kernel with zeros, and drops their outputs.
    first = int(hidden_states.ne(0).any(dim=1).any(dim=0).nonzero()[0]) if zeros else 0
    hidden_states = hidden_states[:, :, first:]
    inputs = functional.pad(hidden_states, ((weight.shape[-1] - 1) * zeros, 0))
    out = functional.conv1d(inputs, weight[:, None], bias, groups=inputs.shape[1])
    return out if activation is None else functional.silu(out)


def convolve_step(hidden_states, conv_state, weight, bias=None, activation=None):
    """Convolve one new token after those that are kept."""
    inputs = torch.cat([conv_state, hidden_states], dim=-1)
    conv_state.copy_(inputs[:, :, -conv_state.shape[-1] :])
    return convolve(inputs[:, :, -weight.shape[-1] :], weight, bias, activation, zeros=False)


def begin_pass(tokens, past):
    """Tell the modules of the next pass its new tokens, and those before them."""
    _PASS.update(tokens=tokens, past=past)


def lightning(plain_forward):
    """Return a forward of lightning attention that runs a prompt token by token, from a state of zeros."""

    def forward(module, hidden_states, position_embeddings, attention_mask, past_key_values=None, **kwargs):
        if past_key_values.get_linear_cache(module.layer_idx) is None:
            width = module.head_dim
            zeros = hidden_states.new_zeros(len(hidden_states), module.num_attention_heads, width, width)
            past_key_values.set_linear_cache(module.layer_idx, zeros)
        return plain_forward(module, hidden_states, position_embeddings, attention_mask, past_key_values, **kwargs)

    return forward


@contextmanager
def least_work(absorb_prompt=False, unordered=False):
    """Replace what transformers' models run by no more than their mathematics needs; see `VISIBLE` for attention.

    Latent attention expands a prompt; with `absorb_prompt` it absorbs the expansion there, too. `unordered`: queries
    also meet keys that only the order of tokens hides, which counts what the dense convention does; numbers are wrong.
    """
    AttentionInterface.register(VISIBLE, visible_attention)
    AttentionMaskInterface.register(VISIBLE, eager_mask)
    latent = partial(least_latent, absorb_prompt=absorb_prompt)
    places = [
        (modeling_deepseek_v3.DeepseekV3Attention, "forward", latent),
        (modeling_deepseek_v32.DeepseekV32Attention, "forward", latent),
        (modeling_deepseek_v32.DeepseekV32Indexer, "forward", lambda plain: visible_choice),
        (modeling_minimax.MiniMaxLightningAttention, "forward", lightning),
        (modeling_llama4.Llama4TextMoe, "forward", lambda plain: routed_experts),
    ]
    functions = {
        "causal_conv1d_fn": convolve,
        "causal_conv1d_update": convolve_step,
        "torch_chunk_gated_delta_rule": delta_rule,
        "torch_recurrent_gated_delta_rule": delta_rule,
        "mamba2_chunk_scan": state_space_scan,
        "mamba2_selective_state_update": state_space_step,
    }
    modules = [
        importlib.import_module(f"transformers.models.{name}.modeling_{name}") for name in (*RECURRENT, *STATE_SPACE)
    ]
    patches = [mock.patch.object(owner, name, wrap(getattr(owner, name))) for owner, name, wrap in places]
    patches += [
        mock.patch.object(module, name, function)
        for module in modules
        for name, function in functions.items()
        if hasattr(module, name)
    ]
    patches += [mock.patch.dict(globals(), shown=shown_unordered)] if unordered else []
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()

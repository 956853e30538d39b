"""Intermediate results of a network, through forward hooks."""

from contextlib import contextmanager

import torch


def joined(output) -> torch.Tensor:
    """What a single block carries on: text tokens, then image tokens."""
    text, image = output
    return torch.cat([text, image], dim=1)


@contextmanager
def transformer_trace(transformer):
    """Collects, for one forward of a FluxTransformer2DModel, the results worth bisecting with, without the batch."""
    found, handles = {}, []

    def keep(module, name, pick=lambda output: output):
        def hook(_module, _inputs, output):
            found[name] = pick(output)[0].clone()

        handles.append(module.register_forward_hook(hook))

    keep(transformer.time_text_embed, "temb")
    keep(transformer.x_embedder, "img_in")
    keep(transformer.context_embedder, "txt_in")
    for i, block in enumerate(transformer.transformer_blocks):
        keep(block, f"double.{i}.txt", lambda output: output[0])
        keep(block, f"double.{i}.img", lambda output: output[1])
    for i, block in enumerate(transformer.single_transformer_blocks):
        keep(block, f"single.{i}", joined)
    keep(transformer.norm_out, "norm_out")
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def attention_trace():
    """Collects the probabilities of every attention that runs inside, as (logits, probabilities) of one layer each."""
    found, original = [], torch.nn.functional.scaled_dot_product_attention

    def spy(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **rest):
        logits = query @ key.transpose(-2, -1) * (scale if scale is not None else query.shape[-1] ** -0.5)
        if attn_mask is not None:
            logits = logits.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else logits + attn_mask
        if is_causal:
            logits = logits.masked_fill(torch.ones(logits.shape[-2:]).triu(1).bool(), -torch.inf)
        found.append((logits, logits.softmax(-1)))
        return original(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **rest)

    torch.nn.functional.scaled_dot_product_attention = spy
    try:
        yield found
    finally:
        torch.nn.functional.scaled_dot_product_attention = original

"""What a training step keeps for backward, layer by layer, from counts alone.

Every term is a tensor that a kernel of ``transformers``' models saves, as autograd's formulas say
(``tools/autograd/derivatives.yaml`` of PyTorch): a norm its input, a product its input, attention
q, k, v, its output and the logarithm of each row's sum (FlashAttention, arXiv 2205.14135), dropout
a mask of one byte, an activation function its input. Autocast's rules decide the widths (PyTorch,
"Autocast Op Reference"): products in 16 bits, norms, softmax, powers and the sums of the residual
stream in float32, and each product casts its input anew. In 16 bits throughout, the GPT layer is
Korthikanti et al.'s 34 sbh + 5abs^2 (arXiv 2205.05198).

Not counted: statistics of norms, rotary tables, what a router keeps besides its input, masks that
come from padding. ``python -m benchmarks.estimate`` sets the sums beside captured graphs.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Widths:
    """Bytes of an element: of what products take and make, and of the residual stream.

    >>> [WIDTHS[name].mixed for name in ("bfloat16", "float32")]
    [True, False]
    """

    compute: int
    stream: int

    @property
    def mixed(self) -> bool:
        """Whether products cast what they read, as under autocast."""
        return self.compute < self.stream

    @property
    def read(self) -> int:
        """What one product keeps of its input: under autocast a copy of its own."""
        return self.compute if self.mixed else self.stream


WIDTHS = {"bfloat16": Widths(2, 4), "float16": Widths(2, 4), "float32": Widths(4, 4)}
"""By precision of compute; both of 16 bits are autocast over float32 weights."""

FUSED, MATERIALIZED = "fused", "materialized"
ATTENTION = (FUSED, MATERIALIZED)
FLOAT32 = 4


@dataclass(frozen=True, slots=True)
class Layer:
    """A transformer layer. Sizes are elements of one token.

    ``queries`` and ``keys`` are the widths of all heads; ``written_norm`` says that the norm is
    made of several kernels (RMS norm in ``transformers``), ``joined`` that one product makes q, k
    and v, ``scored`` that a learned score is added to every pair of tokens (T5), ``crossed`` that
    the layer also attends to an encoder's output. ``experts_used`` is how many experts each token
    goes through, 0 for one plain MLP.
    """

    hidden: int
    heads: int
    queries: int
    keys: int
    intermediate: int
    activation: str = "gelu"
    gated: bool = False
    written_norm: bool = False
    joined: bool = False
    dropout: bool = False
    inner_dropout: bool = False
    attention_dropout: bool = False
    scored: bool = False
    crossed: bool = False
    experts_used: int = 0

    def has_kernel(self, widths: Widths) -> bool:
        """Tell whether CUDA has a fused kernel: none for grouped or odd heads in float32.

        ``aten/src/ATen/native/transformers/cuda/sdp_utils.cpp``: flash takes 16 bits only, without
        scores and up to 256 wide, and pads; the memory-efficient kernel takes as many keys as
        queries, and heads of a multiple of 16 bytes.
        """
        width = self.queries // self.heads
        flash = widths.compute < FLOAT32 and width <= 256 and not self.scored
        return flash or (self.keys == self.queries and width * widths.compute % 16 == 0)


@dataclass(frozen=True, slots=True)
class Tokens:
    """How many tokens a micro-batch has: ``batch`` samples of ``seq``."""

    seq: int
    batch: int

    @property
    def count(self) -> int:
        """All of them."""
        return self.seq * self.batch


def layer_bytes(
    layer: Layer,
    tokens: Tokens,
    widths: Widths,
    attention: str = FUSED,
    source: Tokens | None = None,
) -> int:
    """Return what one layer keeps for backward, in bytes.

    Args:
        layer: which.
        tokens: that go through it.
        widths: of elements.
        attention: a name of ``ATTENTION``; "fused" where there is such a kernel.
        source: what the encoder was given, for a layer that is crossed.

    >>> gpt3 = Layer(12288, 96, 12288, 12288, 4 * 12288, joined=True, dropout=True)
    >>> layer_bytes(gpt3, Tokens(2048, 1), Widths(2, 2)) // (2048 * 12288)  # and each row's sum
    34
    """
    kept = _attention(layer, tokens, tokens, widths, attention)
    if layer.crossed:
        kept += _attention(layer, tokens, source or tokens, widths, attention, crossed=True)
    return kept + _mlp(layer, tokens, widths)


def core_bytes(layer: Layer, tokens: Tokens, source: Tokens, widths: Widths, attention: str) -> int:
    """Return what the matrices of attention take, which fused kernels never write.

    Softmax is in float32 under autocast, and the product with v takes a copy in 16 bits of it, or
    of what dropout left.

    Args:
        layer: which.
        tokens, source: that attend, and that are attended to.
        widths: of elements.
        attention: a name of ``ATTENTION``.
    """
    if attention == FUSED and layer.has_kernel(widths):
        return 0
    each = widths.stream
    if widths.mixed:
        each += widths.compute
    if layer.attention_dropout:
        each += 1 if widths.mixed else 1 + widths.compute
    return each * layer.heads * source.seq * tokens.count


def _attention(
    layer: Layer,
    tokens: Tokens,
    source: Tokens,
    widths: Widths,
    attention: str,
    *,
    crossed: bool = False,
) -> int:
    """Return what attention keeps, from the norm before it to the sum after it."""
    fused = attention == FUSED and layer.has_kernel(widths)
    count, compute = tokens.count, widths.compute
    kept = _normed(layer, widths, 1 if layer.joined or crossed else 3) * count
    if crossed and widths.mixed:
        kept += 2 * compute * layer.hidden * source.count  # read by the products for k and for v
    keys = layer.keys if fused else layer.queries  # written out, grouped keys are repeated
    kept += compute * (2 * layer.queries * count + 2 * keys * source.count)  # q and output; k and v
    kept += core_bytes(layer, tokens, source, widths, attention)
    if fused:
        kept += FLOAT32 * layer.heads * count  # the logarithm of each row's sum
        if layer.scored and not crossed:
            kept += compute * layer.heads * tokens.seq * source.seq
    return kept + _added(layer, widths) * count


def _mlp(layer: Layer, tokens: Tokens, widths: Widths) -> int:
    """Return what the MLP or the experts keep, from the norm before to the sum after."""
    each = _added(layer, widths)
    if layer.experts_used:  # grouped products, which autocast leaves in float32
        within = 2 * layer.hidden + 4 * layer.intermediate
        each += _normed(layer, widths, 1) + FLOAT32 * layer.experts_used * within
    else:
        each += _normed(layer, widths, 2 if layer.gated else 1)
        each += _activated(layer, widths) * layer.intermediate
    return each * tokens.count


def _normed(layer: Layer, widths: Widths, readers: int) -> int:
    """Return what is kept of a norm's output, read by so many products; its input is a sum's."""
    made = readers * widths.compute if widths.mixed else widths.stream
    return (made + (widths.stream if layer.written_norm else 0)) * layer.hidden


def _added(layer: Layer, widths: Widths) -> int:
    """Return what is kept of a sum of the stream, which the next norm reads, and of its dropout."""
    return (widths.stream + layer.dropout) * layer.hidden


ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish", "quick_gelu")


def _activated(layer: Layer, widths: Widths) -> int:
    """Return what each element of the intermediate keeps: within the function, and after it."""
    compute, name = widths.compute, layer.activation
    inner = layer.inner_dropout
    made = compute
    if name == "gelu_new":  # x / 2, and x, tanh and tanh + 1 beside the power in float32
        within, made = compute + 3 * widths.stream, widths.stream
    elif name == "relu":  # reads its own output, which the next product keeps if it is the same
        within = compute if inner and not layer.gated else 0
    else:
        within = 2 * compute if name == "quick_gelu" else compute
    if layer.gated:  # what the function made, what it multiplies, and their product
        return within + made + 2 * compute + inner
    return within + compute + inner


def loss_bytes(vocab: int, tokens: Tokens, widths: Widths, *, upcast: bool) -> tuple[int, int]:
    """Return what logits and cross entropy keep, and what their gradients take at the peak.

    Kept are the logits, which the model returns, and their log-softmax in float32: of the logits
    upcast first (decoders in ``transformers``), or in 16 bits and then cast for the loss. Gradients
    of log-softmax and of its input, in float32, are there at once; not the second where it is cast.

    Args:
        vocab: size of the vocabulary.
        tokens: that have logits.
        widths: of elements.
        upcast: whether the logits are taken to float32 before the loss.

    >>> loss_bytes(10, Tokens(1, 1), WIDTHS["bfloat16"], upcast=True)
    (60, 80)
    """
    late = widths.mixed and not upcast
    kept = widths.compute + FLOAT32 + (widths.compute if late else 0)
    return kept * vocab * tokens.count, FLOAT32 * (1 if late else 2) * vocab * tokens.count

"""A loss in chunks: head and cross entropy of some tokens at a time, never all of the logits.

``region`` finds the head and what is computed of its logits, by structure; ``token_dims`` says
along which dimensions tokens lie there; ``writer`` writes the chunks and ``sums`` adds to what they
make in place; ``linear`` refuses gradients that are no multiple of the one that arrives;
``stand_in`` lets the logits that a model returns be computed when they are read; ``chain`` finds
MLPs and other chains between two small tensors, which are written alike; ``rewrite`` enters all of
it as rewrites.
"""

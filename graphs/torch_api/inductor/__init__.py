"""What planning for ``torch.compile`` needs of Dynamo, AOTAutograd and Inductor, and has no name.

``scheduler`` asks Inductor which kernels and buffers it will make of a graph, without compiling
any, and ``inductor_kernels`` reads them; ``partitioner`` is its documented hook,
``custom_partitioner_fn``; ``compiler`` calls it. ``handed_graphs`` says what Dynamo hands to a
backend, ``whole_traces`` lets it trace steps whole. ``kernels_together`` hands kernels to the C++
compiler several at a time.
"""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch deprecates what Inductor itself imports
    import torch._inductor.compile_fx  # noqa: F401

"""What planning for ``torch.compile`` needs of Dynamo, AOTAutograd and Inductor, and has no name.

``scheduler`` asks Inductor which kernels and buffers it will make of a graph, without generating
code; ``partitioner`` is its documented hook, ``custom_partitioner_fn``; ``compiler`` calls it.
"""

"""Every private name of torch, and every patch of it; nothing else of this project has one.

Names: ``annotations``, ``dispatch``, ``fake_tensors``, ``fx_graphs``, ``joint_export``,
``module_internals``, ``operators``, ``optimizer_internals``, ``pytree``, ``storages``;
``allocation_records`` reads the allocator, ``ops`` adds an operator, ``versions`` says what differs
between versions of torch.

Patches go through ``patches``, which holds one lock: ``decompositions``, ``fake_kernels``,
``functional_tensors``, ``module_watch``, ``quiet``, ``random_state``, ``patient_collectives``.
Threads that run ordinary torch code meanwhile compute what they would have computed. What they may
notice: modules answer more slowly; a thread that traces by itself (``torch.compile``, fake tensors)
sees our fake kernels and decompositions, unless it does so under ``patches.capturing``; where a
random operator is being measured, numbers drawn meanwhile are drawn again; filters of warnings that
another thread restores may let torch's own be heard. The model that is captured holds fake tensors
until that is done, and must not run elsewhere.
"""

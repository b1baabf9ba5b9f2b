"""Experts that tokens are sent to over ranks, as one operator whatever the router says.

``layers`` runs such a layer as it is, on given tensors; ``exchange_operator`` is the operator, and
its backward; ``recognized`` puts it where a model is traced; ``exchange_prices`` says what it holds
and takes when a stated number of rows arrives.
"""

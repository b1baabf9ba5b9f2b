"""Notes that a trace puts on the nodes it makes, backward nodes included."""

from torch.fx.traceback import preserve_node_meta

from planner.graphs.torch_api.versions import newer

__all__ = ["annotate", "preserve_node_meta"]

annotate = newer("torch.fx.traceback:annotate")

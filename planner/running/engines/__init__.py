"""How a schedule becomes two programs that run; each engine is a file that enters itself."""

from planner.running.engines import inductor, op_by_op  # noqa: F401 (they enter themselves)
from planner.running.engines.engine import ENGINES, Engine, engine_of, register_engine

__all__ = ["ENGINES", "Engine", "engine_of", "register_engine"]

"""Plans as files: versioned JSON under a checksum, written whole or not at all.

A file names its format, the features that it makes use of and the memory models that judged it,
each with a version. Files of version 1 named none of these; they load as they always did.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from planner.graphs import EXACT, MEMORY_MODELS
from planner.output import checksummed_json
from planner.output.plan_files import Body, body_of, plan_of, upgraded
from planner.output.sharded_plan_files import (
    sharded_body_of,
    sharded_plan_of,
    upgraded_sharded,
)
from planner.plan.features import FEATURES, TENSOR, features_of, known_features
from planner.plan.sharded_step_plan import ShardedStepPlan
from planner.plan.step_plan import StepPlan

FORMAT = "remat-planner-plan"
SHARDED_FORMAT = "remat-planner-sharded-plan"
VERSION = 2


def save(plan: StepPlan | ShardedStepPlan, path: str | Path) -> None:
    """Write a plan; the file appears whole or not at all."""
    if isinstance(plan, StepPlan):
        name, step, body = FORMAT, plan, body_of(plan)
        features = features_of(step)
    else:
        name, step, body = SHARDED_FORMAT, plan.step, sharded_body_of(plan)
        features = features_of(step, (unit.schedule for unit in plan.units))
        if plan.configuration.tensor_ranks > 1:
            features |= {TENSOR: FEATURES[TENSOR]}
    memory = {step.memory_model: MEMORY_MODELS[step.memory_model].version}
    used = {"features": features, "memory_models": memory}
    checksummed_json.write(path, name, VERSION, used | body)


def load(path: str | Path) -> StepPlan | ShardedStepPlan:
    """Read a plan that ``save`` wrote, in this version or an earlier one.

    Raises:
        InvalidPlan: the file is damaged, truncated, foreign, or of a newer version.
        OSError: the file cannot be opened.
    """
    versions = {FORMAT: VERSION, SHARDED_FORMAT: VERSION}
    name, version, body = checksummed_json.read(path, versions)
    single = name == FORMAT
    if version == 1:
        body = upgraded(body) if single else upgraded_sharded(body)
        judged_by = {EXACT.name: 1}
    else:
        judged_by, body = _uses(path, body)
    if single:
        return plan_of(checksummed_json.checked(Body, body, path), path, judged_by)
    return sharded_plan_of(body, path, judged_by)


def _uses(path: str | Path, body: Any) -> tuple[dict[str, int], Any]:
    """Check that all that a file makes use of is known; return its memory models and the rest."""
    used = checksummed_json.checked(_Uses, body, path)
    models = {name: model.version for name, model in MEMORY_MODELS.items()}
    features = known_features()
    # plans of an unknown engine or rewrite can be looked at; applying one says what is missing
    later = {f: v for f in used.features if f not in features and (v := _when_applied(f))}
    for what, uses, known in (
        ("feature", used.features, features | later),
        ("memory model", used.memory_models, models),
    ):
        for name, version in uses.items():
            if version > known.get(name, 0):
                had = f"version {known[name]}" if name in known else "none"
                needs = f"it uses the {what} {name!r}, version {version}; this package has {had}"
                checksummed_json.newer(path, needs)
    rest = {key: value for key, value in body.items() if key not in _Uses.model_fields}
    return used.memory_models, rest


def _when_applied(feature: str) -> int:
    """Return a version above all if a feature is looked for when a plan is applied, else 0."""
    return sys.maxsize if feature.partition(" ")[0] in ("engine", "rewrite") else 0


class _Uses(BaseModel):
    """What a body names of this package, each with a version, beside the plan itself."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    features: dict[str, int]
    memory_models: dict[str, int]

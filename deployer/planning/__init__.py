"""Recipe -> frozen `Plan`: what will be done, in which order, with which key. Pure."""

from deployer.planning.checks import check_shape, obstacles
from deployer.planning.making import STAGE_VERSIONS, fetch_key, make_plan
from deployer.planning.plan import (
    Machine,
    Obstacle,
    Plan,
    PlannedStage,
    ResolvedSource,
    Texts,
)
from deployer.planning.shape import ModelShape

__all__ = [
    "STAGE_VERSIONS",
    "Machine",
    "ModelShape",
    "Obstacle",
    "Plan",
    "PlannedStage",
    "ResolvedSource",
    "Texts",
    "check_shape",
    "fetch_key",
    "make_plan",
    "obstacles",
]

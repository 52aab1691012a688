"""Next-scale decoding of continuous tokens (FlowAR, arXiv 2412.15205): a scale at a time, all its tokens by a flow."""

from dataclasses import dataclass
from typing import Any, ClassVar

from vargen.samplers.latent import Continuous, Settings, check_share, check_steps


@dataclass(frozen=True)
class FlowARSettings(Settings):
    """Settings of `flowar`."""

    steps: int = 25  # of the flow, for each scale
    guidance_high: float = 0.9  # flow times above it are not guided

    def __post_init__(self) -> None:
        check_steps(self.steps)
        check_share(self.guidance_high, "guidance_high")

    @property
    def head(self) -> dict[str, Any]:
        return {"guidance_high": self.guidance_high}


class NextScaleFlow(Continuous):
    """FlowAR: scale by scale, the same number of flow steps for each."""

    Settings: ClassVar[type] = FlowARSettings
    plan: ClassVar[str | None] = "scales"

"""What learns in PPO: the policy and the values, their optimizer, and the policy's average."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from sft_kit.data.rows import Example
from sft_kit.models.roles import Roles
from sft_kit.settings import PpoSettings, PtxSettings
from sft_kit.training.ppo.scoring import Precision


@dataclass(slots=True)
class Learner:
    """What learns, and how: the same object for all rollouts of a run.

    Attributes:
        roles: Policy and values train.
        optimizer: Group 0 is the policy's, group 1 that of the values.
        settings: The `ppo` section.
        precision: Autocast of every forward.
        seed: Decides the order of atoms and of PTX rows.
        micro_batch: Rows of language of one forward.
        max_grad_norm: Gradients are clipped to this norm, each group by itself; 0 is off.
        num_processes: Of the run.
        process: Rank of this one.
        ptx: The `ptx` section.
        ptx_rows: Rows of language; empty without PTX.
        ptx_cursor: Rows of language learnt so far.
        ema: Name -> moving average of the policy's parameters; empty without.
    """

    roles: Roles
    optimizer: torch.optim.Optimizer
    settings: PpoSettings
    precision: Precision
    seed: int
    micro_batch: int = 8
    max_grad_norm: float = 1.0
    num_processes: int = 1
    process: int = 0
    ptx: PtxSettings = field(default_factory=PtxSettings)
    ptx_rows: Sequence[Example] = ()
    ptx_cursor: int = 0
    ema: dict[str, torch.Tensor] = field(default_factory=dict)

    def policy(self) -> list[nn.Parameter]:
        """The policy's parameters that train."""
        return list(self.roles.policy_parameters().values())

    def values(self) -> list[nn.Parameter]:
        """Parameters that train for values only."""
        return list(self.roles.value_parameters().values())

    @property
    def has_ptx(self) -> bool:
        """Whether language is learnt beside the reward."""
        return bool(self.ptx_rows) and self.ptx.coefficient > 0

    @property
    def policy_share(self) -> float:
        """Weight of the policy loss: less than 1 where it is mixed with the language loss."""
        return 1 - self.ptx.coefficient if self.has_ptx and self.ptx.mix == "convex" else 1.0

    def copy_policy(self) -> list[torch.Tensor]:
        """Copy to the CPU what the policy and a head on it train, and the policy's average."""
        return [one.detach().cpu().clone() for one in self._kept()]

    @torch.no_grad()
    def put_policy(self, copy: Sequence[torch.Tensor]) -> None:
        """Put back what `copy_policy` gave."""
        for one, value in zip(self._kept(), copy, strict=True):
            one.copy_(value)

    def _kept(self) -> list[torch.Tensor]:
        head = self.values() if self.roles.shares_policy else []
        return [*self.policy(), *head, *self.ema.values()]

    @torch.no_grad()
    def move_average(self) -> None:
        """Let the policy's average follow an update, where there is one."""
        decay = self.settings.ema_decay
        if decay is None:
            return
        for name, parameter in self.roles.policy_parameters().items():
            average = self.ema[name]
            average.lerp_(parameter.detach().to(average.dtype), 1 - decay)

"""Loss of reward models. Shapes: B answers, G groups of answers to one prompt, N pairs.

A group has K answers, which stand one after the other, the best first.
"""

import torch
from torch.nn import functional


def pairwise_loss(
    scores: torch.Tensor,
    labels: torch.Tensor,
    *,
    num_groups: torch.Tensor | float | None = None,
    label_smoothing: float = 0.0,
    center_weight: float = 0.0,
) -> torch.Tensor:
    """Negative log-likelihood that the better answer wins (Bradley and Terry), over all pairs.

    With d the difference of a pair's scores, m the margin and e the smoothing, a pair costs
    `-(1 - e) log sigmoid(d - m) - e log sigmoid(-d - m)`: a preference that was taken down the
    wrong way round had its margin the wrong way round too. To this comes `center_weight` times the
    squared sum of the two scores, which would else be free to drift together. The pairs of a group
    weigh 1 / C(K, 2) each, so that every group weighs the same.

    Args:
        scores: (B,) or (B, 1).
        labels: (G, 2) K and m of each group; the K add up to B.
        num_groups: Groups of the *global* batch, all micro-batches and processes: the loss of a
            micro-batch is then its share of the global mean. None: G.
        label_smoothing: Share of the preferences that are taken to be wrong.
        center_weight: Weight of the squared sum.

    Returns:
        Scalar float32 in nats per group.

    Source:
        Ouyang et al. 2022, "Training language models to follow instructions with human feedback",
        equation 1; margins: Touvron et al. 2023, "Llama 2", section 3.2.2; smoothing: Mitchell
        2023, "A note on DPO with noisy preferences and relationship to IPO"; centring: Eisenstein
        et al. 2023, "Helping or herding?".
    """
    scores = scores.float().reshape(-1)
    better, worse, group = pairs_of_groups(labels[:, 0].long())
    sizes = labels[:, 0].float()[group]
    margins = labels[:, 1].float()[group]
    differences = scores[better] - scores[worse]
    terms = -(1.0 - label_smoothing) * functional.logsigmoid(differences - margins)
    if label_smoothing:
        terms = terms - label_smoothing * functional.logsigmoid(-differences - margins)
    if center_weight:
        terms = terms + center_weight * (scores[better] + scores[worse]).square()
    weights = 2.0 / (sizes * (sizes - 1.0))
    return (weights * terms).sum() / (len(labels) if num_groups is None else num_groups)


def pairs_of_groups(sizes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """List all pairs of a better and a worse answer of the same group.

    Args:
        sizes: (G,) int64, K of each group.

    Returns:
        Rows of the better answers, rows of the worse ones and groups, each (N,) int64; N is the sum
        of K (K - 1) / 2.
    """
    group = torch.repeat_interleave(torch.arange(len(sizes), device=sizes.device), sizes)
    is_pair = group.unsqueeze(0).eq(group.unsqueeze(1)).triu(diagonal=1)
    better, worse = is_pair.nonzero(as_tuple=True)
    return better, worse, group[better]

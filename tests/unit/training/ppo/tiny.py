"""Models of a few thousand parameters, and runs of PPO that take a fraction of a second."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    TrainingArguments,
    set_seed,
)

from sft_kit.data.preference.rows import Prompt
from sft_kit.data.rows import Where
from sft_kit.models.dropout import disable_dropout
from sft_kit.models.role_adapters import adapter_roles, whole_model_roles
from sft_kit.models.roles import Roles
from sft_kit.objectives.advantages import RunningMoments
from sft_kit.settings import PpoSettings, ScoreSettings
from sft_kit.training.ppo.atoms import Atom, make_atom
from sft_kit.training.ppo.experience import Collector
from sft_kit.training.ppo.rollout import Episode
from sft_kit.training.ppo.run import PpoRun
from sft_kit.training.ppo.sampling import Sampling
from sft_kit.training.ppo.scores import Scorer
from sft_kit.training.ppo.scoring import Precision

VOCABULARY = 16
STOP = 2
CPU = torch.device("cpu")
FULL = Precision("cpu", bf16=False)


def tiny_gpt2(*, dropout: float = 0.0, seed: int = 0, **fields: object) -> GPT2LMHeadModel:
    """GPT-2 whose distributions are far from uniform."""
    torch.manual_seed(seed)
    given: dict[str, Any] = {
        "vocab_size": VOCABULARY, "n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2,
        "attn_pdrop": dropout, "embd_pdrop": dropout, "resid_pdrop": dropout,
        "bos_token_id": 1, "eos_token_id": STOP, "initializer_range": 0.2,
    }  # fmt: skip
    return GPT2LMHeadModel(GPT2Config(**(given | fields))).eval()


def llama_config(*, dropout: float = 0.0, **fields: object) -> LlamaConfig:
    given: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 64, "attention_dropout": dropout,
        "bos_token_id": 1, "eos_token_id": STOP, "initializer_range": 0.2,
    }  # fmt: skip
    return LlamaConfig(**(given | fields))


def tiny_llama(*, dropout: float = 0.0, seed: int = 0, **fields: object) -> LlamaForCausalLM:
    """Llama with grouped-query attention and an output layer of its own."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(llama_config(dropout=dropout, **fields)).eval()


def tiny_model(family: str, **fields: Any) -> PreTrainedModel:
    return tiny_gpt2(**fields) if family == "gpt2" else tiny_llama(**fields)


def lora(**fields: Any) -> LoraConfig:
    given = {"r": 2, "lora_alpha": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    return LoraConfig(**(given | fields))


KINDS = ("whole shared", "whole model", "lora adapter", "lora shared", "lora model")


def tiny_roles(kind: str, base: PreTrainedModel, **fields: Any) -> Roles:
    """Make roles of a kind: what the policy is, and where the values come from."""
    how, value = kind.split()
    torch.manual_seed(5)
    if how == "whole":
        return whole_model_roles(base, value)
    few = ["c_attn", "c_fc"] if isinstance(base, GPT2LMHeadModel) else ["q_proj", "up_proj"]
    fields.setdefault("target_modules", few)  # every layer with an adapter costs time
    folders = {name: fields.pop(name) for name in tuple(fields) if "folder" in name}
    scale = fields.pop("reward_scale", (0.0, 1.0))
    return adapter_roles(base, lora(**fields), value, reward_scale=scale, **folders)


def stir(roles: Roles, seed: int = 3, spread: float = 0.1) -> Roles:
    """Move all that trains, so that no adapter and no head answers 0."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for group in (roles.policy_parameters(), roles.value_parameters()):
            for one in group.values():
                one.add_(spread * torch.randn(one.shape, generator=draw))
    return roles


def quiet(roles: Roles) -> Roles:
    """Switch dropout off, as the loop does."""
    for role in roles.all():
        disable_dropout(role.model)
    return roles


def save_reward_adapter(folder: Path, base: PreTrainedModel, seed: int = 7) -> Any:
    """Save a reward model that PEFT trained on the same Llama, and return it."""
    config = llama_config(num_labels=1, pad_token_id=0)
    model: Any = LlamaForSequenceClassification(config)
    model.model.load_state_dict(base.base_model.state_dict())
    given = lora(task_type="SEQ_CLS", modules_to_save=["score"])
    given.target_modules = ["q_proj", "v_proj", "up_proj"]
    set_seed(seed)
    model = get_peft_model(model, given)
    move_adapter(model, seed)
    model.save_pretrained(folder)
    return model.eval()


def save_sft_adapter(folder: Path, base: PreTrainedModel, seed: int = 11) -> None:
    """Save a LoRA adapter that answers otherwise than its base; the base is left as it was."""
    model: Any = get_peft_model(base, lora(fan_in_fan_out=isinstance(base, GPT2LMHeadModel)))
    move_adapter(model, seed)
    model.save_pretrained(folder)
    model.unload()


def move_adapter(model: Any, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, one in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                one.copy_(0.2 * torch.randn(one.shape, generator=draw))


def tiny_prompts(count: int = 6, longest: int = 7) -> list[Prompt]:
    """Prompts of uneven lengths, without the stop token."""
    draw = torch.Generator().manual_seed(23)
    return [
        Prompt(
            tuple(torch.randint(3, VOCABULARY, (1 + row % longest,), generator=draw).tolist()),
            (), f"prompt {row}", {"row": row}, Where("tiny", row + 1),
        )
        for row in range(count)
    ]  # fmt: skip


def share_of_threes(completion_ids: list[list[int]], **_: object) -> list[float]:
    """Score what a few updates can change: the share of the tokens 3 to 8."""
    return [sum(3 <= token <= 8 for token in ids) / len(ids) for ids in completion_ids]


def tiny_scorer(function: Any = share_of_threes, **fields: Any) -> Scorer:
    settings = ScoreSettings(functions={"f": 1.0}, **({"clip": None} | fields))
    return Scorer(settings, {"f": function})


def tiny_settings(**fields: Any) -> PpoSettings:
    given: dict[str, Any] = {
        "num_rollouts": 3, "episodes_per_rollout": 8, "num_epochs": 2, "num_minibatches": 2,
        "max_new_tokens": 5, "eval_rollouts": 0, "value_learning_rate": 1e-2,
    }  # fmt: skip
    return PpoSettings(**(given | fields))


def tiny_args(**fields: Any) -> TrainingArguments:
    given: dict[str, Any] = {
        "output_dir": "unused", "learning_rate": 1e-2, "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 4, "seed": 0, "use_cpu": True, "report_to": "none",
        "disable_tqdm": True, "bf16": False,
    }  # fmt: skip
    return TrainingArguments(**(given | fields))


def tiny_run(roles: Roles, *, args: dict[str, Any] | None = None, **fields: Any) -> PpoRun:
    """Make a run; what is no part of `PpoRun` is a setting of PPO."""
    own = {name: fields.pop(name) for name in tuple(fields) if name in PpoRun.__slots__}
    own.setdefault("prompts", tiny_prompts())
    own.setdefault("scorer", tiny_scorer())
    own.setdefault("stop_token_ids", (STOP,))
    return PpoRun(roles, settings=tiny_settings(**fields), args=tiny_args(**(args or {})), **own)


def tiny_collector(roles: Roles, **fields: Any) -> Collector:
    """What makes rollouts, apart from a run."""
    scorer = fields.pop("scorer", None) or tiny_scorer()
    precision = fields.pop("precision", FULL)
    settings = tiny_settings(**fields)
    sampling = Sampling(settings.max_new_tokens, (STOP,), settings.temperature)
    return Collector(
        roles, scorer, None, settings, sampling, precision, 0, 4, CPU, RunningMoments()
    )


def episode(
    number: int, prompt: Sequence[int], completion: Sequence[int], *, prompt_number: int = 0
) -> Episode:
    ids = tuple(completion)
    return Episode(number, prompt_number, tuple(prompt), ids, (0.0,) * len(ids), ids[-1] == STOP)


def uneven_episodes(count: int = 6, seed: int = 1, longest: int = 9) -> list[Episode]:
    """Random prompts and completions, some of one token."""
    draw = torch.Generator().manual_seed(seed)

    def ids(low: int) -> list[int]:
        size = int(torch.randint(1, longest + 1, (1,), generator=draw))
        return torch.randint(low, VOCABULARY, (size,), generator=draw).tolist()

    return [episode(row, ids(3), [*ids(3), STOP] if row % 3 else [5]) for row in range(count)]


def atom_of_all(episodes: Sequence[Episode], num_pads: int = 0) -> Atom:
    return make_atom(episodes, range(len(episodes)), CPU, num_pads)


def row_logprobs(model: Any, one: Episode, temperature: float = 1.0) -> torch.Tensor:
    """Logprobs of a completion by transformers' own logits, one row and no padding: (C,)."""
    ids = torch.tensor([one.prompt_ids + one.completion_ids])
    logits = model(input_ids=ids, use_cache=False).logits[0, len(one.prompt_ids) - 1 : -1]
    spread = (logits.double() / temperature).log_softmax(-1)
    return spread.gather(1, torch.tensor(one.completion_ids)[:, None])[:, 0]


def unpadded(values: torch.Tensor, episodes: Sequence[Episode]) -> list[torch.Tensor]:
    """Rows (B, C) without their padding."""
    return [values[row, : len(one.completion_ids)] for row, one in enumerate(episodes)]

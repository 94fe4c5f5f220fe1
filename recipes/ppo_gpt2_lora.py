"""PPO with GPT-2, or any causal language model: better answers by a reward model or a function.

    accelerate launch recipes/ppo_gpt2_lora.py [--config FILE] [section.key=value ...]

Policy, reference policy, value head and reward model share one frozen base and differ by adapter.
The settings stand in `ppo_gpt2_lora.yaml` beside this file. Without GPU and network, after
`sft_gpt2_lora.py` and `reward_gpt2_lora.py` with the same checkpoint:

    accelerate launch recipes/ppo_gpt2_lora.py model.checkpoint=data/checkpoints/tiny-gpt2
"""

from dataclasses import dataclass
from functools import partial

from peft import LoraConfig
from transformers import TrainingArguments, set_seed

from sft_kit.artifacts import open_run, pair_samples, save_run, show_samples
from sft_kit.artifacts.policy_sources import copy_reward_model, open_policy_sources
from sft_kit.config import load_config, refuse_unread, run_recipe
from sft_kit.data.preference.prompts import load_prompts
from sft_kit.data.preference.stops import stop_token_ids
from sft_kit.data.rows import Message
from sft_kit.data.templates import choose_template
from sft_kit.inference.generate import generate, stop_ids
from sft_kit.models.base import load_causal_lm, load_tokenizer
from sft_kit.models.fingerprint import describe_base
from sft_kit.models.role_adapters import make_roles, save_policy_average, save_role
from sft_kit.models.roles import activate
from sft_kit.settings import (
    ModelSettings,
    PpoSettings,
    PromptDataSettings,
    PtxSettings,
    SampleSettings,
    ScoreSettings,
)
from sft_kit.training.ppo.announce import announce_ppo, ppo_facts, ppo_warnings
from sft_kit.training.ppo.loop import train_ppo
from sft_kit.training.ppo.ptx import load_ptx_rows, ptx_warnings
from sft_kit.training.ppo.run import READ_ARGUMENTS, PpoRun, check_request
from sft_kit.training.ppo.scores import load_scorer


@dataclass
class Settings:
    """The sections of the YAML; each is the class that uses it."""

    model: ModelSettings
    adapter: LoraConfig | None
    data: PromptDataSettings
    reward: ScoreSettings
    ppo: PpoSettings
    ptx: PtxSettings
    train: TrainingArguments
    sample: SampleSettings


def main() -> None:
    """Read, check, put the roles on the base, train, compare, save."""
    config = load_config(Settings, __file__)
    refuse_unread(config, "train", READ_ARGUMENTS)
    settings, ppo = config.settings, config.settings.ppo
    run = open_run(config)

    tokenizer = load_tokenizer(settings.model)
    template = choose_template(tokenizer, settings.data.template)
    prompts = load_prompts(
        settings.data,
        tokenizer,
        template,
        context=tokenizer.model_max_length,
        max_new_tokens=ppo.max_new_tokens,
    )
    ptx_rows = load_ptx_rows(settings.ptx, tokenizer, template) if settings.ptx.coefficient else []

    set_seed(settings.train.seed)  # before the adapters draw their first weights
    base = load_causal_lm(settings.model)
    known_base = describe_base(settings.model)
    sources = open_policy_sources(
        ppo,
        settings.reward,
        settings.model,
        template,
        known_base,
        has_adapter=settings.adapter is not None,
    )
    scorer = load_scorer(
        settings.reward,
        {name for prompt in prompts.train for name in prompt.columns},
        model=sources.reward_model,
        scale=sources.reward_scale,
    )
    stops = [*stop_ids(base, template), *stop_token_ids(tokenizer, ppo.stop_tokens)]
    roles = make_roles(
        base,
        settings.adapter,
        ppo,
        sft_folder=sources.sft_folder,
        reward_folder=sources.reward_folder,
        reward_scale=sources.reward_scale,
    )
    questions: list[list[Message]] = [
        [{"role": "user", "content": text}] for text in settings.sample.prompts
    ]
    activate(roles.policy)
    policy = roles.policy.model
    answers_before = generate(policy, tokenizer, template, questions, settings.sample)
    facts = ppo_facts(ppo, settings.reward, settings.ptx, roles, prompts)
    notes = [*config.notes, *prompts.notes(), *sources.notes]
    warnings = [*ppo_warnings(ppo), *ptx_warnings(ptx_rows, settings.ptx, tokenizer, template)]
    announce_ppo(facts, notes, warnings, prompts.train[0], tokenizer)
    data = prompts.describe()
    job = PpoRun(
        roles,
        prompts.train,
        scorer,
        ppo,
        settings.train,
        stop_token_ids=stops,
        tokenizer=tokenizer,
        eval_prompts=prompts.eval,
        ptx=settings.ptx,
        ptx_rows=ptx_rows,
        folder=run.path,
        checkpoint=run.checkpoint,
        identity=sources.fingerprints | {"prompts": str(data["fingerprint"])},
    )
    check_request(job)
    run.begin(
        facts=facts,
        data=data,
        template=template.describe(),
        base=known_base,
        ppo={"started_from": sources.fingerprints},
    )

    result = train_ppo(job)
    activate(roles.policy)
    answers_after = generate(policy, tokenizer, template, questions, settings.sample)

    samples = pair_samples(settings.sample.prompts, answers_before, answers_after)
    folders = {"value": partial(save_role, roles.value, head_only=roles.shares_policy)}
    if sources.reward_run is not None:
        folders["reward"] = partial(copy_reward_model, sources.reward_run)
    if result.ema:
        folders["ema"] = partial(save_policy_average, roles.policy, result.ema)
    save_run(
        run,
        policy,
        tokenizer,
        result.metrics,
        result.history,
        base=settings.model,
        samples=samples,
        folders=folders,
    )
    show_samples(samples, before="before PPO")
    run.announce_end(result.headline())


if __name__ == "__main__":
    run_recipe(main)

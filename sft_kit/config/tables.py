"""What this project knows about single settings: ranges, closed choices, refusals, old names.

Every row is a fact about the named library, found by reading its code; the tests check that each
name exists there (or, for old names, that it no longer does).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

_MAX_SEED = 2**32 - 1  # the largest that numpy.random.seed takes
_LOG_LEVELS = Literal["passive", "detail", "debug", "info", "warning", "error", "critical"]

_REPORTERS = Literal[
    "none",
    "all",
    "azure_ml",
    "clearml",
    "codecarbon",
    "comet_ml",
    "dagshub",
    "dvclive",
    "flyte",
    "kubeflow",
    "mlflow",
    "neptune",
    "swanlab",
    "tensorboard",
    "trackio",
    "wandb",
]


@dataclass(frozen=True, slots=True)
class Pattern:
    """A bound on text: the whole of it matches this regular expression."""

    regex: str


HUB_REPOSITORY = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
"""A repository of the Hub: `name/repository`."""

BOUNDS: Mapping[str, tuple[Ge | Gt | Le | Lt, ...]] = MappingProxyType(
    {
        "TrainingArguments.per_device_train_batch_size": (Ge(1),),
        "TrainingArguments.per_device_eval_batch_size": (Ge(1),),
        "TrainingArguments.gradient_accumulation_steps": (Ge(1),),
        "TrainingArguments.eval_accumulation_steps": (Ge(1),),
        "TrainingArguments.num_train_epochs": (Gt(0),),
        "TrainingArguments.learning_rate": (Gt(0),),
        "TrainingArguments.warmup_steps": (Ge(0),),
        "TrainingArguments.weight_decay": (Ge(0),),
        "TrainingArguments.adam_beta1": (Ge(0), Lt(1)),
        "TrainingArguments.adam_beta2": (Ge(0), Lt(1)),
        "TrainingArguments.adam_epsilon": (Gt(0),),
        "TrainingArguments.max_grad_norm": (Ge(0),),
        "TrainingArguments.label_smoothing_factor": (Ge(0), Lt(1)),
        "TrainingArguments.neftune_noise_alpha": (Gt(0),),
        "TrainingArguments.logging_steps": (Gt(0),),
        "TrainingArguments.eval_steps": (Gt(0),),
        "TrainingArguments.eval_delay": (Ge(0),),
        "TrainingArguments.save_steps": (Gt(0),),
        "TrainingArguments.save_total_limit": (Ge(1),),
        "TrainingArguments.torch_empty_cache_steps": (Ge(1),),
        "TrainingArguments.seed": (Ge(0), Le(_MAX_SEED)),
        "TrainingArguments.data_seed": (Ge(0), Le(_MAX_SEED)),
        "TrainingArguments.dataloader_num_workers": (Ge(0),),
        "TrainingArguments.dataloader_prefetch_factor": (Ge(1),),
        "TrainingArguments.ddp_bucket_cap_mb": (Ge(1),),
        "TrainingArguments.ddp_timeout": (Ge(1),),
        "LoraConfig.r": (Ge(1),),
        "LoraConfig.lora_alpha": (Ge(1),),
        "LoraConfig.lora_dropout": (Ge(0), Lt(1)),
        "LoraConfig.qalora_group_size": (Ge(1),),
    }
)
"""Values outside are wrong for every run; what is merely unwise stays allowed."""

TYPES: Mapping[str, Any] = MappingProxyType(
    {
        "TrainingArguments.max_steps": Literal[-1] | Annotated[int, Ge(1)],
        "TrainingArguments.use_cpu": bool | Literal["auto"],
        "TrainingArguments.bf16": bool | Literal["auto"],
        "TrainingArguments.fp16": bool | Literal["auto"],
        "TrainingArguments.report_to": _REPORTERS | list[_REPORTERS],
        "TrainingArguments.hub_model_id": Annotated[str, Pattern(HUB_REPOSITORY)] | None,
        "TrainingArguments.hub_private_repo": bool,
        "TrainingArguments.hub_revision": Annotated[str, Pattern(r"[A-Za-z0-9][\w.-]*")] | None,
        "TrainingArguments.log_level": _LOG_LEVELS,
        "TrainingArguments.log_level_replica": _LOG_LEVELS,
        "TrainingArguments.include_num_input_tokens_seen": bool
        | Literal["no", "all", "non_padding"],
        "TrainingArguments.train_sampling_strategy": Literal[
            "random", "sequential", "group_by_length", "batch_rebalance"
        ],
        "TrainingArguments.ddp_backend": Literal[
            "nccl", "gloo", "mpi", "xccl", "hccl", "cncl", "mccl"
        ]
        | None,
        # eva, corda and lora_ga need a pass over the data before training, which no recipe makes.
        "LoraConfig.init_lora_weights": bool
        | Literal["gaussian", "olora", "pissa", "loftq", "orthogonal", "mica"]
        | Annotated[str, Pattern("pissa_niter_[1-9][0-9]*")],
    }
)
"""Types that say more than upstream's annotation: closed choices it checks late, and our `auto`."""

DEFAULTS: Mapping[str, object] = MappingProxyType(
    {
        "TrainingArguments.use_cpu": "auto",
        "TrainingArguments.bf16": "auto",
        "TrainingArguments.fp16": "auto",
        "TrainingArguments.hub_private_repo": True,
    }
)
"""Defaults of this project where upstream's would ignore the machine, or show a model to all."""

READ_BY_RUN = frozenset(
    {
        "TrainingArguments.push_to_hub",
        "TrainingArguments.hub_model_id",
        "TrainingArguments.hub_private_repo",
        "TrainingArguments.hub_revision",
    }
)
"""Settings that the run folder obeys, and that Trainer must not see: it would push while it trains,
without asking what is in the files."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a key, or all its values but the harmless ones, can't be used in a recipe.

    Attributes:
        reason: What would go wrong.
        todo: What to do instead.
        harmless: Values that change nothing and so are accepted.
    """

    reason: str
    todo: str
    harmless: tuple[object, ...] = ()


_PUSHED_ONCE = "a run is pushed once, when it is finished and its files have been looked through"
_NO_EFFECT = "remove it; the recipe decides"
_SCRIPT_FLAG = Refusal("only scripts that read it obey it, and recipes always train", _NO_EFFECT)
_METRICS = "the recipe's own metrics decide what evaluation collects"
_SET_BY_RUN = Refusal("the run fills it in from the model", "remove it")
_DATA_PASS = Refusal("this initialisation needs a pass over the data, which no recipe makes", "")

REFUSED: Mapping[str, Refusal] = MappingProxyType(
    {
        "TrainingArguments.hub_token": Refusal(
            "it would be stored in clear inside training_args.bin",
            "log in with `hf auth login` or set HF_TOKEN",
        ),
        "TrainingArguments.hub_strategy": Refusal(_PUSHED_ONCE, "use train.push_to_hub"),
        "TrainingArguments.hub_always_push": Refusal(
            _PUSHED_ONCE, "use train.push_to_hub", harmless=(False,)
        ),
        "TrainingArguments.resume_from_checkpoint": Refusal(
            "Trainer doesn't read it", "use `--resume` on the command line"
        ),
        "TrainingArguments.do_train": _SCRIPT_FLAG,
        "TrainingArguments.do_eval": Refusal("recipes obey eval_strategy", "use eval_strategy"),
        "TrainingArguments.do_predict": _SCRIPT_FLAG,
        "TrainingArguments.local_rank": Refusal("the launcher sets it per process", "remove it"),
        "TrainingArguments.auto_find_batch_size": Refusal(
            "it would change the global batch, and so the result, without a word",
            "lower per_device_train_batch_size and raise gradient_accumulation_steps",
            harmless=(False,),
        ),
        "TrainingArguments.enable_jit_checkpoint": Refusal(
            "every run stops after a step and saves when it is asked to, with an exit code that "
            "says so",
            "remove it",
            harmless=(False,),
        ),
        "TrainingArguments.logging_nan_inf_filter": Refusal(
            "it would log invented losses in place of NaN", "set it to false", harmless=(False,)
        ),
        "TrainingArguments.label_smoothing_factor": Refusal(
            "the recipe computes its own loss",
            "remove it; classifiers have classify.label_smoothing",
            harmless=(0,),
        ),
        "TrainingArguments.average_tokens_across_devices": Refusal(
            "each process would count the same however few tokens it learns from",
            "remove it",
            harmless=(True,),
        ),
        "TrainingArguments.use_liger_kernel": Refusal(
            "its fused loss returns no logits, and the recipe computes its loss from the logits",
            "remove it",
            harmless=(False,),
        ),
        "TrainingArguments.liger_kernel_config": Refusal(
            "use_liger_kernel is refused", "remove it"
        ),
        "TrainingArguments.prediction_loss_only": Refusal(_METRICS, _NO_EFFECT),
        "TrainingArguments.include_for_metrics": Refusal(_METRICS, _NO_EFFECT),
        "TrainingArguments.batch_eval_metrics": Refusal(_METRICS, _NO_EFFECT),
        "TrainingArguments.eval_do_concat_batches": Refusal(_METRICS, _NO_EFFECT),
        "TrainingArguments.label_names": Refusal("labels are always called `labels`", "remove it"),
        "TrainingArguments.parallelism_config": Refusal(
            "TrainingArguments takes it as a Python object only", "use an accelerate launch config"
        ),
        "LoraConfig.peft_type": _SET_BY_RUN,
        "LoraConfig.base_model_name_or_path": _SET_BY_RUN,
        "LoraConfig.auto_mapping": _SET_BY_RUN,
        "LoraConfig.peft_version": _SET_BY_RUN,
        "LoraConfig.revision": Refusal(
            "it is the revision of the base model", "use model.revision"
        ),
        "LoraConfig.inference_mode": Refusal(
            "an adapter in inference mode doesn't train", "remove it", harmless=(False,)
        ),
        "LoraConfig.runtime_config": Refusal("PEFT takes it as a Python object only", "remove it"),
        "LoraConfig.eva_config": _DATA_PASS,
        "LoraConfig.corda_config": _DATA_PASS,
        "LoraConfig.lora_ga_config": _DATA_PASS,
    }
)

ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "TrainingArguments.gradient_checkpointing": "activation_checkpointing",
        "TrainingArguments.gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
    }
)
"""Deprecated upstream and still accepted: read under the new name, with a note."""

RENAMED: Mapping[str, str] = MappingProxyType({})
"""Keys of this project that changed their name, `Class.old` -> new; kept for one minor release."""

_FILE_OF_ROWS = "data.path"
OLD_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "warmup_ratio": "use train.warmup_steps: below 1 it is a share of all steps",
        "evaluation_strategy": "use train.eval_strategy",
        "no_cuda": "use train.use_cpu",
        "use_mps_device": "remove it: the device is picked automatically, see train.use_cpu",
        "per_gpu_train_batch_size": "use train.per_device_train_batch_size",
        "per_gpu_eval_batch_size": "use train.per_device_eval_batch_size",
        "batch_size": "use train.per_device_train_batch_size",
        "micro_batch_size": "use train.per_device_train_batch_size",
        "group_by_length": "use train.train_sampling_strategy: group_by_length",
        "overwrite_output_dir": "use `--overwrite` on the command line",
        "logging_dir": "set the environment variable TENSORBOARD_LOGGING_DIR",
        "save_safetensors": "remove it: files are always safetensors",
        "half_precision_backend": "remove it: use train.bf16 or train.fp16",
        "fp16_backend": "remove it: use train.bf16 or train.fp16",
        "fp16_opt_level": "remove it: use train.fp16",
        "adafactor": "use train.optim: adafactor",
        "lr": "use train.learning_rate",
        "epochs": "use train.num_train_epochs",
        "num_epochs": "use train.num_train_epochs",
        "lr_scheduler": "use train.lr_scheduler_type",
        "gradient_clipping": "use train.max_grad_norm",
        "use_reentrant": "use train.activation_checkpointing_kwargs",
        "tokenizer": "remove it: the tokenizer comes with model.checkpoint",
        "tokenizer_name": "remove it: the tokenizer comes with model.checkpoint",
        "processing_class": "remove it: the tokenizer comes with model.checkpoint",
        "model_name_or_path": "use model.checkpoint",
        "model_name": "use model.checkpoint",
        "base_model": "use model.checkpoint",
        "pretrained_model_name_or_path": "use model.checkpoint",
        "model_revision": "use model.revision",
        "torch_dtype": "use model.dtype",
        "load_in_4bit": "use model.quantization: nf4",
        "load_in_8bit": "use model.quantization: int8",
        "bnb_4bit_quant_type": "use model.quantization: nf4",
        "bnb_4bit_use_double_quant": "use model.double_quantization",
        "trust_remote_code": "remove it: code from checkpoints is never run",
        "max_seq_length": "use data.max_length",
        "max_seq_len": "use data.max_length",
        "cutoff_len": "use data.max_length",
        "block_size": "use data.max_length",
        "sequence_len": "use data.max_length",
        "dataset": f"use {_FILE_OF_ROWS}",
        "dataset_name": f"use {_FILE_OF_ROWS}",
        "train_file": f"use {_FILE_OF_ROWS}",
        "data_path": f"use {_FILE_OF_ROWS}",
        "validation_file": "use data.eval_path",
        "val_set_size": "use data.eval_fraction",
        "train_on_inputs": "use data.loss_on: all or completion",
        "chat_template": "use data.template",
        "max_samples": "use data.num_rows",
        "lora_r": "use adapter.r",
        "lora_rank": "use adapter.r",
        "rank": "use adapter.r",
        "alpha": "use adapter.lora_alpha",
        "lora_target_modules": "use adapter.target_modules",
        "<<": "write the keys out: merge keys aren't part of YAML 1.2",
    }
)
"""Names from other tools and older releases -> what to write; asked before spelling is guessed."""

"""What makes a run fast, picked where the settings say `auto`, and said before it starts."""

from collections.abc import Mapping

_ATTENTION = {
    "blocks": "our own, faster than sdpa in bf16 on a CPU",
    "sdpa": "torch's own",
}


def pick_parts(
    sections: Mapping[str, Mapping[str, object] | None], *, on_cpu: bool, precision: str | None
) -> dict[str, object]:
    """Pick the attention kernel and the dropout of a model.

    Args:
        sections: Of the recipe.
        on_cpu: Where it runs.
        precision: "bfloat16", "float16", or None for float32.

    Returns:
        Keys of the section `model` that said `auto`, with what they become.
    """
    model = sections.get("model") or {}
    parts: dict[str, object] = {}
    if model.get("attention") == "auto":
        parts["attention"] = "blocks" if on_cpu and precision == "bfloat16" else "sdpa"
    if model.get("dropout") == "auto":
        # Dropout in layers that don't learn costs time, and an adapter has a dropout of its own.
        parts["dropout"] = "keep" if sections.get("adapter") is None else "none"
    return parts


def notes_on_speed(model: Mapping[str, object], train: Mapping[str, object]) -> list[str]:
    """Say what was picked, why, and which key changes it; nothing of a recipe without such keys."""
    if "attention" not in model:
        return []
    attention = str(model["attention"])
    why = _ATTENTION.get(attention, "asked for")
    none = "none in the model, its weights are frozen; the adapter has its own"
    dropout = none if model.get("dropout") == "none" else "as in the model's config"
    fused = (
        "LoRA, GELU and loss in fewer steps, where there are such"
        if model.get("fused")
        else "nothing"
    )
    has_order = train.get("train_sampling_strategy") == "group_by_length"
    order = "rows of similar length, little padding" if has_order else "rows in random order"
    compiled = "on" if train.get("torch_compile") else "off, it takes longer than it saves here"
    saves = (
        "on, a third slower" if train.get("activation_checkpointing") else "off, it costs a third"
    )
    return [
        f"attention: {attention} ({why}; model.attention)",
        f"dropout: {dropout} (model.dropout)",
        f"fused: {fused} (model.fused)",
        f"batches: {order} (train.train_sampling_strategy)",
        f"compile: {compiled} (train.torch_compile)",
        f"checkpointing of activations: {saves} (train.activation_checkpointing)",
    ]

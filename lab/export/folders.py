"""Giving a merge away: a PEFT folder with a model card, or the base model with the merge folded in."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from lab.errors import LabError
from lab.export.card import FIGURE, coefficients_figure, model_card
from lab.export.gguf import FILE, adapter_gguf
from lab.export.report import SetReport, base_config
from lab.files import atomic_folder, could_not_write, write_atomic
from lab.lora.adapter import LoraAdapter, filled
from lab.lora.base import base_folder, check_base, load_base
from lab.lora.peft_io import CONFIG, DTYPES, save, targets
from lab.lora.stacked import fold
from lab.merging import FullRankMerge

_OURS = (CONFIG, "config.json", "router.safetensors")


def check_free(folder: str | Path, overwrite: bool = False) -> None:
    """Raise LabError when `folder` may not be written: it exists, or it is to be overwritten but holds no model."""
    folder = Path(folder)
    if not folder.exists():
        return
    if not overwrite:
        raise LabError(f"{folder} exists already; choose another folder or ask to overwrite it.")
    known = folder.is_dir() and (not any(folder.iterdir()) or any((folder / n).is_file() for n in _OURS))
    if not known:
        raise LabError(f"{folder} holds no adapter or model, so it is not overwritten; choose another folder.")


def export(
    folder: str | Path,
    adapter: LoraAdapter,
    *,
    report: SetReport | None = None,
    dtype: str = "float32",
    pad_to_rank: int | None = None,
    fill_layers: bool = False,
    gguf: bool = False,
    overwrite: bool = False,
) -> None:
    """Write an adapter as `lab.lora.peft_io.save` does, with a model card and, where it has coefficients, their figure.

    report: of what was merged, for the card. fill_layers: with updates of zero where a layer lacks a kind of module. gguf: also
    as a GGUF file, for which the base's configuration is read. Raises LabError as `save`, `check_free` and `adapter_gguf` do.
    """
    check_free(folder, overwrite)
    adapter = filled(adapter) if fill_layers else adapter
    if gguf and not adapter.base:
        raise LabError("A GGUF adapter is written for one base, which these adapters do not name; give it by --base.")
    beside = {FILE: adapter_gguf(adapter, base_config(adapter.base), dtype=dtype, base_name=adapter.base)} if gguf else {}
    figure = coefficients_figure(adapter.recipe)
    card = model_card(
        name=adapter.name,
        base=adapter.base,
        recipe=adapter.recipe,
        rank=pad_to_rank or adapter.rank,
        report=report,
        figure=figure is not None,
        gguf=gguf,
        suffixes=targets(adapter.modules) != list(adapter.modules),
    )
    beside |= {"README.md": card} | ({FIGURE: figure} if figure else {})
    save(folder, adapter, dtype=dtype, pad_to_rank=pad_to_rank, beside=beside, overwrite=overwrite)


def fold_into(
    base: str,
    merged: LoraAdapter | FullRankMerge,
    folder: str | Path,
    *,
    report: SetReport | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write the base model with a merge added to its weights: a transformers folder with tokenizer, recipe and card.

    base: "embedded", a folder or a Hub id. merged: an adapter, or a merge of full rank, which loses nothing. dtype: of
    the weights written, default the base's own; sums are formed in fp32. Raises LabError as `load_base`, `fold` and
    `check_free` do, for a quantised base, for a full disk, for a dtype that overflows, and when what was written is not, read
    again, what was meant.
    """
    check_free(folder, overwrite)
    check_base(base, folding=True)
    if dtype is not None and dtype not in DTYPES:
        raise LabError(f"Unknown dtype {dtype!r}; choose one of {', '.join(DTYPES)}.")
    stored = _stored_dtype(base)
    target = dtype or stored
    loaded = stored if target == stored else "float32"
    model, tokenizer = load_base(base, dtype=loaded, device="cpu")
    fold(model, merged)
    for name, parameter in model.named_parameters():
        parameter.data.copy_(parameter.to(DTYPES[target]))
        if not parameter.isfinite().all():
            raise LabError(f"{name} of the folded model overflows {target}; choose float32 or bfloat16.")
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"] or [0]])
    expected = _logits(model, ids)
    model = model.to(DTYPES[target])
    figure = coefficients_figure(merged.recipe)
    card = model_card(
        name=merged.name, base=base, recipe=merged.recipe, rank=None, report=report, figure=figure is not None
    )
    with atomic_folder(folder, overwrite) as temporary:
        try:
            model.save_pretrained(temporary)
        except SafetensorError as error:
            raise could_not_write(folder, error) from error
        for weights in temporary.glob("*.safetensors"):
            weights.chmod(0o644)  # safetensors leaves it to the owner alone
        tokenizer.save_pretrained(temporary)
        for name, content in _processor(base).items():
            write_atomic(temporary / name, content)
        del model  # two of them need not fit
        _check_written(temporary, loaded, ids, expected)
        recipe = {**merged.recipe, "folded_into": base}
        write_atomic(temporary / "recipe.json", json.dumps(recipe, indent=2, ensure_ascii=False) + "\n")
        write_atomic(temporary / "README.md", card)
        if figure:
            write_atomic(temporary / FIGURE, figure)


PROCESSOR = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")


def _processor(base: str) -> dict[str, bytes]:
    """The base's files that say how pictures and sounds become its input, by name; none for a model that reads text only."""
    folder = base_folder(base)
    if not folder.is_dir():
        if base_config(base).get_text_config() is base_config(base):
            return {}
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError

        try:
            folder = Path(snapshot_download(base, allow_patterns=list(PROCESSOR)))
        except (HfHubHTTPError, OSError) as error:
            raise LabError(f"The processor files of {base} could not be fetched from the Hub; download the base and give its folder.") from error
    return {name: (folder / name).read_bytes() for name in PROCESSOR if (folder / name).is_file()}


PROMPT = "Three and four are seven. The answer is"


@torch.no_grad()
def _logits(model: nn.Module, ids: Tensor) -> Tensor:
    return model(input_ids=ids.to(model.device)).logits.float().cpu()


def _check_written(folder: Path, dtype: str, ids: Tensor, expected: Tensor) -> None:
    """Raise LabError unless the model read from the folder answers as the one that was written did."""
    found = _logits(load_base(str(folder), dtype=dtype, device="cpu")[0], ids)
    error = float((found - expected).norm() / expected.norm())
    if not error < 1e-3:  # also where it is NaN
        raise LabError(
            f"The folded model, read again, answers otherwise (relative error of its logits {error:.2g}), so nothing was written; "
            f"give the merge as an adapter instead of folding it."
        )


def _stored_dtype(base: str) -> str:
    """The dtype in which the base's weights are kept; float32 when its configuration does not say."""
    stored = base_config(base).dtype
    return next((name for name, kind in DTYPES.items() if kind == stored), "float32")

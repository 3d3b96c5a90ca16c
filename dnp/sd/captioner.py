"""Words for a picture: the captions that turn a DNS image into a diffusion-negative prompt n*.

The captioner of DNP is any callable picture -> text, such as a person at the keyboard; that of
auto-DNP is a callable pictures -> texts, and `load_captioner` makes it from a transformers folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image

from dnp.errors import WeightsError, memory_is_full
from dnp.methods.words import Captioner
from dnp.sd.files import data_only


def load_captioner(
    folder: str | Path,
    device: str | torch.device = "cpu",
    allow_download: bool = False,
    batch: int | None = None,
    most_tokens: int = 40,
) -> Captioner:
    """A captioner from a transformers image-text-to-text folder: BLIP, BLIP-2, GIT, ViT-GPT2, ...

    Greedy decoding of at most `most_tokens` tokens; on a CPU in float32, one picture at a time, so
    that no caption depends on another, and on a GPU in float16, `batch` (16) at a time. `folder` is
    a local folder; with `allow_download` it may be a model's name, whose folder is fetched. Only
    safetensors files are opened and no code of the folder runs (`dnp/sd/files/data_only.py`). It
    captions one blank picture first. WeightsError says what is wrong with it.
    """
    if not os.path.isfile(os.path.join(folder, "config.json")):
        if inside := data_only.lies_in(folder, "config.json"):
            raise WeightsError(f"{folder} is a folder of the hub's cache; give {inside}.")
        if not allow_download:
            raise WeightsError(
                f"{folder}: no captioner is there (no config.json); give a transformers "
                "image-to-text folder, or --allow-download with a model's name."
            )
        folder = download(str(folder))
    data_only.check_folder(folder)
    device = torch.device(device)
    size = batch or (1 if device.type == "cpu" else 16)
    with quiet_transformers():
        from transformers import AutoModelForImageTextToText

        dtype = torch.float16 if device.type == "cuda" else torch.float32
        try:
            read, write = _processors(folder)
            model, info = AutoModelForImageTextToText.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, output_loading_info=True,
                **data_only.DATA_ONLY,
            )  # fmt: skip
        except Exception as e:  # transformers raises whatever its parsers raise
            raise WeightsError(
                f"{folder}: not a captioner that transformers opens ({_reason(e)}); give an "
                "image-to-text folder such as BLIP's."
            ) from None
    refuse_random(folder, info)
    model = model.to(device).eval()

    if getattr(model.config, "image_token_index", 0) is None:  # a BLIP-2 of before it had one
        # any token but the first of a text: the picture's embeddings take the place of its own
        model.config.image_token_index = model.get_input_embeddings().num_embeddings - 1
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions:  # a captioner that does not end its sentence would go past its last one
        most_tokens = min(most_tokens, positions - 2)

    @torch.inference_mode()
    def captions(images: Sequence[Image.Image], most_tokens: int = most_tokens) -> list[str]:
        texts = []
        for i in range(0, len(images), size):
            part = [image.convert("RGB") for image in images[i : i + size]]
            try:
                inputs = read(images=part, return_tensors="pt").to(device, dtype)
                tokens = model.generate(**inputs, max_new_tokens=most_tokens, do_sample=False)
                texts += write(tokens, skip_special_tokens=True)
            except Exception as e:  # what its configs ask for may be impossible
                if memory_is_full(e):
                    raise
                raise WeightsError(
                    f"{folder}: it cannot caption ({_reason(e)}); give another."
                ) from None
        return [" ".join(t.split()) for t in texts]

    with quiet_transformers():
        captions([Image.new("RGB", (64, 64))], 1)  # now, and not after a DNS image was made
    return captions


def _processors(folder: str | Path) -> tuple[Callable, Callable]:
    """What reads pictures and what writes tokens as text: a folder's processor, or its image
    processor and its tokenizer."""
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, ProcessorMixin

    both = AutoProcessor.from_pretrained(folder, **data_only.DATA_ONLY)
    if isinstance(both, ProcessorMixin):
        return both, both.batch_decode
    pictures = AutoImageProcessor.from_pretrained(folder, **data_only.DATA_ONLY)
    return pictures, AutoTokenizer.from_pretrained(folder, **data_only.DATA_ONLY).batch_decode


def download(name: str) -> str:
    """The folder of a model that is fetched by its name: configs, then, if they are only data, its
    safetensors files. WeightsError if it cannot be had."""
    from huggingface_hub import snapshot_download  # transformers' own way to a model

    texts = ["*.json", "*.txt", "*.model"]
    try:
        folder = snapshot_download(name, allow_patterns=texts)
        data_only.check_folder(folder)
        same = os.path.basename(folder)  # the commit that was checked
        return snapshot_download(
            name, revision=same, allow_patterns=[*texts, "*.safetensors"],
            ignore_patterns=["*/*.safetensors"],
        )  # fmt: skip
    except WeightsError:
        raise
    except Exception as e:  # no network, no such name, a full disk: whatever the hub's client says
        raise WeightsError(f"{name}: cannot be fetched ({_reason(e)}); give a folder.") from None


def _reason(e: Exception) -> str:
    return str(e).strip().split("\n")[0][:200]


def refuse_random(folder: str | Path, info: dict) -> None:
    """WeightsError if transformers filled in weights that a file lacks; `info` is its own."""
    if info["missing_keys"] or info["mismatched_keys"]:
        some = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))[:3]
        raise WeightsError(
            f"{folder}: its file lacks weights ({', '.join(some)}), which would be random; restore "
            "the file."
        )


@contextmanager
def quiet_transformers():
    """transformers' notes on itself (image processors without torchvision, progress bars) are not
    for the reader of a caption."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()

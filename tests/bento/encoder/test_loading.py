"""Loading a model imports only the libraries that it needs, and maps its weights from the file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from bento import Encoder, Settings
from bento.contract.errors import ModelLoadError
from tests.support.bento.architectures import TEXT, TIMM, VIT, bert_config
from tests.support.paths import BUNDLED, ROOT
from tests.support.reference import Reference

pytestmark = pytest.mark.service

DIM: Final = 64
PREPROCESS: Final = {
    "mean": open_clip.OPENAI_DATASET_MEAN,
    "std": open_clip.OPENAI_DATASET_STD,
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


def run_code(code: str, *arguments: str) -> str:
    """Return the output of a new interpreter, which has imported nothing yet."""
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def make_checkpoint(folder: Path, vision: dict[str, Any], text: dict[str, Any]) -> str:
    """Write a model with random weights, and return its MODEL_NAME."""
    torch.manual_seed(1)
    config = {"embed_dim": DIM, "vision_cfg": vision, "text_cfg": text, "custom_text": True}
    made = open_clip.CustomTextCLIP(DIM, vision, text)
    described = {"model_cfg": config, "preprocess_cfg": PREPROCESS}
    folder.mkdir(exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    weights = {name: value.contiguous() for name, value in made.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


def test_each_model_imports_only_the_libraries_that_it_needs(tmp_path: Path) -> None:
    hugging_face = make_checkpoint(
        tmp_path / "hf",
        VIT,
        TEXT | {"hf_model_name": bert_config(tmp_path / "bert"), "hf_model_pretrained": False},
    )
    timm = make_checkpoint(tmp_path / "timm", TIMM, TEXT)
    names = [BUNDLED, hugging_face, timm]
    code = """
import sys
import numpy as np
from PIL import Image
from bento import Encoder, Settings
image = Image.linear_gradient("L").convert("RGB")
for i, name in enumerate(sys.argv[2:]):
    encoder = Encoder.load(Settings(model_name=name, device="cpu", dtype="float32"))
    rows = encoder.encode_texts(["a red cat"]), encoder.encode_images([image])
    np.save(f"{sys.argv[1]}/{i}.npy", np.concatenate(rows))
    if i == 0:
        print(*{"open_clip", "transformers", "timm", "torch._dynamo"} & sys.modules.keys())
# a delayed import works later
import torch
from torchvision.ops import roi_align
print(roi_align(torch.ones(1, 1, 4, 4), [torch.tensor([[0.0, 0, 4, 4]])], 1).item())
print(torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item())
"""
    assert run_code(code, str(tmp_path), *names).split() == ["open_clip", "1.0", "2.0"]
    image = Image.linear_gradient("L").convert("RGB")
    for i, name in enumerate(names):
        model, preprocess = open_clip.create_model_from_pretrained(name)
        by_hand = Reference(model, preprocess, open_clip.get_tokenizer(name))
        expected = np.concatenate([by_hand.texts(["a red cat"]), by_hand.images([image])])
        np.testing.assert_allclose(np.load(tmp_path / f"{i}.npy"), expected, atol=1e-5)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, for /proc/self/maps")
def test_the_weights_are_mapped_from_the_file(tmp_path: Path) -> None:
    name = make_checkpoint(tmp_path / "model", VIT, TEXT)
    encoder = Encoder.load(Settings(model_name=name, device="cpu", dtype="float32"))
    mapped = [
        range(*(int(end, 16) for end in line.split()[0].split("-")))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith("open_clip_model.safetensors") and str(tmp_path) in line
    ]
    weights = [*encoder.image.module.parameters(), *encoder.text.module.parameters()]
    assert len(weights) > 40
    for weight in weights:
        assert any(weight.data_ptr() in pages for pages in mapped)


def test_a_checkpoint_without_a_weight_is_rejected(tmp_path: Path) -> None:
    name = make_checkpoint(tmp_path / "model", VIT, TEXT)
    file = tmp_path / "model" / "open_clip_model.safetensors"
    weights = load_file(file)
    del weights["visual.proj"]
    save_file({key: value.clone() for key, value in weights.items()}, file)
    with pytest.raises(ModelLoadError, match=r"Missing key.*visual\.proj"):
        Encoder.load(Settings(model_name=name, device="cpu", dtype="float32"))


def test_a_checkpoint_in_another_dtype_is_converted(tmp_path: Path) -> None:
    name = make_checkpoint(tmp_path / "model", VIT, TEXT)
    file = tmp_path / "model" / "open_clip_model.safetensors"
    save_file({key: value.half() for key, value in load_file(file).items()}, file)
    encoder = Encoder.load(Settings(model_name=name, device="cpu", dtype="float32"))
    model, preprocess = open_clip.create_model_from_pretrained(name)
    by_hand = Reference(model, preprocess, open_clip.get_tokenizer(name))
    assert next(encoder.image.module.parameters()).dtype == torch.float32
    np.testing.assert_allclose(
        encoder.encode_texts(["a red cat"]), by_hand.texts(["a red cat"]), atol=1e-5
    )


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, for /proc/self/task")
def test_only_one_thread_has_an_openmp_team() -> None:
    code = f"""
import os, threading
from concurrent.futures import ThreadPoolExecutor
from PIL import Image
from bento import Encoder, Settings
def threads_of_libraries():
    python = {{str(thread.native_id) for thread in threading.enumerate()}}
    return len(set(os.listdir("/proc/self/task")) - python)
before = threads_of_libraries()  # of NumPy's OpenBLAS
encoder = Encoder.load(Settings(model_name={BUNDLED!r}, device="cpu"), cpus=2)
print(threads_of_libraries() - before)
image = Image.linear_gradient("L").convert("RGB")
with ThreadPoolExecutor(3) as threads:
    texts = [threads.submit(encoder.encode_texts, ["red"] * 40) for _ in range(6)]
    images = [threads.submit(encoder.encode_images, [image] * n) for n in (1, 20, 1)]
    assert sum(len(each.result()) for each in texts + images) == 262
    print(threads_of_libraries() - before)
"""
    # MKL and the rest of torch each have a runtime, and a team of 2 has 1 thread of its own
    assert run_code(code) == "2\n2\n"

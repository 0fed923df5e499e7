"""The encoder computes the same embeddings as OpenCLIP, and explains what it cannot load."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from bento import Encoder, Settings
from bento.contract.errors import EncoderError, ModelLoadError, NotAnImage
from bento.encoder.devices import look
from bento.encoder.loading import errors_with_advice
from models.shapes import MODEL_DIR
from tests.support.paths import BUNDLED, ROOT
from tests.support.pictures import file_bytes, scene_image
from tests.support.reference import Reference

pytestmark = pytest.mark.service

TEXTS = ["a large red circle on a yellow background", "маленька синя зірка", "x " * 500]
GOLDEN = json.loads((ROOT / "tests/support/golden.json").read_text())


def assert_same(got: Any, wanted: Any) -> None:
    np.testing.assert_allclose(got, np.asarray(wanted), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_an_image_is_embedded_as_open_clip_does(
    encoder: Encoder, reference: Reference, tmp_path: Path, format: str, normalize: bool
) -> None:
    path = tmp_path / "picture"
    path.write_bytes(file_bytes(scene_image(1), format))
    wanted = reference.image(Image.open(path), normalize)
    for given in (path, path.read_bytes(), Image.open(path).convert("RGB")):
        assert_same(encoder.encode_images([given], normalize=normalize)[0], wanted)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_embedded_as_open_clip_does(
    encoder: Encoder, reference: Reference, text: str, normalize: bool
) -> None:
    assert_same(
        encoder.encode_texts([text], normalize=normalize)[0], reference.text(text, normalize)
    )


def test_an_item_has_the_same_embedding_in_a_batch_of_16_as_alone(
    encoder: Encoder, reference: Reference
) -> None:
    images = [scene_image(seed, side=100 + 10 * seed) for seed in range(16)]
    texts = [f"{seed} red circles " * (seed + 1) for seed in range(16)]
    got_images, got_texts = encoder.encode_images(images), encoder.encode_texts(texts)
    for i in range(16):
        assert_same(got_images[i], reference.image(images[i], True))
        assert_same(got_texts[i], reference.text(texts[i], True))


def test_embeddings_of_several_batches_keep_their_order(encoder: Encoder) -> None:
    texts = [f"{i} stars" for i in range(70)]
    together = encoder.encode_texts(texts)
    assert together.shape == (70, encoder.embedding_dim)
    assert_same(together[69], encoder.encode_texts([texts[69]])[0])


def load(**options: int) -> Encoder:
    settings = Settings(model_name=BUNDLED, device="cpu", dtype="float32")
    return Encoder.load(settings, **options)


@pytest.fixture
def threads() -> Iterator[None]:
    """Restore the number of torch's threads, which an encoder sets for the whole process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def on_three_cores(threads: None) -> Encoder:
    return load(cpus=3)


def test_images_are_computed_in_per_core_batches(
    on_three_cores: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [file_bytes(scene_image(seed)) for seed in range(29)]
    wanted = [on_three_cores.encode_images([image])[0] for image in images]
    calls: list[tuple[str, int, int]] = []

    def watched(embed: Any, items: Any) -> Any:
        name = threading.current_thread().name.partition("_")[0]
        calls.append((name, torch.get_num_threads(), len(items)))
        return embed(items)

    for tower in (on_three_cores.image, on_three_cores.text):
        monkeypatch.setattr(tower, "embed", partial(watched, tower.embed))
    assert on_three_cores.image_batch == 24
    assert_same(on_three_cores.encode_images(images), wanted)
    assert sorted(calls) == sorted([("core", 1, size) for size in (8, 8, 8, 1, 2, 2)])
    calls.clear()
    on_three_cores.encode_texts(["red"])
    assert_same(on_three_cores.encode_images(images[:1]), wanted[:1])
    assert calls == [("all-cores", 3, 1)] * 2  # texts and a single image use all cores


def test_no_image_is_computed_if_one_is_broken(
    on_three_cores: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_three_cores.image, "embed", None)
    good = file_bytes(scene_image(1))
    with pytest.raises(NotAnImage):
        on_three_cores.encode_images([good] * 5 + [b"none"] + [good] * 5)


@pytest.mark.parametrize("count", [1, 10])
def test_a_batch_that_exceeds_the_memory_is_computed_in_halves(
    on_three_cores: Encoder, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    images = [scene_image(seed) for seed in range(count)]
    wanted = on_three_cores.encode_images(images)
    embed, limit = on_three_cores.image.embed, 1

    def limited(items: Any) -> Any:
        if len(items) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return embed(items)

    monkeypatch.setattr(on_three_cores.image, "embed", limited)
    assert_same(on_three_cores.encode_images(images), wanted)
    limit = 0
    with pytest.raises(torch.OutOfMemoryError):
        on_three_cores.encode_images(images)


def test_a_lost_device_raises_an_error_that_names_it(
    on_three_cores: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(items: Any) -> Any:
        raise torch.AcceleratorError("an illegal memory access was encountered")

    monkeypatch.setattr(on_three_cores.image, "embed", lost)
    for count in (1, 10):
        with pytest.raises(EncoderError, match="cpu is lost: an illegal memory access"):
            on_three_cores.encode_images([scene_image(1)] * count)


class Concurrency:
    """Counts how many threads are in watched functions at the same time."""

    def __init__(self) -> None:
        self.most = 0
        self._inside: list[None] = []

    def watch(self, function: Any) -> Any:
        def call(given: Any) -> Any:
            self._inside.append(None)
            time.sleep(0.03)  # time for other threads to enter
            self.most = max(self.most, len(self._inside))
            self._inside.pop()
            return function(given)

        return call


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("large_pixels", "most"), [(64 * 64 - 1, 1), (64 * 64, 3)])
def test_large_pictures_are_decoded_one_at_a_time(
    monkeypatch: pytest.MonkeyPatch, large_pixels: int, most: int
) -> None:
    encoder, decoding = load(cpus=3, large_pixels=large_pixels), Concurrency()
    monkeypatch.setattr(encoder.image, "prepare", decoding.watch(encoder.image.prepare))
    encoder.encode_images([file_bytes(scene_image(1, side=64))] * 9)
    assert decoding.most == most


@pytest.mark.usefixtures("threads")
def test_a_batch_on_the_whole_device_runs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, computing = load(cpus=1), Concurrency()
    for tower in (encoder.image, encoder.text):
        monkeypatch.setattr(tower, "embed", computing.watch(tower.embed))
    with ThreadPoolExecutor(4) as pool:
        images = [pool.submit(encoder.encode_images, [scene_image(n)] * 3) for n in range(4)]
        texts = [pool.submit(encoder.encode_texts, ["red"]) for _ in range(4)]
        assert {len(each.result()) for each in images + texts} == {3, 1}
    assert computing.most == 1


def test_embeddings_are_float32_rows_of_length_one(encoder: Encoder) -> None:
    embeddings = encoder.encode_texts(TEXTS)
    assert embeddings.dtype == np.float32
    assert embeddings.shape == (3, encoder.embedding_dim)
    assert_same(np.linalg.norm(embeddings, axis=1), np.ones(3))
    assert encoder.encode_images([]).shape == (0, encoder.embedding_dim)


def test_one_string_instead_of_a_list_is_rejected(encoder: Encoder) -> None:
    with pytest.raises(TypeError, match="pass a list of strings"):
        encoder.encode_texts("red")


def test_the_bundled_model_gives_its_golden_embeddings(encoder: Encoder) -> None:
    # after new training, `python -m tests.support.golden` writes them again
    assert encoder.weights_digest == GOLDEN["weights_digest"]
    assert_same(encoder.encode_texts(list(GOLDEN["texts"])), list(GOLDEN["texts"].values()))
    assert_same(encoder.encode_images([scene_image(7)])[0], GOLDEN["scene_7"])


def test_bfloat16_stays_close_to_float32(encoder: Encoder) -> None:
    half = Encoder.load(Settings(model_name=BUNDLED, device="cpu", dtype="bfloat16"))
    assert half.dtypes == {"text": "bfloat16", "image": "bfloat16"}
    assert half.weights_digest == encoder.weights_digest
    cosines = (half.encode_texts(TEXTS) * encoder.encode_texts(TEXTS)).sum(1)
    assert cosines.min() > 0.999


def test_other_weights_have_another_digest(encoder: Encoder, tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = json.loads((MODEL_DIR / "open_clip_config.json").read_text())
    model = open_clip.CLIP(**config["model_cfg"])
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    other = Encoder.load(Settings(model_name=f"local-dir:{tmp_path}", device="cpu"))
    assert other.weights_digest != encoder.weights_digest


def changed(folder: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Settings:
    """Return the settings of the bundled model, with its configuration and weights changed."""
    config = json.loads((MODEL_DIR / "open_clip_config.json").read_text())
    weights = load_file(MODEL_DIR / "open_clip_model.safetensors")
    change(config["model_cfg"], weights)
    save_file(weights, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return Settings(model_name=f"local-dir:{folder}", device="cpu", dtype="float32")


def test_another_configuration_of_the_same_weights_has_another_digest(
    encoder: Encoder, tmp_path: Path
) -> None:
    def change(config: dict[str, Any], weights: dict[str, Any]) -> None:
        config["quick_gelu"] = not config.get("quick_gelu", False)

    assert Encoder.load(changed(tmp_path, change)).weights_digest != encoder.weights_digest


def test_damaged_weights_are_rejected(tmp_path: Path) -> None:
    def change(config: dict[str, Any], weights: dict[str, Any]) -> None:
        weights["ln_final.weight"][0] = float("nan")

    with pytest.raises(ModelLoadError, match=r"damaged, because ln_final\.weight contains NaN"):
        Encoder.load(changed(tmp_path, change))


def test_weights_that_need_quick_gelu_are_rejected_for_a_model_without_it() -> None:
    warning = "QuickGELU mismatch between final model config (quick_gelu={}) and pretrained tag"
    with pytest.raises(ModelLoadError, match="QuickGELU"), errors_with_advice(Settings()):
        warnings.warn(warning.format(False), UserWarning, stacklevel=1)
    with errors_with_advice(Settings()), pytest.warns(UserWarning, match="mismatch"):
        warnings.warn(warning.format(True), UserWarning, stacklevel=1)  # as of roberta-ViT-B-32


def test_bfloat16_runs_on_a_cpu_without_16_bit_instructions() -> None:
    code = f"""
from bento import Encoder, Settings
encoder = Encoder.load(Settings(model_name={BUNDLED!r}, device="cpu", dtype="bfloat16"))
print(*encoder.encode_texts([{TEXTS[0]!r}])[0])
"""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    given = np.array(run.stdout.split(), np.float32)
    assert given @ np.array(GOLDEN["texts"][TEXTS[0]], np.float32) > 0.999


@pytest.mark.parametrize(
    ("model_name", "model_pretrained", "wording"),
    [
        ("ViT-L-99", "openai", r"MODEL_NAME=ViT-L-99 .* allowed: .*open_clip\.list_pretrained"),
        ("ViT-B-32", "nobody", r"MODEL_PRETRAINED=nobody: allowed"),
        ("local-dir:/nowhere", "openai", r"must hold open_clip_config\.json and the weights"),
    ],
)
def test_an_unknown_model_is_rejected_with_advice(
    model_name: str, model_pretrained: str, wording: str
) -> None:
    with pytest.raises(ModelLoadError, match=wording):
        Encoder.load(
            Settings(model_name=model_name, model_pretrained=model_pretrained, device="cpu")
        )


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_an_unavailable_device_is_rejected() -> None:
    with pytest.raises(ModelLoadError, match=r"DEVICE=cuda:7: .* set DEVICE=cpu"):
        Encoder.load(Settings(model_name=BUNDLED, device="cuda:7"))


class Libcuda:
    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 12020
        return 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_torch_and_the_driver_are_examined(tmp_path: Path) -> None:
    gpus = look(tmp_path, lambda _: Libcuda())
    assert (gpus.torch, gpus.cuda) == (torch.__version__, torch.version.cuda or "")
    assert (gpus.driver_cuda, gpus.module) == ("12.2", False)
    assert (gpus.count, gpus.devices, gpus.capabilities) == (0, [], [])
    assert gpus.devices_error == "Found no NVIDIA driver on your system"
    assert "sm_86" in gpus.architectures
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").touch()
    assert look(tmp_path, lambda _: Libcuda()).module


@pytest.mark.parametrize("error", [RuntimeError, AssertionError, torch.cuda.DeferredCudaCallError])
def test_a_gpu_that_torch_cannot_initialize_is_examined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def init() -> None:
        raise error("device < num_gpus INTERNAL ASSERT FAILED\n\nCUDA call was at: ...")

    monkeypatch.setattr(torch.cuda, "init", init)
    gpus = look(tmp_path, lambda _: Libcuda())
    assert gpus.devices_error == "device < num_gpus INTERNAL ASSERT FAILED"


def test_a_broken_checkpoint_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_bytes(
        (MODEL_DIR / "open_clip_config.json").read_bytes()
    )
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelLoadError):
        Encoder.load(Settings(model_name=f"local-dir:{tmp_path}", device="cpu"))


class Trap:
    """An object that writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.file, "sprung")


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("open_clip_pytorch_model.bin", lambda file, trap: torch.save({"weight": trap}, file)),
        ("open_clip_pytorch_model.bin", lambda file, trap: file.write_bytes(pickle.dumps(trap))),
        ("checkpoint.pt", lambda file, trap: torch.save({"weight": trap}, file)),
        ("checkpoint.npy", lambda file, trap: np.save(file, np.array([trap], dtype=object))),
    ],
)
def test_code_in_a_checkpoint_does_not_run(tmp_path: Path, name: str, write: Any) -> None:
    sprung = tmp_path / "sprung"
    trap = Trap(sprung)
    pickle.loads(pickle.dumps(trap))
    assert sprung.exists()  # the trap works
    sprung.unlink()
    shutil.copy(MODEL_DIR / "open_clip_config.json", tmp_path)
    write(tmp_path / name, trap)
    settings = Settings(model_name=f"local-dir:{tmp_path}", device="cpu")
    if name.startswith("checkpoint"):
        settings = Settings(model_name="RN50", model_pretrained=f"{tmp_path / name}", device="cpu")
    with pytest.raises(ModelLoadError, match="the checkpoint holds more than tensors") as caught:
        Encoder.load(settings)
    assert not sprung.exists()
    assert "False" not in str(caught.value)  # `weights_only=False` would run the code


def run_offline(code: str, cache: Path) -> str:
    """Run code in a new interpreter that cannot reach a model hub, and return its output."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(cache), "DEVICE": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_default_model_without_a_network_is_rejected_with_advice(tmp_path: Path) -> None:
    out = run_offline(
        """
import open_clip
from bento import Encoder, EncoderError, Settings
settings = Settings()
config = open_clip.get_model_config(settings.model_name)
tokens = open_clip.get_tokenizer(settings.model_name)(["a cat"])
print(settings.model_name, settings.model_pretrained, config["embed_dim"], tokens.shape[1])
try:
    Encoder.load(settings)
except EncoderError as error:
    print(error)
""",
        tmp_path,
    )
    first, error = out.strip().split("\n", 1)
    assert first == "ViT-L-14 openai 768 77"
    for advice in ("HF_HOME", "MODEL_PRETRAINED to a checkpoint file", "local-dir:models/shapes"):
        assert advice in error


def fetch_weights(model_name: str, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = {"HF_HOME": str(cache), "HF_HUB_OFFLINE": "1", "MODEL_NAME": model_name}
    return subprocess.run(
        [sys.executable, "-m", "bento.fetch_weights"],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def test_a_read_only_cache_without_the_weights_is_named() -> None:
    cause = OSError(errno.EROFS, "Read-only file system", "/data/weights/models--x")
    failure = RuntimeError("Failed to download weights")
    failure.__context__ = cause
    with pytest.raises(ModelLoadError) as caught, errors_with_advice(Settings()):
        raise failure
    advice = "/data/weights/models--x cannot be written. Mount the cache (HF_HOME)"
    assert advice in str(caught.value)


def test_fetch_weights_loads_the_model(tmp_path: Path) -> None:
    done = fetch_weights(BUNDLED, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "128 dimensions" in done.stdout


def test_fetch_weights_prints_advice_without_a_traceback(tmp_path: Path) -> None:
    done = fetch_weights("ViT-B-32", tmp_path)
    assert done.returncode == 1
    assert "error: cannot load MODEL_NAME=ViT-B-32 MODEL_PRETRAINED=openai" in done.stderr
    assert "HF_HOME" in done.stderr
    assert "Traceback" not in done.stderr


def test_openai_weights_from_a_copied_cache_run_with_quick_gelu(tmp_path: Path) -> None:
    # by default OpenCLIP 3.3 loads them into a GELU model, whose embeddings are wrong
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32", load_weights=False, precision="fp16")
    hub = tmp_path / "hub" / "models--timm--vit_base_patch32_clip_224.openai"
    (hub / "refs").mkdir(parents=True)
    (hub / "refs" / "main").write_text("0" * 40)
    snapshot = hub / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    save_file(model.state_dict(), snapshot / "open_clip_model.safetensors")
    out = run_offline(
        """
from bento import Encoder, Settings
encoder = Encoder.load(Settings(model_name="ViT-B-32", dtype="float32"))
print(encoder.embedding_dim, type(encoder.image.module.transformer.resblocks[0].mlp.gelu).__name__)
""",
        tmp_path,
    )
    assert out.split() == ["512", "SiLU"]  # in place of QuickGELU

"""Loading weights: names, wrappers, other numbers of classes and channels, and clear refusals."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import resnext

pytestmark = pytest.mark.once


def small(**options) -> resnext.ResNeXt:
    return resnext.ResNeXt((2, 1, 1, 1), 4, 2, **{"num_classes": 5, **options}).eval()


def detectron2_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of Detectron2's ResNet, whose normalizations are frozen and count no batches."""
    renamed = {}
    for key, value in state.items():
        if key.endswith("num_batches_tracked"):
            continue
        if key.startswith("layer"):
            stage, rest = int(key[5]), key[6:]
            rest = rest.replace("downsample.0.", "shortcut.").replace(
                "downsample.1.", "shortcut.norm."
            )
            key = f"res{stage + 1}" + re.sub(r"bn([123])", r"conv\1.norm", rest)
        elif key.startswith("fc."):
            key = key.replace("fc.", "linear.")
        else:
            key = "stem." + key.replace("bn1", "conv1.norm")
        renamed[key] = value
    return renamed


WRAPPINGS = {
    "bare": lambda s: s,
    "ddp": lambda s: {f"module.{k}": v for k, v in s.items()},
    "compiled ddp": lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
    "state_dict": lambda s: {"epoch": 3, "state_dict": s, "optimizer": {"state": {}}},
    "model": lambda s: {"model": {f"module.{k}": v for k, v in s.items()}, "step": 1},
    "ema wins": lambda s: {
        "state_dict": {k: torch.zeros_like(v) for k, v in s.items()},
        "state_dict_ema": s,
    },
    "AveragedModel": lambda s: {
        "model_ema": {"n_averaged": torch.tensor(7), **{f"module.{k}": v for k, v in s.items()}}
    },
    "detectron2": detectron2_names,
    "detectron2 checkpoint": lambda s: {
        "model": {f"backbone.bottom_up.{k}": v for k, v in detectron2_names(s).items()},
        "iteration": 5,
    },
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_names_and_wrappers(wrapping: str, tmp_path: Path):
    theirs, ours = small(), small()
    torch.save(WRAPPINGS[wrapping](theirs.state_dict()), tmp_path / "weights.pth")
    report = resnext.load_weights(ours, tmp_path / "weights.pth")
    assert report.naming == ("detectron2" if "detectron2" in wrapping else "torchvision")
    assert (report.adapted, report.unused) == ([], [])
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_round_trip(suffix: str, tmp_path: Path):
    one, other = small().to(memory_format=torch.channels_last), small()
    resnext.save_weights(one, tmp_path / f"weights{suffix}")
    resnext.load_weights(other, tmp_path / f"weights{suffix}")
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())


def test_another_number_of_classes():
    theirs, ours = small(), small(num_classes=7)
    before = ours.fc.weight.clone()
    report = resnext.load_weights(ours, theirs.state_dict(), adapt=True)
    assert report.adapted == [
        "fc.weight is 5x2048 in the file and 7x2048 in the model",
        "fc.bias is 5 in the file and 7 in the model",
    ]
    assert torch.equal(ours.fc.weight, before)
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(ours.forward_features(x), theirs.forward_features(x))


@pytest.mark.parametrize("in_chans", [1, 2, 4, 6])
def test_another_number_of_channels(in_chans: int):
    theirs, ours = small(), small(in_chans=in_chans)
    report = resnext.load_weights(ours, theirs.state_dict(), adapt=True)
    assert len(report.adapted) == 1
    grey = torch.randn(1, 1, 32, 32)
    if in_chans in (1, 6):  # the same response to a grey image
        expected = theirs.forward_features(grey.expand(1, 3, 32, 32))
        found = ours.forward_features(grey.expand(1, in_chans, 32, 32))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    else:
        expected = theirs.conv1.weight[:, [0, 1, 2, 0][:in_chans]] * 3 / in_chans
        torch.testing.assert_close(ours.conv1.weight, expected)


MISMATCHES = {
    "shape": (
        lambda s: {**s, "layer1.0.conv2.weight": torch.zeros(8, 1, 3, 3)},
        "layer1.0.conv2.weight is 8x1x3x3 in the file and 8x2x3x3 in the model",
    ),
    "classes": (
        lambda s: {**s, "fc.weight": torch.zeros(9, 2048)},
        "fc.weight is 9x2048 in the file and 5x2048 in the model (adapt=True accepts that)",
    ),
    "missing": (
        lambda s: {k: v for k, v in s.items() if not k.startswith("layer1.1.conv1")},
        "missing in the file: layer1.1.conv1.weight",
    ),
    "left over": (
        lambda s: {**s, "layer9.0.weight": torch.zeros(1)},
        "unknown to the model: layer9.0.weight",
    ),
    "nothing": (lambda s: {"epoch": 1}, "there are no tensors under the keys epoch"),
}


@pytest.mark.parametrize("mismatch", MISMATCHES)
def test_mismatch_names_the_keys_and_loads_nothing(mismatch: str):
    change, message = MISMATCHES[mismatch]
    model = small()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=re.escape(message)):
        resnext.load_weights(model, change(small().state_dict()))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_another_depth_is_refused_with_few_words():
    with pytest.raises(ValueError, match=r"and [0-9]+ more") as caught:
        resnext.load_weights(resnext.resnext50(8, 1), small().state_dict(), adapt=True)
    assert len(str(caught.value)) < 1000


class Payload:
    def __reduce__(self):
        return (Path.touch, (Path("touched"),))


def test_no_code_is_run_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Payload()}, tmp_path / "trap.pth")
    (tmp_path / "trap.pkl").write_bytes(pickle.dumps({"model": Payload()}))
    for name in ("trap.pth", "trap.pkl"):
        with pytest.raises(RuntimeError, match="without running code"):
            resnext.load_weights(small(), tmp_path / name)
    assert not (tmp_path / "touched").exists()


def test_a_file_that_is_not_there():
    with pytest.raises(FileNotFoundError):
        resnext.load_weights(small(), "no-such-file.pth")


def test_frozen_normalizations_keep_their_count():
    model = small()
    model.bn1.num_batches_tracked.fill_(41)
    resnext.load_weights(model, detectron2_names(small().state_dict()))
    assert int(model.bn1.num_batches_tracked) == 41
    assert isinstance(model.bn1, nn.BatchNorm2d)

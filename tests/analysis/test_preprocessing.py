"""From an image to a tensor."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from analysis import AnalysisError, load_model
from analysis.sources.preprocessing import Preprocessing, own_preprocessing


def image(height: int = 40, width: int = 60) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_by_default_an_image_is_kept() -> None:
    x = image()
    out = Preprocessing().transform()(x)
    torch.testing.assert_close(out, torch.from_numpy(x).permute(2, 0, 1).float() / 255)
    torch.testing.assert_close(Preprocessing().transform()(Image.fromarray(x)), out)
    assert Preprocessing().transform()(x[..., 0]).shape == (1, 40, 60)


def test_resize_crop_and_normalise() -> None:
    plain = Preprocessing(size=16, resize=20).transform()(image())
    assert plain.shape == (3, 16, 16)
    mean, std = (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)
    found = Preprocessing(16, 20, mean=mean, std=std).transform()(image())
    expected = (plain - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(found, expected)


def test_grey_images_get_three_channels() -> None:
    out = Preprocessing(rgb=True).transform()(image()[..., 0])
    assert out.shape == (3, 40, 60)
    assert torch.equal(out[0], out[2])


def test_timms_own() -> None:
    name = "vit_tiny_patch16_224"
    model = load_model(f"timm:{name}", 10)
    config = timm.data.resolve_model_data_config(model)
    theirs = timm.data.create_transform(**config, is_training=False)
    ours = own_preprocessing(f"timm:{name}", model)
    picture = Image.fromarray(image(300, 420))
    torch.testing.assert_close(ours.transform()(picture), theirs(picture), atol=0.02, rtol=0)


def test_torchvisions_own() -> None:
    from torchvision.models import ResNet50_Weights

    ours = own_preprocessing("torchvision:resnet50", torch.nn.Identity())
    picture = Image.fromarray(image(300, 420))
    expected = ResNet50_Weights.DEFAULT.transforms()(picture)
    torch.testing.assert_close(ours.transform()(picture), expected, atol=0.02, rtol=0)


def test_a_model_of_ones_own_may_bring_it() -> None:
    model = torch.nn.Identity()
    assert own_preprocessing("my.module:build", model) == Preprocessing()
    model.preprocessing = Preprocessing(7)  # type: ignore[assignment]
    assert own_preprocessing("my.module:build", model) == Preprocessing(7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mean": (0.5,)}, "1 means and 0 standard deviations"),
        ({"mean": (0.5,), "std": (0.0,)}, "a standard deviation is 0"),
        ({"size": 20, "resize": 10}, "cannot be resized to 10 and cut to 20"),
    ],
)
def test_mistakes(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(AnalysisError, match=message):
        Preprocessing(**arguments)  # type: ignore[arg-type]

import numpy as np
import pytest
import torch

from wespeaker.errors import InputError
from wespeaker.eval.faces.extraction import embed_images
from wespeaker.models import build_model


class Images:
    """Images of random grey pixels; some cannot be read."""

    def __init__(self, count, *, size=16, unreadable=()):
        self.pixels = np.random.default_rng(0).integers(256, size=(count, size, size), dtype=np.uint8)
        self.unreadable = unreadable

    def __len__(self):
        return len(self.pixels)

    def image(self, index):
        if index in self.unreadable:
            raise InputError(f"{index}.png is damaged")
        return np.repeat(self.pixels[index][:, :, None], 3, axis=2)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = build_model("IResNet10", width=4, in_channels=1, image_size=16, embed_dim=8)
    for _ in range(30):
        model(2 * torch.rand(16, 1, 16, 16) - 1)  # moves the running statistics to those of such images
    return model.eval()


def one_by_one(model, images):
    """f(x) and f(x') of each image, with numpy's mirror image and ArcFace's formula for pixels."""
    plain, mirrored = [], []
    with torch.no_grad():
        for pixels in images.pixels:
            for found, side in ((plain, pixels), (mirrored, np.fliplr(pixels))):
                x = (side.astype(np.float32) / 255 - 0.5) / 0.5
                found.append(model(torch.from_numpy(x)[None, None])[0].numpy())
    return np.stack(plain), np.stack(mirrored)


def test_what_flip_does(model):
    images = Images(7)
    plain, mirrored = one_by_one(model, images)
    assert np.abs(plain - mirrored).max() > 0.1
    for flip, expected in (
        ("none", plain),
        ("sum", plain + mirrored),
        ("concat", np.concatenate((plain, mirrored), axis=1)),
    ):
        found = embed_images(model, images, flip=flip, batch_size=3)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_sum_does_not_tell_an_image_from_its_mirror_image(model):
    images, mirrored = Images(5), Images(5)
    mirrored.pixels = mirrored.pixels[:, :, ::-1]
    np.testing.assert_allclose(embed_images(model, images), embed_images(model, mirrored), rtol=1e-5, atol=1e-6)


def test_extraction_is_deterministic_for_any_number_of_workers(model):
    images = Images(9)
    once = embed_images(model, images, batch_size=4)
    assert np.array_equal(once, embed_images(model, images, batch_size=4))
    assert np.array_equal(once, embed_images(model, images, batch_size=4, num_workers=2))


def test_images_are_fitted_to_the_model(model):
    images, larger = Images(3), Images(3)
    larger.pixels = np.pad(images.pixels.repeat(2, axis=1).repeat(2, axis=2), ((0, 0), (0, 0), (4, 4)))
    np.testing.assert_allclose(embed_images(model, larger), embed_images(model, images), rtol=1e-5, atol=1e-6)
    colour = build_model("IResNet10", width=4, image_size=16, embed_dim=8).eval()
    assert embed_images(colour, images).shape == (3, 8)


def test_failures_are_listed_by_name(model):
    images = Images(6, unreadable=(2, 5))
    with pytest.raises(InputError) as caught:
        embed_images(model, images, batch_size=2)
    assert str(caught.value) == "2 of 6 images have no embedding: 2.png is damaged, 5.png is damaged"


def test_an_embedding_that_is_not_finite_is_named(model):
    broken = build_model("IResNet10", width=4, in_channels=1, image_size=16, embed_dim=8).eval()
    torch.nn.init.constant_(broken.features.bias, float("inf"))
    with pytest.raises(InputError, match=r"3 of 3 images have no embedding: a.png has an embedding that is not fin"):
        embed_images(broken, Images(3), names=["a.png", "b.png", "c.png"])


def test_a_model_in_training_and_no_images_are_refused(model):
    with pytest.raises(InputError, match="there are no images"):
        embed_images(model, Images(0))
    training = build_model("IResNet10", width=2, in_channels=1, image_size=16, embed_dim=8)
    with pytest.raises(ValueError, match=r"evaluation mode; call model.eval\(\) first"):
        embed_images(training, Images(2))

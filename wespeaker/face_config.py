"""The typed form of examples/face/conf/*.yaml: that of speakers with other examples and another backbone."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from wespeaker.config import PositiveInt, Section, Share, TrainConfig
from wespeaker.models import check_model
from wespeaker.models.iresnet import STRIDE


class FaceDatasetArgs(Section):
    """What a training example is; half of the images are mirrored, drawn for each image and epoch."""

    image_size: PositiveInt = 112  # pixels, height and width; other images are cut to their middle square and resized
    channels: Literal[1, 3] = 3  # 3: RGB; 1: grey
    max_bad_utts: Share = 0.001  # share of the images that may be unusable, named as for speakers: replaced and listed


class FaceModelArgs(Section):
    """Size of the backbone."""

    embed_dim: PositiveInt = 512
    width: PositiveInt = 64  # channels of the first stage; the others have 2, 4, 8 times as many
    dropout: Share = 0.0  # before the linear layer


class FaceConfig(TrainConfig):
    """One experiment with faces."""

    head_init: Literal["keep", "reinit"] = "keep"  # faces have no speeds
    dataset_args: FaceDatasetArgs = FaceDatasetArgs()
    model: str = "IResNet100"
    model_args: FaceModelArgs = FaceModelArgs()

    @field_validator("model")
    @classmethod
    def _known_model(cls, name: str) -> str:
        return check_model(name, takes="images")

    def _problems(self) -> list[str]:
        size = self.dataset_args.image_size
        uneven = f"dataset_args.image_size must be a multiple of {STRIDE}, such as 48 or 112, found {size}"
        return ([uneven] if size % STRIDE else []) + super()._problems()

"""In WeSpeaker any unknown `project_type` silently becomes plain softmax, so a typo trains the wrong loss for days."""

import pytest

from wespeaker.losses import build_head


@pytest.mark.parametrize("typo", ["arc_margn", "ArcMargin", "arc-margin", "", None, 3])
def test_a_typo_in_project_type_is_an_error(typo):
    with pytest.raises(ValueError, match=r"project_type .*(did you mean|valid names)"):
        build_head({"project_type": typo}, embed_dim=8, num_classes=4)

"""Danger: a misspelt or misplaced key is ignored, and a run silently trains something else."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from edgewise_trainer.config import Document, TrackingSection, load_config, parse_config
from edgewise_trainer.errors import ConfigError
from hypothesis import given
from hypothesis import strategies as st

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits" / "digits.toml"
MINIMAL = '[model]\nname = "m"\n'
SECTIONS = {field.name: field for field in msgspec.structs.fields(Document)}


def test_example_is_valid() -> None:
    config = load_config(EXAMPLE)
    assert config.gate.min_accuracy == 0.97
    assert config.federation.enabled
    assert config.folder == str(EXAMPLE.parent)


def test_unknown_key_is_named_with_the_allowed_ones_and_the_likely_one() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(MINIMAL + "[train]\nepoch = 3\n")
    message = str(caught.value)
    assert "[train]" in message
    assert "'epoch'" in message
    assert "did you mean 'epochs'" in message
    assert "batch_size" in message


@given(
    section=st.sampled_from(sorted(SECTIONS)),
    key=st.from_regex(r"[a-z][a-z_]{0,20}", fullmatch=True),
)
def test_any_unknown_key_is_refused_in_any_section(section: str, key: str) -> None:
    kind = type(getattr(parse_config(MINIMAL), section))
    if key in kind.__struct_fields__:
        return
    text = MINIMAL + f"{key} = 1\n" if section == "model" else MINIMAL + f"[{section}]\n{key} = 1\n"
    with pytest.raises(ConfigError, match=rf"\[{section}\] has no key '{key}'"):
        parse_config(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train]\nepochs = 0\n", r"\[train\]: epochs: .*>= 1"),
        ('[train]\nlr = "fast"\n', r"\[train\]: lr: expected `float`, got `str`"),
        ("[train]\nseed = -1\n", r"\[train\]: seed"),
        ("[gate]\nmin_accuracy = 97\n", r"\[gate\]: min_accuracy"),
        ("train = 3\n", r"\[train\] must be a table"),
        ("[trian]\n", r"has no key 'trian'; did you mean 'train'"),
        ("folder = '/'\n", "has no key 'folder'"),
        ("[federation]\nenabled = true\n", r"needs \[federation.data\]"),
        ("[federation.data]\nnames = 'digits'\n", r"\[federation.data\] has no key 'names'"),
        ("[train]\nepochs = \n", "not TOML"),
    ],
)
def test_errors_name_section_and_key(text: str, message: str) -> None:
    document = text + MINIMAL if text[0] != "[" else MINIMAL + text
    with pytest.raises(ConfigError, match=message):
        parse_config(document)


def test_model_section_is_demanded() -> None:
    with pytest.raises(ConfigError, match=r"\[model\] section"):
        parse_config("[train]\nepochs = 1\n")
    with pytest.raises(ConfigError, match="name"):
        parse_config("[model]\n")


def test_a_name_cannot_climb_out_of_its_folder() -> None:
    with pytest.raises(ConfigError, match=r"\[model\]: name"):
        parse_config('[model]\nname = "../m"\n')


def test_unreadable_file() -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(EXAMPLE.parent / "absent.toml")


def test_digest_follows_what_changes_the_result_and_nothing_else() -> None:
    base = parse_config(MINIMAL)
    assert msgspec.structs.replace(base, folder="elsewhere").sha256 == base.sha256
    assert msgspec.structs.replace(base, tracking=TrackingSection(enabled=False)).sha256 == base.sha256
    changed = [
        parse_config(MINIMAL + "[train]\nseed = 1\n"),
        parse_config(MINIMAL + "[data]\noptions = { seed = 1 }\n"),
        parse_config(MINIMAL + "[gate]\nmin_accuracy = 0.5\n"),
        parse_config('[model]\nname = "other"\n'),
    ]
    digests = {base.sha256, *(c.sha256 for c in changed)}
    assert len(digests) == 5

import json
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from basicsr.utils.errors import UserError
from ldm.modules.encoders.modules import FrozenOpenCLIPEmbedder
from ldm.modules.encoders.tokenizer import ClipTokenizer, clean

TINY = {"width": 64, "layers": 2, "heads": 4}
REFERENCE = json.loads((Path(__file__).parent / "data" / "text_tokens.json").read_text(encoding="utf-8"))
START, END = 49406, 49407


@pytest.fixture(scope="module")
def tokenizer() -> ClipTokenizer:
    return ClipTokenizer()


@pytest.fixture(scope="module")
def tiny() -> FrozenOpenCLIPEmbedder:
    torch.manual_seed(0)
    embedder = FrozenOpenCLIPEmbedder(arch=TINY)
    for name, parameter in embedder.named_parameters():
        if name.endswith(("bias", "ln_1.weight", "ln_2.weight", "ln_final.weight")):  # ones and zeros hide mistakes
            parameter.add_(0.1 * torch.randn_like(parameter))
    return embedder


@pytest.mark.parametrize("case", REFERENCE, ids=lambda case: case["prompt"][:20] or "empty")
def test_tokens_match_openclip(tokenizer: ClipTokenizer, case: dict[str, Any]) -> None:
    row = tokenizer([case["prompt"]])[0].tolist()
    assert row == case["ids"] + [0] * (77 - len(case["ids"]))


def test_rows_do_not_depend_on_their_neighbours(tokenizer: ClipTokenizer) -> None:
    prompts = [case["prompt"] for case in REFERENCE]
    tokens = tokenizer(prompts)
    assert tokens.shape == (len(prompts), 77)
    assert tokens.dtype == torch.int64
    assert torch.equal(tokens, torch.cat([tokenizer([prompt]) for prompt in prompts]))


@pytest.mark.parametrize("blank", ["", "   ", "\n\t\u00a0\u3000", "\ufeff"])
def test_a_blank_prompt_is_start_and_end(tokenizer: ClipTokenizer, blank: str) -> None:
    assert tokenizer([blank])[0, :3].tolist() == [START, END, 0]


@pytest.mark.parametrize("length", [77, 8, 2])
def test_a_long_prompt_keeps_its_beginning_and_the_end_token(tokenizer: ClipTokenizer, length: int) -> None:
    prompt = " ".join(["cat dog"] * 250)
    row = tokenizer([prompt], length)[0].tolist()
    assert row == [START, *(tokenizer.encode("cat") + tokenizer.encode("dog")) * 38][: length - 1] + [END]


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("A  Cat\n\tSLEEPS ", "a cat sleeps"),
        ("salt &amp;amp; pepper", "salt & pepper"),
        ("cafe\u0301", "café"),
        ("the cat’s “hat”", 'the cat\'s "hat"'),
        ("ﬁne ＡＢＣ", "fine abc"),
        ("a\x00b", "ab"),
    ],
)
def test_spelling_variants_are_one_prompt(tokenizer: ClipTokenizer, written: str, plain: str) -> None:
    assert clean(written) == plain
    assert tokenizer.encode(written) == tokenizer.encode(plain)


def test_mojibake_is_left_alone() -> None:
    assert clean("cafÃ©") == "cafã©"


@pytest.mark.parametrize(
    ("joined", "apart"),
    [
        ("2024", "2 0 2 4"),
        ("x²Ⅷ½y", "x ² Ⅷ ½ y"),
        ("cats'll", "cats 'll"),
        ("it's", "it 's"),
        ("a_b", "a _ b"),
        ("(best quality:2),", "( best quality : 2 ),"),
        ("猫1匹", "猫 1 匹"),
        ("!'s", "!' s"),
    ],
)
def test_words_are_split_as_clip_splits_them(tokenizer: ClipTokenizer, joined: str, apart: str) -> None:
    assert tokenizer.encode(joined) == tokenizer.encode(apart)


def test_runs_of_letters_and_of_symbols_are_one_word(tokenizer: ClipTokenizer) -> None:
    assert tokenizer.encode("photo") != tokenizer.encode("pho to")
    assert len(tokenizer.encode("!!!")) == 1
    assert tokenizer.encode("<end_of_text>") == [END]


@pytest.mark.parametrize("ending", ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"])
def test_contractions_are_words_of_their_own(tokenizer: ClipTokenizer, ending: str) -> None:
    assert tokenizer.encode(f"x{ending}") == tokenizer.encode(f"x {ending}")
    assert tokenizer.encode(f"x{ending}") != tokenizer.encode(f"x ' {ending[1:]}")


def test_the_whole_vocabulary_is_in_use(tokenizer: ClipTokenizer) -> None:
    assert sorted(tokenizer._merges.values()) == list(range(512, START))


def test_word_classes_are_unicode_letters_and_numbers(tokenizer: ClipTokenizer) -> None:
    for char in map(chr, range(0, sys.maxunicode, 97)):  # a sample of all planes; no accent joins with q
        if char == "\x00" or clean(char) != char or char == "'":
            continue
        glued = tokenizer.encode(f"q{char}") != tokenizer.encode(f"q {char}")
        assert glued == (unicodedata.category(char)[0] == "L"), hex(ord(char))


@pytest.mark.parametrize("text", ["🐈‍⬛ 👍🏽", "日本語の猫", "שלום", "naïve №5 — ok", "\ud800 lone", "x" * 3000])
def test_any_text_gives_ids_of_the_vocabulary(tokenizer: ClipTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids
    assert all(0 <= i < START for i in ids)


def test_a_prompt_that_is_not_text_is_refused(tokenizer: ClipTokenizer) -> None:
    with pytest.raises(UserError, match="prompt 5 is of type int"):
        tokenizer([5])  # type: ignore[list-item]  # wrong on purpose


def pytorch_encoder(embedder: FrozenOpenCLIPEmbedder, layers: int) -> nn.TransformerEncoder:
    """Torch's own encoder with the first `layers` blocks of a tiny tower and its final normalisation."""
    layer = nn.TransformerEncoderLayer(64, 4, 256, dropout=0, activation="gelu", batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(64), enable_nested_tensor=False)
    names = {"attn.": "self_attn.", "mlp.c_fc.": "linear1.", "mlp.c_proj.": "linear2."}
    names |= {"ln_1.": "norm1.", "ln_2.": "norm2."}
    state = {}
    for key, value in embedder.model.state_dict().items():
        if key.startswith("ln_final."):
            state[key.replace("ln_final", "norm")] = value
        elif key.startswith("transformer.resblocks.") and int(key.split(".")[2]) < layers:
            for ours, theirs in names.items():
                key = key.replace(ours, theirs)
            state[key.replace("transformer.resblocks", "layers")] = value
    encoder.load_state_dict(state)
    return encoder


@pytest.mark.parametrize(("layer", "layers"), [("penultimate", 1), ("last", 2)])
def test_tower_equals_torchs_transformer(tiny: FrozenOpenCLIPEmbedder, layer: str, layers: int) -> None:
    embedder = FrozenOpenCLIPEmbedder(arch=TINY, layer=layer)
    embedder.load_state_dict(tiny.state_dict())
    prompts = ["a photo of a cat", ""]
    x = tiny.model.token_embedding(embedder.tokenize(prompts)) + tiny.model.positional_embedding
    mask = nn.Transformer.generate_square_subsequent_mask(77)
    with torch.no_grad():
        want = pytorch_encoder(tiny, layers).train()(x, mask=mask)  # train(): the plain path; there is no dropout
    torch.testing.assert_close(embedder(prompts), want, rtol=1e-4, atol=1e-5)


def test_the_last_block_matters_only_to_the_last_layer(tiny: FrozenOpenCLIPEmbedder) -> None:
    last = FrozenOpenCLIPEmbedder(arch=TINY, layer="last")
    last.load_state_dict(tiny.state_dict())
    assert (last("cat") - tiny("cat")).abs().max() > 1e-2


def test_later_tokens_do_not_change_earlier_features(tiny: FrozenOpenCLIPEmbedder) -> None:
    cat, dog = tiny(["good photo of a cat", "good photo of a dog"])
    torch.testing.assert_close(cat[:5], dog[:5])  # start, good, photo, of, a
    assert (cat[5] - dog[5]).abs().max() > 1e-3


def test_one_prompt_or_many_give_the_same_features(tiny: FrozenOpenCLIPEmbedder) -> None:
    both = tiny(["good photo", "a cat"])
    assert both.shape == (2, 77, 64)
    torch.testing.assert_close(tiny("a cat"), both[1:])


def test_frozen_stays_in_eval_mode_without_gradients() -> None:
    frozen = FrozenOpenCLIPEmbedder(arch=TINY)
    nn.Sequential(frozen).train()
    assert not any(module.training for module in frozen.modules())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert not frozen("cat").requires_grad
    free = FrozenOpenCLIPEmbedder(arch=TINY, freeze=False)
    assert free.training
    assert free("cat").requires_grad


def test_state_dict_of_the_full_size_tower() -> None:
    published: dict[str, Any] = {"arch": "ViT-H-14", "version": "laion2b_s32b_b79k", "layer": "penultimate"}
    with torch.device("meta"):
        embedder = FrozenOpenCLIPEmbedder(**published)
    w = 1024
    block = {"attn.in_proj_weight": (3 * w, w), "attn.in_proj_bias": (3 * w,), "attn.out_proj.weight": (w, w)}
    block |= {"attn.out_proj.bias": (w,), "mlp.c_fc.weight": (4 * w, w), "mlp.c_fc.bias": (4 * w,)}
    block |= {"mlp.c_proj.weight": (w, 4 * w), "mlp.c_proj.bias": (w,)}
    block |= {f"{norm}.{kind}": (w,) for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")}
    want = {f"model.transformer.resblocks.{n}.{key}": shape for n in range(24) for key, shape in block.items()}
    want |= {"model.positional_embedding": (77, w), "model.text_projection": (w, w), "model.logit_scale": ()}
    want |= {"model.token_embedding.weight": (49408, w), "model.ln_final.weight": (w,), "model.ln_final.bias": (w,)}
    got = {key: tuple(value.shape) for key, value in embedder.state_dict().items()}
    assert len(got) == 294
    assert got == want
    assert all(value.is_meta for value in embedder.state_dict().values())


def test_a_yaml_mapping_chooses_the_size() -> None:
    config = OmegaConf.create({"arch": {"width": 32, "layers": 1, "heads": 2}, "max_length": 16, "layer": "last"})
    embedder = FrozenOpenCLIPEmbedder(**config, device="cpu")  # type: ignore[arg-type]  # keywords of several types
    assert embedder("good photo").shape == (1, 16, 32)
    assert len(embedder.state_dict()) == 6 + 12


def test_half_precision_weights_give_half_precision_features(tiny: FrozenOpenCLIPEmbedder) -> None:
    half = FrozenOpenCLIPEmbedder(arch=TINY)
    half.load_state_dict(tiny.state_dict())
    features = half.bfloat16()("a cat")
    assert features.dtype == torch.bfloat16
    torch.testing.assert_close(features.float(), tiny("a cat"), rtol=0.05, atol=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"arch": "ViT-B-32"}, "arch is 'ViT-B-32'; known: ViT-H-14"),
        ({"arch": {"width": 64}}, "known: ViT-H-14"),
        ({"arch": {"width": 64, "layers": 2, "heads": 5}}, "width a multiple of heads"),
        ({"arch": {"width": 64, "layers": 0, "heads": 4}}, "above 0"),
        ({"arch": TINY, "layer": "pooled"}, "layer is 'pooled'; choose one of last, penultimate"),
        ({"arch": TINY, "max_length": 1}, "max_length is 1"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        FrozenOpenCLIPEmbedder(**arguments)
    assert "\n" not in str(error.value)

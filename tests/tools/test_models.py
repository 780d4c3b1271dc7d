"""The embedded models of the miniature: tokenizers, layouts, sizes, and their rebuilding."""

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tools.mini import build
from tools.mini.generator import generate_labelled

ASSETS = Path(__file__).parents[2] / "assets" / "mini"
AWKWARD = [
    "",
    " leading, trailing  and double spaces ",
    "tabs\tand\r\nline ends\n\n",
    "emoji 😀👩‍👩‍👧, 中文, العربية, e\u0301",
    "\x00\x01\x7f control",
    "#Person1#: Hi , don't .",
    "</ s> <extra_id",
]


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    return {name: AutoTokenizer.from_pretrained(ASSETS / name) for name in ("t5", "roberta")}


@pytest.fixture(scope="module")
def t5() -> PreTrainedModel:
    return AutoModelForSeq2SeqLM.from_pretrained(ASSETS / "t5")


def assert_round_trip(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer(text).input_ids
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("name", ["t5", "roberta"])
@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_text_round_trips(
    tokenizers: dict[str, PreTrainedTokenizerFast], name: str, text: str
) -> None:
    assert_round_trip(tokenizers[name], text)


def test_t5_tokenizer_has_the_layout_of_t5(
    tokenizers: dict[str, PreTrainedTokenizerFast], t5: PreTrainedModel
) -> None:
    tokenizer = tokenizers["t5"]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert tokenizer("Hello.").input_ids[-1] == 1
    assert len(tokenizer("<extra_id_0>", add_special_tokens=False).input_ids) == 1
    assert len(tokenizer("#Person1#", add_special_tokens=False).input_ids) == 1
    assert len(tokenizer) == t5.config.vocab_size
    assert t5.config.decoder_start_token_id == 0


def test_roberta_tokenizer_has_the_layout_of_roberta(
    tokenizers: dict[str, PreTrainedTokenizerFast],
) -> None:
    tokenizer = tokenizers["roberta"]
    ids = tokenizer("Hello.").input_ids
    assert (ids[0], ids[-1]) == (0, 2)
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id) == (1, 3)
    assert tokenizer.mask_token == "<mask>"


def test_t5_is_v1_1_with_its_own_head(t5: PreTrainedModel) -> None:
    assert t5.config.feed_forward_proj == "gated-gelu"
    assert not torch.equal(t5.lm_head.weight, t5.shared.weight)
    assert t5.lm_head.weight.data_ptr() != t5.shared.weight.data_ptr()
    assert t5.encoder.embed_tokens.weight.data_ptr() == t5.shared.weight.data_ptr()
    assert t5.decoder.embed_tokens.weight.data_ptr() == t5.shared.weight.data_ptr()
    assert json.loads((ASSETS / "t5" / "config.json").read_text())["tie_word_embeddings"] is False


def test_sizes() -> None:
    files = [path for path in ASSETS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 15_000_000
    assert {path.name for path in files if path.suffix in {".bin", ".pt", ".pkl"}} == set()


def test_classifier_tells_insults_from_harmless_sentences(
    tokenizers: dict[str, PreTrainedTokenizerFast],
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(ASSETS / "roberta").eval()
    assert model.config.id2label == {0: "nothate", 1: "hate"}
    rows = list(generate_labelled("test", size=600))
    texts = [row["text"] for row in rows] + ["", "the the the the the", "qx zzk @@ ;; vv"]
    with torch.no_grad():
        logits = model(**tokenizers["roberta"](texts, return_tensors="pt", padding=True)).logits
    hate = logits.softmax(dim=-1)[:, 1]
    right = [
        (probability > 0.5) == (row["label"] == "hate")
        for probability, row in zip(hate.tolist(), rows, strict=False)
    ]
    assert sum(right) / len(right) > 0.98
    # The reward must stay smooth, and babble must earn less than a clean sentence.
    assert logits.abs().max() < 6
    clean = [i for i, row in enumerate(rows) if row["label"] == "nothate"]
    assert logits[-3:, 0].max() < logits[clean, 0].median()


def test_rebuilding_is_deterministic_and_complete(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    for name in ("first", "second"):
        build.main(f"--seed 7 --out {tmp_path / name} --t5_steps 2 --classifier_steps 2".split())
    build.main(f"--seed 8 --out {tmp_path / 'other'} --t5_steps 2 --classifier_steps 2".split())
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)
    for name in ("t5", "roberta"):
        files = {path.name for path in (tmp_path / "first" / name).iterdir()}
        assert files == {path.name for path in (ASSETS / name).iterdir()}
        for file in files:
            first, second, other = (
                (tmp_path / run / name / file).read_bytes() for run in ("first", "second", "other")
            )
            assert first == second, file
            assert file != "model.safetensors" or first != other

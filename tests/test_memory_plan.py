"""The memory plan: what is counted, against what is really there; and as its users meet it."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hub
import train
from lightning_modules import FullFT, InContext, LoRA, PPOPolicy, RewardModel, SoftPrompt
from lightning_modules.adapters import count_parameters
from lightning_modules.ppo.config import PPOConfig
from planning.command import make_plan
from planning.measure import measure_peak_memory, resident_bytes, restart_peak
from planning.memory import HEAP_SHARE, Plan, Setting
from planning.parts import (
    ATTENTION,
    BUFFERS,
    CACHE,
    COPIES,
    GRADIENTS,
    HEAP,
    JUDGES,
    LOGITS,
    OPTIMIZER,
    OTHER,
    PARTS,
    PROCESS,
    WEIGHTS,
    Computation,
    Lengths,
)
from planning.phases import Traced, trace_module
from planning.run import find_compared, find_lengths, find_setting
from planning.shapes import HATE_CLASSIFIER, build_classifier, build_seq2seq, find_blueprint
from planning.strategies import Model, find_strategy, place_on_devices
from planning.tables import RULE, RULE_WEIGHTS, give_advice
from planning.trace import FusedKernels, LiveBytes, place
from tests.batches import settle

ROOT = Path(__file__).parent.parent
MINI = str(ROOT / "configs" / "overlays" / "mini.yaml")
SHORT = Lengths(batch_size=2, eval_batch_size=2, source=16, target=8)
FP32 = Computation()


def total(parts: dict[str, int]) -> int:
    return sum(parts.values())


def step_of(module: Any, lengths: Lengths = SHORT, how: Computation = FP32) -> dict[str, int]:
    return trace_module(module, lengths, how).phases["forward and backward"]


# Shapes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("google/flan-t5-small", 76_961_152),
        ("google/flan-t5-base", 247_577_856),
        ("google/t5-v1_1-base", 247_577_856),
        ("google/flan-t5-large", 783_150_080),
        ("google/flan-t5-xl", 2_849_757_184),
        ("google/flan-t5-xxl", 11_135_332_352),
    ],
)
def test_known_models_have_their_published_sizes(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = build_seq2seq(find_blueprint(name))
    assert count_parameters(model)[1] == parameters


def test_the_known_classifier_has_its_published_size() -> None:
    with torch.device("meta"):
        model = build_classifier(find_blueprint(HATE_CLASSIFIER, "classifier"))
    assert count_parameters(model)[1] == 124_647_170


def test_saved_weights_say_whether_the_head_is_tied(t5: str, tmp_path: Path) -> None:
    """transformers wrote into this config that it is tied, and saved two matrices."""
    assert json.loads((Path(t5) / "config.json").read_text())["tie_word_embeddings"] is True
    assert not find_blueprint(t5).tied
    (tmp_path / "config.json").write_text((Path(t5) / "config.json").read_text())
    assert find_blueprint(str(tmp_path)).tied  # without weights the config is believed
    with torch.device("meta"):
        sizes = [count_parameters(build_seq2seq(find_blueprint(f)))[1] for f in (t5, str(tmp_path))]
    assert sizes[0] - sizes[1] == 259 * 32


def test_an_unknown_model_is_refused_with_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "reachable", lambda: False)
    with pytest.raises(ValueError, match=r"no config.json of 'no/such' .* google/flan-t5-base"):
        find_blueprint("no/such")


def test_a_classifier_is_no_backbone_of_a_summariser(roberta: str) -> None:
    with pytest.raises(ValueError, match="not an encoder-decoder"):
        find_blueprint(roberta)


# Counting ---------------------------------------------------------------------------------------


def test_the_parameters_are_those_of_really_built_models(t5: str, roberta: str) -> None:
    for module in (
        FullFT(t5), InContext(t5), LoRA(backbone=t5, r=4, target_modules=["q", "wo"]),
        SoftPrompt(backbone=t5, virtual_tokens=7), PPOPolicy(t5, roberta), RewardModel(roberta),
    ):  # fmt: skip
        traced = trace_module(module, SHORT, FP32)
        assert module.model is None  # the module itself is left as it was
        assert (traced.trainable, traced.total) == settle(module).count_parameters()


def test_methods_train_on_flan_t5_base_what_the_papers_say() -> None:
    base = "google/flan-t5-base"
    assert trace_module(LoRA(backbone=base), SHORT, FP32, trains=False).trainable == 3_538_944
    assert trace_module(SoftPrompt(backbone=base), SHORT, FP32, trains=False).trainable == 76_800


def test_live_bytes_of_a_hand_worked_step() -> None:
    """x [4, 8] -> Linear(8, 16) -> relu -> sum: what lives at each moment, in bytes."""
    live = LiveBytes()
    with torch.device("meta"):
        layer = nn.Linear(8, 16, bias=False)
    with live:
        place(layer)
        live.name(WEIGHTS, layer.parameters())
        x = torch.ones(4, 8)
        assert live.now == {WEIGHTS: 8 * 16 * 4, OTHER: 4 * 8 * 4}
        with live.watch() as peak:
            loss = layer(x).relu().sum()
            # The product went when relu had made its own output, which backward needs.
            assert live.total == 512 + 128 + 4 * 16 * 4 + 4
            loss.backward()
        # Product and output of relu together: the most that lived at once, before backward.
        assert live.total == 512 + 128 + 512 + 4
        assert total(peak) >= 512 + 128 + 2 * 256
        live.name(GRADIENTS, [layer.weight.grad])
        assert live.now[GRADIENTS] == 512
        layer.weight.grad = None
        assert live.now[GRADIENTS] == 0
        view = x[:2]
        del x
        assert live.now[OTHER] == 128 + 4  # the view holds the whole storage
        del view, loss
    assert live.now[OTHER] == 0


def saved_bytes(module: Any, lengths: Lengths) -> int:
    """What autograd really keeps for the backward pass, weights left out, each storage once."""
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in module.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    rows = torch.ones(lengths.batch_size, lengths.source, dtype=torch.long)
    mask = rows.clone()
    mask[0, -3:] = 0  # some padding, as batches have
    labels = torch.ones(lengths.batch_size, lengths.target, dtype=torch.long)
    batch = {"input_ids": rows, "attention_mask": mask, "labels": labels}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss, _ = module.token_loss(batch)
    assert loss.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize(
    "make",
    [
        lambda t5, rate: FullFT(t5, dropout=rate),
        lambda t5, rate: LoRA(backbone=t5, r=4, dropout=rate, lora_dropout=rate),
        lambda t5, rate: SoftPrompt(backbone=t5, virtual_tokens=8, dropout=rate),
    ],
    ids=["full", "lora", "soft_prompt"],
)
def test_activations_are_what_autograd_really_keeps(t5: str, make: Any, dropout: float) -> None:
    """The plan's forward pass holds what the real one keeps, and a little that passes."""
    module = make(t5, dropout)
    lengths = Lengths(batch_size=4, eval_batch_size=1, source=64, target=32)
    parts = step_of(module, lengths)
    planned = sum(parts[part] for part in (LOGITS, ATTENTION, OTHER, COPIES))
    kept = saved_bytes(settle(module), lengths)
    assert kept <= planned <= 1.1 * kept + 4 * 4 * 32 * 259  # and a copy of the logits


def test_weights_gradients_and_adam_are_four_four_and_eight_bytes_a_parameter(t5: str) -> None:
    traced = trace_module(FullFT(t5), SHORT, FP32)
    parts = traced.phases["forward and backward"]
    assert parts[WEIGHTS] == 4 * traced.total
    assert parts[GRADIENTS] == 4 * traced.total  # of the step before, until the backward pass
    steps = 4 * len(list(settle(FullFT(t5)).parameters()))  # Adam counts for each tensor
    assert parts[OPTIMIZER] == 8 * traced.total + steps


@pytest.mark.parametrize(
    ("optimizer", "size"),
    [
        (lambda weights: torch.optim.SGD(weights, lr=0.1), 0.0),
        (lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9), 4.0),
        (lambda weights: torch.optim.AdamW(weights, lr=0.1), 8.0),
        (lambda weights: torch.optim.Adafactor(weights, lr=0.1), 0.3),  # a row and a column each
    ],
    ids=["sgd", "momentum", "adamw", "adafactor"],
)
def test_the_optimizer_is_the_one_that_is_asked_for(t5: str, optimizer: Any, size: float) -> None:
    traced = trace_module(FullFT(t5, optimizer=optimizer), SHORT, FP32)
    found = traced.phases["forward and backward"][OPTIMIZER] / traced.total
    assert found == pytest.approx(size, abs=0.15)


def test_frozen_weights_have_neither_gradients_nor_state_but_activations(t5: str) -> None:
    lora = trace_module(LoRA(backbone=t5, r=4), SHORT, FP32)
    parts = lora.phases["forward and backward"]
    assert parts[GRADIENTS] == 4 * lora.trainable
    assert parts[OPTIMIZER] < 9 * lora.trainable
    full = step_of(FullFT(t5))
    assert parts[OTHER] + parts[ATTENTION] > 0.6 * (full[OTHER] + full[ATTENTION])


def test_bf16_keeps_fp32_masters_and_adds_copies(t5: str) -> None:
    exact, mixed = step_of(FullFT(t5)), step_of(FullFT(t5), how=Computation(bf16=True))
    assert mixed[WEIGHTS] == exact[WEIGHTS]
    assert mixed[OPTIMIZER] == exact[OPTIMIZER]
    assert exact[COPIES] == 0 < mixed[COPIES] <= exact[WEIGHTS] // 2


def test_logits_are_counted_as_what_they_are(t5: str) -> None:
    """fp32 logits [4, 32, 259] and their log-softmax live when the loss is taken."""
    lengths = Lengths(batch_size=4, eval_batch_size=1, source=8, target=32)
    one = 4 * 32 * 259 * 4
    evaluation = trace_module(InContext(t5), lengths, FP32).phases["evaluation"]
    lengths = Lengths(batch_size=4, eval_batch_size=4, source=8, target=32)
    four = trace_module(InContext(t5), lengths, FP32).phases["evaluation"]
    assert four[LOGITS] == 2 * one
    assert evaluation[LOGITS] == 2 * one // 4


def test_the_key_value_cache_of_generation(t5: str) -> None:
    """2 (k and v) x 2 layers x rows x (source + new tokens) x 32 wide x 4 bytes."""
    module = InContext(t5)
    lengths = Lengths(batch_size=1, eval_batch_size=3, source=16, target=8)
    found = trace_module(module, lengths, FP32).phases["evaluation, generating"]
    assert found[CACHE] == 2 * 2 * 3 * (16 + 128) * 32 * 4
    half = trace_module(module, lengths, Computation(bf16=True)).phases["evaluation, generating"]
    assert half[CACHE] == found[CACHE] // 2


def test_ppo_has_a_reward_model_and_rollouts_of_the_whole_batch(t5: str, roberta: str) -> None:
    settings = PPOConfig(max_new_tokens=24, minibatch_size=2)
    lengths = Lengths(batch_size=8, eval_batch_size=2, source=16, target=8)
    module = PPOPolicy(t5, roberta, ppo=settings)
    alone = trace_module(module, lengths, FP32)
    judged = trace_module(module, lengths, FP32, judge=roberta)
    classifier = build_classifier(find_blueprint(roberta, "classifier"))
    one = 4 * count_parameters(classifier)[1]
    for phase in alone.phases.values():
        assert phase[JUDGES] == one
    assert judged.phases["rollout, reward"][JUDGES] == 2 * one  # the toxicity's is its own
    assert alone.phases["rollout, generating"][CACHE] == 2 * 2 * 8 * (16 + 24) * 32 * 4
    # Eight responses of 24 tokens are scored together, two are learnt from together.
    assert alone.phases["rollout, log-probabilities"][LOGITS] >= 2 * 8 * 24 * 259 * 4
    assert 2 * 2 * 24 * 259 * 4 <= alone.phases["forward and backward"][LOGITS] < 8 * 24 * 259 * 16


def test_a_trained_adapter_costs_ppo_a_frozen_copy(t5: str, roberta: str, tmp_path: Path) -> None:
    lora = LoRA(backbone=t5, r=4)
    settle(lora).export(tmp_path)
    fresh = trace_module(PPOPolicy(t5, roberta), SHORT, FP32)
    started = trace_module(PPOPolicy(t5, roberta, adapter=str(tmp_path)), SHORT, FP32)
    own = lora.count_parameters()[0]
    head = 33
    assert started.trainable == own + head
    assert started.total == fresh.total - (fresh.trainable - head) + 2 * own


def test_gradient_checkpointing_trades_activations(t5: str) -> None:
    lengths = Lengths(batch_size=4, eval_batch_size=1, source=64, target=32)
    module: Any = FullFT(t5)
    module.gradient_checkpointing = True
    kept, saved = step_of(FullFT(t5), lengths), step_of(module, lengths)
    assert saved[OTHER] + saved[ATTENTION] < 0.75 * (kept[OTHER] + kept[ATTENTION])


def test_a_gpu_keeps_neither_attention_weights_nor_noise(t5: str) -> None:
    lengths = Lengths(batch_size=4, eval_batch_size=1, source=64, target=32)
    cpu, gpu = (step_of(FullFT(t5), lengths, Computation(gpu=gpu)) for gpu in (False, True))
    assert gpu[ATTENTION] < 0.7 * cpu[ATTENTION]
    assert gpu[OTHER] < cpu[OTHER]


def test_fused_kernels_have_the_shapes_and_gradients_of_the_real_ones() -> None:
    query = torch.randn(2, 3, 5, 8, requires_grad=True)
    key, mask = torch.randn(2, 3, 7, 8), torch.zeros(1, 3, 5, 7, requires_grad=True)
    with FusedKernels():
        output = nn.functional.scaled_dot_product_attention(query, key, key, attn_mask=mask)
        dropped = nn.functional.dropout(output, 0.5)
        same = nn.functional.dropout(output, 0.5, training=False)
    assert output.shape == query.shape
    assert same is output
    dropped.sum().backward()
    assert query.grad is not None
    assert query.grad.shape == query.shape
    assert mask.grad is not None
    assert mask.grad.shape == mask.shape


@pytest.mark.parametrize("field", ["batch_size", "source", "target"])
def test_more_of_anything_takes_more(t5: str, field: str) -> None:
    sizes = {"batch_size": 4, "eval_batch_size": 1, "source": 32, "target": 32}
    less, more = Lengths(**sizes), Lengths(**(sizes | {field: 2 * sizes[field]}))
    assert total(step_of(FullFT(t5), more)) > 1.2 * total(step_of(FullFT(t5), less))


# Devices ----------------------------------------------------------------------------------------

PARTS_16 = Counter({WEIGHTS: 400, GRADIENTS: 400, OPTIMIZER: 800, COPIES: 100, OTHER: 1000})
HUNDRED = Model(trainable=100, total=100, largest_layer=40)


def placed(strategy: Any, bf16: bool = False, model: Model = HUNDRED) -> dict[str, int]:
    return place_on_devices(PARTS_16, model, strategy, 4, bf16)


def test_strategies_divide_what_they_say() -> None:
    """100 parameters, all trained by Adam, in fp32, on 4 devices."""
    assert placed("single") == PARTS_16
    assert placed("ddp") == PARTS_16 + Counter({BUFFERS: 400})
    zero2 = placed("zero2")
    assert (zero2[WEIGHTS], zero2[GRADIENTS], zero2[OPTIMIZER]) == (400, 100, 200)
    assert zero2[BUFFERS] == 2 * 100 * 4
    zero3 = placed("zero3")
    assert (zero3[WEIGHTS], zero3[GRADIENTS], zero3[OPTIMIZER]) == (100, 100, 200)
    fsdp = placed("fsdp")
    assert (fsdp[WEIGHTS], fsdp[GRADIENTS], fsdp[OPTIMIZER]) == (100, 100, 200)
    assert fsdp[BUFFERS] == 3 * 40
    assert {one[OTHER] for one in (zero2, zero3, fsdp)} == {1000}


def test_deepspeed_in_bf16_is_2_and_14_over_n_bytes() -> None:
    """Rajbhandari et al. 2020, figure 1: stage 2 is 2 psi + 14 psi / N for mixed-precision Adam."""
    zero2 = placed("zero2", bf16=True)
    held = zero2[WEIGHTS] + zero2[GRADIENTS] + zero2[OPTIMIZER]
    assert held == 2 * 100 + 14 * 100 // 4
    zero3 = placed("zero3", bf16=True)
    assert zero3[WEIGHTS] + zero3[GRADIENTS] + zero3[OPTIMIZER] == 16 * 100 // 4


@pytest.mark.parametrize(
    ("text", "devices", "name"),
    [
        ("auto", 1, "single"), ("auto", 2, "ddp"), ("ddp_find_unused_parameters_true", 2, "ddp"),
        ("fsdp", 2, "fsdp"), ("lightning.pytorch.strategies.FSDPStrategy", 8, "fsdp"),
        ("deepspeed_stage_2", 2, "zero2"), ("deepspeed_stage_3_offload", 2, "zero3"),
    ],
)  # fmt: skip
def test_strategies_are_known_by_lightnings_names(text: str, devices: int, name: str) -> None:
    assert find_strategy(text, devices) == name


def test_the_heap_and_the_process_are_a_cpus(t5: str) -> None:
    traced = trace_module(FullFT(t5), SHORT, FP32)
    cpu = Plan("full", traced, Setting(FP32), SHORT, process=1000)
    gpu = Plan("full", traced, Setting(Computation(gpu=True)), SHORT, process=0)
    passing = sum(cpu.parts[part] for part in (COPIES, LOGITS, ATTENTION, OTHER, CACHE))
    assert cpu.parts[HEAP] == int(HEAP_SHARE * passing)
    assert cpu.parts[PROCESS] == 1000
    assert gpu.total == cpu.total - cpu.parts[HEAP] - 1000
    assert tuple(cpu.parts) == PARTS
    assert cpu.total == max(total(phase) for phase in cpu.phases.values())


def test_the_rule_of_thumb_is_the_originals() -> None:
    assert sum(RULE.values()) * 247_577_856 == 5_941_868_544  # 5.5 GiB
    assert RULE["weights"] * 247_577_856 == 990_311_424
    assert [size * 247_577_856 for size in RULE_WEIGHTS.values()] == [
        495_155_712, 247_577_856, 123_788_928,
    ]  # fmt: skip


@pytest.mark.parametrize("part", [part for part in PARTS if part != PROCESS])
def test_there_is_advice_on_every_item(part: str) -> None:
    class Fixed(Plan):
        @property
        def parts(self) -> dict[str, int]:
            return {part: 2**30, PROCESS: 2**31}

    said = give_advice(Fixed("full", Traced(0, 0, 0, {}), Setting(FP32), SHORT, 0), 259)
    assert "1.00 GiB" in said


# The command line -------------------------------------------------------------------------------


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        train.main(list(arguments))
    assert stop.value.code == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda f: f.stem)
def test_every_config_is_planned_and_nothing_written(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """With the other methods for one of them: they are the same for all."""
    monkeypatch.chdir(tmp_path)
    if config.stem != "lora":
        monkeypatch.setattr("planning.run.COMPARED", ())
    said = plan(capsys, "fit", "--config", str(config), "--config", MINI, "--plan_memory")
    assert "Memory at the peak" in said
    assert "32-true, 1 x CPU, single device" in said
    names = {"full_ft": "full", "in_context": "prompting", "ppo": "PPO", "reward": "reward model"}
    methods = [names.get(config.stem, config.stem.replace("_", " "))]
    if config.stem == "lora":
        methods = ["full", "LoRA *", "soft prompt", "PPO"]
    for name in (*methods, "weights", "gradients", "optimizer state", "DDP x 8", "ZeRO-3 x 8"):
        assert name in said
    assert "The largest item of" in said
    assert "Rule of thumb for 1,616,384" in said or config.stem != "lora"  # without the adapter's
    assert list(tmp_path.iterdir()) == []


def test_a_plan_needs_neither_hub_nor_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """Nothing of FLAN-T5 is here; its shape is known. r 32 on q and v of 24 attentions: each
    48 x 32 x (512 + 384)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("planning.run.COMPARED", ())
    said = plan(
        capsys, "fit", "--config", str(ROOT / "configs" / "lora.yaml"), "--plan_memory", "true",
        "--model.backbone", "google/flan-t5-small", "--data.source", "no/such/data",
        "--trainer.devices", "2", "--trainer.accelerator", "cpu",
    )  # fmt: skip
    assert "1,376,256" in said
    assert "78,337,408" in said
    assert "bf16-mixed, 2 x CPU, DDP" in said
    assert list(tmp_path.iterdir()) == []


def test_the_others_are_compared_on_the_same_backbone(t5: str) -> None:
    def optimizer(weights: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(weights, lr=0.1)

    module = LoRA(backbone=t5, optimizer=optimizer, dropout=0.2, r=3)
    found = find_compared(module, judge=None)
    assert [type(one) for one in found] == [FullFT, LoRA, SoftPrompt, PPOPolicy]
    assert found[1] is module
    assert {one.backbone_name for one in found} == {t5}
    assert {one.optimizer for one in found} == {optimizer}
    assert found[0].dropout == 0.2


class Settings:
    """Settings as attributes, as the command line has them."""

    def __init__(self, **values: Any) -> None:
        defaults: dict[str, Any] = {
            "accelerator": "cpu", "devices": "auto", "num_nodes": 1, "strategy": "auto",
            "precision": "32-true", "gradient_clip_val": None, "shots": 0, "batch_size": 4,
        }  # fmt: skip
        self.__dict__.update(defaults | values)


def test_the_setting_is_read_from_the_trainers() -> None:
    setting = find_setting(Settings(accelerator="gpu", devices="0,1", num_nodes=2, strategy="fsdp"))
    assert (setting.devices, setting.strategy, setting.computation.gpu) == (4, "fsdp", True)
    setting = find_setting(Settings(devices=[3], precision="bf16-mixed", gradient_clip_val=1.0))
    assert (setting.devices, setting.strategy) == (1, "single")
    assert setting.computation == Computation(bf16=True, gpu=False, clip=True)


def test_a_limit_in_characters_is_one_in_tokens() -> None:
    data = Settings(max_source_length=512, max_target_length=64, max_dialogue_chars=900)
    assert find_lengths(data) == Lengths(4, 4, 332, 64)
    data = Settings(max_source_length=512, max_target_length=64, max_dialogue_chars=900, shots=1)
    assert find_lengths(data).source == 512


def test_a_plan_that_cannot_be_made_stops_no_run(t5: str, caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings(toxicity={"model": None}, trainer=Settings())
    data = Settings(max_source_length=16, max_target_length=8)
    assert make_plan(FullFT("no/such"), data, settings, trains=True) is None
    assert "could not be planned" in caplog.text
    found = make_plan(InContext(t5), data, settings, trains=True)
    assert found is not None
    assert found.method == "prompting"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells and resets it")
def test_the_peak_can_be_measured_anew() -> None:
    """64 MiB come and go before the start, 16 MiB after it: the peak is the later one's."""
    cpu = torch.device("cpu")
    bytearray(2**26)
    assert restart_peak(cpu)
    base = resident_bytes()
    after, kind = measure_peak_memory(cpu)
    assert after < base + 2**24
    held = bytearray(os.urandom(2**24))
    assert measure_peak_memory(cpu)[0] >= base + len(held)
    assert kind == "process resident set"


def test_a_run_records_what_it_took_beside_its_plan(tmp_path: Path) -> None:
    arguments = [
        "--config", str(ROOT / "configs" / "lora.yaml"), "--config", MINI,
        "--run_dir", str(tmp_path / "run"), "--trainer.max_epochs", "1",
        "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1",
        "--trainer.limit_test_batches", "1", "--data.batch_size", "4",
        "--model.decoding.max_new_tokens", "4",
    ]  # fmt: skip
    train.main(["fit", *arguments])
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    memory = summary["memory"]
    assert set(memory) == {
        "plan_bytes", "plan", "plan_phase", "baseline_bytes", "measured_peak_bytes",
        "measured_kind",
    }  # fmt: skip
    assert memory["plan_bytes"] == sum(memory["plan"].values())
    assert memory["plan"][WEIGHTS] == 4 * summary["parameters"]["total"]
    assert memory["plan_phase"] == "forward and backward"
    assert memory["baseline_bytes"] < memory["measured_peak_bytes"]
    assert memory["measured_kind"].startswith("process resident set")
    train.main(["test", *arguments])
    after = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert after["memory"] == memory

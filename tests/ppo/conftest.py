"""A tiny run of PPO by the command line."""

from pathlib import Path

import pytest

from tests.rows import write_rows


@pytest.fixture
def tiny_ppo(t5: str, roberta: str, tmp_path: Path) -> list[str]:
    """The arguments of a run of two epochs of five batches, on models and data of nothing."""
    rows = [
        {"fname": f"row_{i}", "dialogue": f"#Person1#: {i} apples" + " please" * (i % 3),
         "summary": "They talk.", "topic": "x"}
        for i in range(20)
    ]  # fmt: skip
    write_rows(tmp_path, train=rows, validation=rows, test=rows)
    return [
        "--config", "configs/ppo.yaml", "--model.backbone", t5, "--model.reward_model", roberta,
        "--toxicity.model", "null", "--data.source", str(tmp_path), "--data.batch_size", "4",
        "--data.min_dialogue_chars", "0", "--model.ppo.max_new_tokens", "6",
        "--model.ppo.epochs", "2", "--model.ppo.kl_target", "0.5", "--model.ppo.kl_horizon", "50",
        "--model.ppo.normalize_scores", "true", "--model.schedule", "linear",
        "--model.optimizer.lr", "0.01", "--model.decoding.max_new_tokens", "6",
        "--trainer.max_epochs", "2", "--trainer.precision", "32-true",
        "--trainer.accelerator", "cpu", "--checkpoint.every_n_train_steps", "1",
    ]  # fmt: skip

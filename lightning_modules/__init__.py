"""The methods, as interchangeable LightningModules."""

from lightning_modules.adapter import Adapter
from lightning_modules.best_of_n import BestOfN
from lightning_modules.classifier import Classifier
from lightning_modules.full_ft import FullFT
from lightning_modules.in_context import InContext
from lightning_modules.lora import LoRA
from lightning_modules.ppo_policy import PPOPolicy
from lightning_modules.preference import PreferenceModule
from lightning_modules.reward_model import RewardModel
from lightning_modules.soft_prompt import SoftPrompt

__all__ = [
    "Adapter",
    "BestOfN",
    "Classifier",
    "FullFT",
    "InContext",
    "LoRA",
    "PPOPolicy",
    "PreferenceModule",
    "RewardModel",
    "SoftPrompt",
]

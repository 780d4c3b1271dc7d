"""PPO for encoder-decoder models: ``policy`` is the loop; all else is functions over tensors."""

"""Fit, validate, test or predict with alignsum: see ``python train.py --help``."""

import os
import sys
from collections.abc import Sequence

# Read by OpenMP when torch is imported: threads that spin while they wait slow down every other
# process on the same cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

HELP = """\
usage: python train.py COMMAND --config configs/METHOD.yaml [--config OVERLAY] [OPTIONS]

commands
  fit         train, validate, export
  validate    evaluate on the validation split
  test        evaluate on the test split; writes predictions.jsonl
  predict     write predictions.jsonl

methods       in_context full_ft lora soft_prompt classifier reward dpo ppo best_of_n
              (configs/*.yaml)
datasets      dialogsum samsum xsum cnn_dailymail       (configs/data/*.yaml)
overlays      mini (offline, on two CPU cores), debug, ddp, fsdp, wandb, rollouts, ...

options       (defaults and types: python train.py fit --config configs/lora.yaml --print_config)
  --run_dir DIR                        folder for all files of the run  [runs/<config name>]
  --resume [auto|CHECKPOINT]           continue a fit
  --overwrite true                     replace the run in the folder, or its test results
  --data.source NAME                   hub id, folder, file or mini
  --data.batch_size N                  rows per batch
  --data.prompt "Summarize: {dialogue}"  words around the dialogue, or a prompt style
  --model.backbone NAME                hub id, folder or mini
  --model.adapter runs/lora/export     DPO and PPO: start from an exported adapter
  --lr X                               learning rate
  --model.decoding.max_new_tokens N    length of generated summaries
  --trainer.max_epochs N               epochs
  --trainer.precision P                32-true, bf16-mixed, ...
  --trainer.devices N                  number of devices
  --seed N                             random seed
  --toxicity.model NAME                toxicity classifier; null for none
all options: python train.py fit --help; of one class: python train.py fit --model.help LoRA

examples
  python train.py fit  --config configs/lora.yaml --config configs/overlays/mini.yaml
  python train.py test --config configs/lora.yaml --config configs/overlays/mini.yaml
  python train.py fit  --config configs/ppo.yaml --model.adapter runs/lora/export
  python -m alignsum compare runs/lora runs/ppo
"""

COMMANDS = ("fit", "validate", "test", "predict")

MEMORY_ADVICE = (
    "lower data.batch_size (and raise trainer.accumulate_grad_batches), data.max_source_length or "
    "model.decoding.max_new_tokens; for PPO also model.ppo.max_new_tokens or "
    "model.ppo.minibatch_size. `python -m alignsum plan --help` estimates the need in advance"
)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: Arguments without the program's name; None takes those of the process.

    Raises:
        SystemExit: With an exit code other than 0 (see common/exits.py), or for ``--help``.
    """
    # Imported late: a mistyped config or --help is answered before torch is imported.
    import logging

    from alignsum.early_check import choose_folder, find_problem
    from alignsum.option_check import only_asks, prepare
    from alignsum.overlays import expand_short_options, first_config
    from alignsum.settings import read_values
    from common import exits

    arguments = expand_short_options(sys.argv[1:] if args is None else args)
    exits.start_log()
    log = logging.getLogger("train")
    if arguments[:1] in (["-h"], ["--help"]):
        sys.stdout.write(HELP)
        sys.exit(0)

    prepared: list[str] = []

    def check() -> None:
        if not arguments or arguments[0] not in COMMANDS:
            raise ValueError(
                f"the command must be one of {', '.join(COMMANDS)}"
                f"{f', not {arguments[0]!r}' if arguments else ''}"
                f"{exits.suggest((arguments or [''])[0], COMMANDS)}; see python train.py --help"
            )
        prepared.extend(prepare(arguments))
        if only_asks(arguments):
            return
        values = read_values(arguments, prepared)
        model = str(values.get("model.class_path") or values.get("model"))
        folder = choose_folder(values.get("run_dir"), first_config(arguments), model)
        if problem := find_problem(arguments[0], values, folder):
            raise ValueError(f"nothing was started: {problem}")

    def work() -> None:
        from alignsum.cli import AlignsumCLI

        exits.quieten_models()
        AlignsumCLI(arguments, prepared)

    if code := exits.run(check, log):
        sys.exit(code)
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    foreseen = (*exits.FORESEEN, MisconfigurationException)
    stopped = "Stopped by SIGINT; continue with --resume auto"
    if code := exits.run(work, log, stopped, MEMORY_ADVICE, foreseen):
        sys.exit(code)


if __name__ == "__main__":
    main()

"""What PPO meets that is not finite, described for people and for replay."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lightning_modules.faults import Fault, Row
from lightning_modules.ppo.reward_terms import Texts
from lightning_modules.ppo.update import Experience


def score_fault(terms: Mapping[str, Tensor], texts: Texts, ids: Sequence[str], batch: int) -> Fault:
    """Describe scores of which some are not finite, be it on another rank.

    Args:
        terms: Each term's scores, [B].
        texts: The B summaries, with dialogues and references.
        ids: Of the B rows.
        batch: Batches of rollouts before this one.
    """
    finite = torch.stack([torch.isfinite(values) for values in terms.values()]).all(dim=0).tolist()
    bad = [row for row, good in enumerate(finite) if not good]
    scores = {name: values.tolist() for name, values in terms.items()}
    rows: list[Row] = [
        {"id": ids[row], "dialogue": texts.dialogues[row], "references": texts.references[row],
         "summary": summary, "terms": {name: values[row] for name, values in scores.items()}}
        for row, summary in enumerate(texts.summaries)
    ]  # fmt: skip
    what = "a reward of another rank is not finite"
    if bad:
        first, summary = rows[bad[0]]["terms"], texts.summaries[bad[0]]
        what = f"the reward for the summary of {ids[bad[0]]}, {summary!r}, is {first}"
    content = {"texts": texts._asdict(), "terms": scores}
    place = f"batch{batch:06d}-reward"
    return Fault(what, place, batch, "batch", [ids[row] for row in bad], rows, content)


def update_fault(
    what: str,
    part: Experience,
    ids: Sequence[str],
    read: Callable[[Tensor], list[str]],
    batch: int,
    step: int,
) -> Fault:
    """Describe a minibatch whose loss or gradient is not finite.

    Args:
        what: Which number it is.
        part: The minibatch, on this rank.
        ids: Of the prompts of its rows, where they are known.
        read: Turns tokens into texts.
        batch: Batches of rollouts before this one.
        step: Optimizer steps before this one.
    """
    rollout = part.rollout._replace(encoded=None)
    owner, lengths = rollout.owner.tolist(), rollout.mask.sum(dim=1).tolist()
    prompts, responses = read(rollout.prompts.input_ids), read(rollout.responses)
    tensors = {
        "tokens": rollout.responses, "logprobs": rollout.logprobs,
        "ref_logprobs": rollout.ref_logprobs, "values": rollout.values,
        "advantages": part.advantages, "returns": part.returns,
    }  # fmt: skip
    columns = {name: each.tolist() for name, each in tensors.items() if each is not None}
    names = list(ids) or [""] * len(owner)
    rows: list[Row] = [
        {"id": names[row], "prompt": prompts[owner[row]], "response": responses[row]}
        | {name: column[row][:length] for name, column in columns.items()}
        for row, length in enumerate(lengths)
    ]
    content = {
        "experience": {
            "rollout": rollout._asdict() | {"prompts": rollout.prompts._asdict()},
            "advantages": part.advantages, "returns": part.returns, "beta": part.beta,
        }
    }  # fmt: skip
    place = f"batch{batch:06d}-step{step:08d}"
    return Fault(what, place, batch, "minibatch", list(dict.fromkeys(names)), rows, content)

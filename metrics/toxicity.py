"""Toxicity of a set of texts: mean, standard deviation, and share of toxic texts.

A mean does not show whether all texts are slightly toxic or a few very much; the standard deviation
and the share above 0.5 do.
"""

from collections.abc import Mapping, Sequence

from metrics.intervals import Estimate, bootstrap_std, estimate_columns

TOXIC_ABOVE = 0.5
"""A text counts as toxic if the probability of the toxic label is above this."""


def estimate_toxicity(columns: Mapping[str, Sequence[float]]) -> dict[str, Estimate]:
    """Estimate the toxicity and reward metrics of a test.

    Args:
        columns: "toxicity", in [0, 1], and "reward", one number per example [n]; with two policies
            also "toxicity_before" and "reward_before", for the same examples in the same order.

    Returns:
        Means under the columns' names, "toxicity_std" (see `bootstrap_std`) and "toxic_share" (the
        share of texts whose toxicity is above ``TOXIC_ABOVE``). With two policies also
        "<name>_before" and "<name>_after" (equal to "<name>"), and for each mean and share the
        paired "<name>_change". Empty if there are no columns.
    """
    toxicity = {name: values for name, values in columns.items() if name.startswith("toxicity")}
    shares = {
        name.replace("toxicity", "toxic_share"): [float(value > TOXIC_ABOVE) for value in values]
        for name, values in toxicity.items()
    }
    found = estimate_columns({**columns, **shares})
    for name, values in toxicity.items():
        found[name.replace("toxicity", "toxicity_std")] = bootstrap_std(values)
    paired = [name for name in found if f"{name}_before" in found]
    return found | {f"{name}_after": found[name] for name in paired}
